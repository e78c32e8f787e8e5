"""The zoo's tables are complete; its runner survives what cells do; its table says what became of them."""

import dataclasses
import html.parser
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import zoo_fakes
from helpers import tiny_mlp
from zoo import command, models, table
from zoo.case import Case
from zoo.checks import Wrong, same_outputs, still_works, technique, unchanged
from zoo.columns import COLUMNS
from zoo.run import Limits, Tables, run_matrix
from zoo.store import Result, Store, cell_key, code_key

from tfcompress.export.modes import MODES
from tfcompress.recipe import EXPORT_FORMATS, TECHNIQUES

FAKES = Tables(models="zoo_fakes", columns="zoo_fakes")
LIMITS = Limits(memory_gb=0.4, timeout=3.0)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """All fake cells, run once: two models at a time."""
    found = {}
    cells = {model: list(zoo_fakes.COLUMNS) for model in zoo_fakes.MODELS}
    on_result = lambda result: found.update({(result.model, result.column): result})  # noqa: E731
    run_matrix(cells, on_result, tables=FAKES, limits=LIMITS, jobs=2)
    return found


def test_results_go_on_in_another_folder(tmp_path):
    one, other = Store(tmp_path / "one"), Store(tmp_path / "other")
    known = [Result("a", "load", "pass", "fine", seconds=2.5, key="k"), Result("b", "load", "FAIL", "no", details="at")]
    for result in known:
        one.save(result)
    one.save_environment({"cpu": "fast"})
    one.save_all(tmp_path / "coverage.json")
    newer = Result("a", "load", "stated", "cannot")
    other.save(newer)
    other.fill(tmp_path / "missing.json")
    other.fill(tmp_path / "coverage.json")
    assert [other.load("a", "load"), other.load("b", "load")] == [newer, known[1]]
    assert other.load_environment() == {"cpu": "fast"}


def test_every_application_of_keras_is_in_the_table():
    public = {name for name in dir(keras.applications) if isinstance(getattr(keras.applications, name), type(tiny_mlp))}
    assert public and public == set(models.APPLICATIONS) | set(models.LARGE)


def test_every_family_has_a_member_that_runs_by_default():
    # VGG19 is a larger VGG, though a module of its own; `resnet50` is an old name.
    one = {"vgg19": "vgg16", "resnet50": "resnet", "imagenet_utils": None}
    modules = {module.__name__.rpartition(".")[2] for module in _modules(keras.applications)}
    families = {one.get(name, name) for name in modules} - {None}
    covered = {getattr(keras.applications, name).__module__.rpartition(".")[2] for name in models.APPLICATIONS}
    assert len(families) >= 14 and families == covered


def _modules(package):
    return [value for value in vars(package).values() if isinstance(value, type(keras))]


def test_every_technique_and_every_export_mode_has_a_column():
    assert {column.technique for column in COLUMNS.values()} - {None} == set(TECHNIQUES)
    assert {column.export_mode for column in COLUMNS.values()} - {None} == set(MODES)
    assert EXPORT_FORMATS == ("tflite",), "a new format needs columns of its own"


@pytest.mark.parametrize("name", COLUMNS)
def test_every_column_has_its_check(name):
    assert callable(COLUMNS[name].load())


@pytest.mark.parametrize("name", models.OURS)
def test_our_models_build_the_same_each_time_and_depend_on_their_inputs(name, tmp_path):
    first, again = (Case(name, models.OURS[name], tmp_path) for _ in range(2))
    assert same_outputs(first, again.model, tolerance=0.0) == 0.0
    with pytest.raises(Wrong, match="max relative difference"):
        same_outputs(first, first.build(seed=1))


def test_the_tables_need_no_tensorflow():
    code = "import sys; from zoo import command; print(any(m in sys.modules for m in ('tensorflow', 'keras')))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize("model", zoo_fakes.MODELS)
@pytest.mark.parametrize(
    ("column", "status", "text"),
    [
        ("passes", "pass", r"^size [12]$"),
        ("refuses", "stated", r"^ModelError: Layer 'x' of [12] \| cannot\. - remedy: \*another\* layer$"),
        ("fails", "FAIL", r"^KeyError: 'lost'$"),
        ("crashes", "FAIL", r"^crashed: SIGABRT$"),
        ("eats", "FAIL", r"^out of memory: 0\.\d\d GB, where 0\.4 GB are allowed$"),
        ("child_eats", "FAIL", r"^out of memory: 0\.\d\d GB, where 0\.4 GB are allowed$"),
        ("sleeps", "FAIL", r"^timed out after 3 s$"),
        ("passes_too", "pass", r"^size [12]$"),
        ("missing", "FAIL", r"^AttributeError: .*nothing_of_that_name"),
    ],
)
def test_whatever_a_cell_does_is_its_result(results, model, column, status, text):
    result = results[model, column]
    assert result.status == status
    assert re.search(text, result.text)


def test_a_failure_brings_what_its_process_said(results):
    assert "last words" in results["small", "crashes"].details
    assert 'raise KeyError("lost")' in results["small", "fails"].details
    assert 3.0 <= results["small", "sleeps"].seconds < 10.0
    assert results["small", "eats"].peak_gb > 0.4


def test_a_worker_that_cannot_start_fails_each_cell(tmp_path):
    found = []
    run_matrix({"small": ["passes", "fails"]}, found.append, tables=Tables(columns="zoo_no_such_module"))
    assert [(result.column, result.status) for result in found] == [("passes", "FAIL"), ("fails", "FAIL")]
    assert "before the cell began" in found[0].text and "zoo_no_such_module" in found[0].details


def test_only_what_is_missing_failed_or_of_other_code_runs_again(results, tmp_path):
    store = Store(tmp_path)
    entries, columns = zoo_fakes.MODELS, zoo_fakes.COLUMNS
    keys = {(m, c): cell_key("code", entry, column) for m, entry in entries.items() for c, column in columns.items()}
    for pair, result in results.items():
        if pair != ("large", "refuses"):
            store.save(dataclasses.replace(result, key=keys[pair]))
    failed = ["fails", "crashes", "eats", "child_eats", "sleeps", "missing"]
    assert command.plan(store, entries, columns, keys) == {"small": failed, "large": ["refuses", *failed]}
    # Another column of the same name, other code, and `--keep` and `--fresh`.
    changed = {**keys, ("small", "passes"): "other"}
    assert command.plan(store, entries, columns, changed)["small"] == ["passes", *failed]
    assert command.plan(store, entries, columns, {})["small"] == failed
    assert command.plan(store, entries, columns, keys, fresh=True)["small"] == list(columns)


def test_a_key_follows_the_entry_and_the_column():
    entry, column = models.OURS["lstm"], COLUMNS["load"]
    keys = {
        cell_key("code", entry, column),
        cell_key("other", entry, column),
        cell_key("code", dataclasses.replace(entry, ranges=(0.0, 2.0)), column),
        cell_key("code", entry, dataclasses.replace(column, check="zoo.checks:prune")),
    }
    assert len(keys) == 4
    assert code_key() == code_key()


def test_the_command_runs_cells_once_and_writes_the_table(tmp_path, monkeypatch, capsys):
    ran = []

    def fake(cells, on_result, **options):
        for model, columns in cells.items():
            for column in columns:
                ran.append((model, column))
                on_result(Result(model, column, "pass", "fine", seconds=2.0))

    monkeypatch.setattr(command, "run_matrix", fake)
    columns = ["export_float32", "export_int8", "export_quantized"]
    arguments = ["--models", "lstm", "gru", "--columns", *columns, "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    expected = [(m, c) for m in ("lstm", "gru") for c in columns]
    assert ran == expected
    assert command.main(arguments) == 0 and ran == expected
    assert "0 of 6 cells to run" in capsys.readouterr().out
    assert "python tests/zoo --models lstm gru" in (tmp_path / "coverage.md").read_text()
    with pytest.raises(SystemExit, match="No model matches 'VGG99'"):
        command.main(["--models", "VGG99", "--out", str(tmp_path)])


def test_optional_groups_are_chosen_by_option_only():
    by_default = command.choose_models([], [])
    assert "VGG19" not in by_default and "hub-bert" not in by_default and "RegNetX002" in by_default
    assert set(command.choose_models([], models.OPTIONAL_GROUPS)) == set(models.MODELS)


def test_a_model_without_its_package_is_skipped_with_the_reason(tmp_path):
    entry = dataclasses.replace(models.HUB["hub-vit"], requires=("no-such-package", "no_such_package"))
    store = Store(tmp_path)
    assert command.plan(store, {"hub-vit": entry}, {"load": COLUMNS["load"]}, {}) == {}
    result = store.load("hub-vit", "load")
    assert result.status == "skipped" and "pip install no-such-package" in result.text


def test_the_table_says_what_became_of_each_cell(results, tmp_path):
    store = Store(tmp_path)
    entries, columns = zoo_fakes.MODELS, zoo_fakes.COLUMNS
    for (model, column), result in results.items():
        if (model, column) != ("large", "passes"):
            key = "old" if column == "passes_too" else cell_key("code", entries[model], columns[column])
            store.save(dataclasses.replace(result, key=key))
    store.save_environment({"keras": "3.99"})
    page = table.make(store, entries, columns, code="code", command="python tests/zoo --jobs 2")
    table.write(page, tmp_path)
    text = (tmp_path / "coverage.md").read_text()
    rows = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in text.splitlines() if "|" in line
    }
    assert rows["small"][1] == "✓ 0.1 s" and rows["large"][1] == "" and rows["small"][8] == "✓ 0.1 s\\*"
    number = re.fullmatch(r"○ \[(\d+)\] 0\.1 s", rows["small"][2])[1]
    assert f"{number}. ○ ModelError: Layer 'x' of 1 \\| cannot. - remedy: \\*another\\* layer (small refuses)" in text
    # One reason of both models stands once.
    assert text.count("crashed: SIGABRT") == 1 and "(small crashes, large crashes)" in text
    assert rows["pass"][1:3] == ["1", "0"] and rows["not run"][1] == "1" and "keras: 3.99" in text
    assert "2 cells, marked" in text and "python tests/zoo --jobs 2" in text

    page_html = (tmp_path / "coverage.html").read_text()
    checker = html.parser.HTMLParser()
    checker.feed(page_html)
    assert page_html.count('<td class="FAIL"') == 12 and "Layer &#39;x&#39; of 1 | cannot" in page_html
    assert "last words" in page_html and "http" not in page_html


def test_an_estimate_takes_earlier_seconds_and_those_of_its_column(tmp_path):
    store = Store(tmp_path)
    store.save(Result("a", "x", "FAIL", "", seconds=100.0))
    estimate = command.Estimate(store, {"a": ["x", "y"], "b": ["x", "y"]}, jobs=2)
    estimate.note(Result("b", "x", "pass", "", seconds=7.0))
    estimate.note(Result("b", "y", "pass", "", seconds=30.0))
    # Only model a is left, so that the second job has nothing to do.
    assert estimate.seconds == 100.0 + 30.0


def test_a_check_sees_a_changed_model_and_other_outputs(tmp_path):
    entry = models.Entry(builder="helpers:tiny_mlp", ranges=models.SIGNED)
    case = Case("mlp", entry, tmp_path)
    with pytest.raises(Wrong, match="must not be changed"), unchanged(case.model):
        case.model.layers[0].bias.assign_add(np.ones(16))
    fine = keras.models.clone_model(case.model)
    fine.set_weights(case.model.get_weights())
    assert same_outputs(case, fine) == 0.0 and still_works(case, fine) == "reloads"
    fine.layers[0].bias.assign(np.full(16, np.nan))
    with pytest.raises(Wrong, match="not finite"):
        still_works(case, fine)
    with pytest.raises(Wrong, match="no new Keras 3 model"):
        still_works(case, case.model)


def test_any_function_that_returns_a_model_can_be_a_column(tmp_path, monkeypatch):
    import tfcompress as tfc

    def halved(model, share):
        copy = keras.models.clone_model(model)
        copy.set_weights([weight * share for weight in model.get_weights()])
        return copy

    monkeypatch.setattr(tfc, "halved", halved, raising=False)
    case = Case("mlp", models.Entry(builder="helpers:tiny_mlp"), tmp_path)
    assert "484 of 484 parameters" in technique(case, "halved", share=0.5)
