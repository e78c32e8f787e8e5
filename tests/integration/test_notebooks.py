"""The notebooks run from top to bottom in a fresh kernel, and are committed with what they show."""

import os
import re
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="nbclient, which runs notebooks, is not installed")
nbformat = pytest.importorskip("nbformat", reason="nbformat, which reads notebooks, is not installed")

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# What each notebook must print, with the least it must reach.
ACCURACIES = {
    "quickstart": {r"^int8 file: test accuracy (\S+),": 0.95, r"^int8 file of the recipe: test accuracy (\S+)$": 0.92},
}
MOST_BYTES = 400_000
# What a cell says about the length of its training, in Python or in a recipe's `--set`, and how long it is by default:
# long enough for every step to be made, and for better than guessing.
EPOCHS, FEW = re.compile(r"((?:EPOCHS = |epochs=))\d+"), r"\g<1>4"
DRAWS = re.compile(r"plt\.subplots|display\(Image")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell, stream="stdout"):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == stream)


def kinds(cell):
    """What a cell shows: the streams and the richest form of each display."""
    shown = [output.get("name") or max(output.get("data", ["error"]), key=str) for output in cell.outputs]
    return sorted(set(shown))


def pictures(cell):
    return sum("image/png" in output.get("data", ()) for output in cell.outputs)


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def committed(request):
    return request.param, nbformat.read(request.param, as_version=4)


@pytest.fixture(scope="module", params=["few epochs", pytest.param("all epochs", marks=pytest.mark.slow)])
def executed(request, committed, tmp_path_factory):
    path, notebook = committed
    fresh = nbformat.from_dict(notebook)
    for cell in code_cells(fresh):
        cell.outputs, cell.execution_count = [], None
        if request.param == "few epochs":
            cell.source = EPOCHS.sub(FEW, cell.source)
    folder = tmp_path_factory.mktemp(path.stem)
    with pytest.MonkeyPatch.context() as patch:
        # The kernel finds this checkout, installed or not, and does not share a GPU with this process.
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
        resources = {"metadata": {"path": str(folder)}}
        nbclient.NotebookClient(fresh, timeout=600, kernel_name="python3", resources=resources).execute()
    return request.param, fresh


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} == set(ACCURACIES)


def test_a_notebook_is_committed_with_its_outputs(committed):
    path, notebook = committed
    nbformat.validate(notebook)
    assert path.stat().st_size < MOST_BYTES
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "not run from top to bottom"
    for cell in cells:
        assert all(output.output_type != "error" for output in cell.outputs)
        assert bool(pictures(cell)) == bool(DRAWS.search(cell.source)), cell.source
        assert cell.outputs or not re.search(r"^(print|measure)\(|tfc\.print_table", cell.source, re.MULTILINE)


def test_the_outputs_tell_nothing_of_where_they_were_made(committed):
    _, notebook = committed
    for cell in code_cells(notebook):
        assert not printed(cell, "stderr"), "warnings are noise to a reader"
        for output in cell.outputs:
            texts = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
            assert not re.search(r"/(tmp|work|home|root|Users)/", "".join(map(str, texts)))


@pytest.mark.timeout(900)
def test_a_notebook_runs_and_keeps_its_promise(committed, executed):
    length, fresh = executed
    for before, after in zip(code_cells(committed[1]), code_cells(fresh), strict=True):
        assert kinds(before) == kinds(after), f"the committed output is of another cell:\n{after.source}"
        assert pictures(before) == pictures(after)
    text = "\n".join(printed(cell) for cell in code_cells(fresh))
    for pattern, least in ACCURACIES[committed[0].stem].items():
        (accuracy,) = re.findall(pattern, text, re.MULTILINE)
        assert float(accuracy) > (least if length == "all epochs" else 0.2)
