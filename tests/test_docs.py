"""The pages in docs/ say what the code does: every key with its default, every block that is code, every link."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import yaml

import tfcompress as tfc
from tfcompress.export.audit import Audit, Constant
from tfcompress.export.parity import Agreement, Parity
from tfcompress.export.tflite import ExportResult
from tfcompress.measure.metrics import Metrics
from tfcompress.models import FAMILIES
from tfcompress.recipe import (
    TECHNIQUES,
    AssistantSpec,
    AugmentSpec,
    DataSpec,
    EnsembleSpec,
    ExportSpec,
    ModelSpec,
    StageSpec,
    build_technique,
    load_technique,
)
from tfcompress.report.results import Results
from tfcompress.teach_settings import FeatureSettings, TeachSettings
from tfcompress.techniques.schedules import SCHEDULES

ROOT = Path(__file__).resolve().parents[1]
DOCS = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
README = (ROOT / "README.md").read_text(encoding="utf-8")

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

RECIPE_TABLES = {
    "The recipe": tfc.Recipe,
    "data": DataSpec,
    "data.augment": AugmentSpec,
    "teacher and student": ModelSpec,
    "several teachers": EnsembleSpec,
    "train": tfc.TrainSettings,
    "assistants": AssistantSpec,
    "stages": StageSpec,
    "teach": TeachSettings,
    "features": FeatureSettings,
    "export": ExportSpec,
    **{name: load_technique(name) for name in TECHNIQUES},
}


def blocks(language, *, marked=None):
    """`(page and line, text)` of each block; `marked` picks those with, or without, `<!-- run -->` above them."""
    found = []
    for page, text in DOCS.items():
        for match in re.finditer(rf"(<!-- run -->\n)?```{language}\n(.*?)```", text, re.DOTALL):
            if marked is None or marked == bool(match[1]):
                line = text.count("\n", 0, match.start(2)) + 1
                found.append(pytest.param(match[2], id=f"{page}-{line}"))
    return found


def table(page, before):
    """The rows of the first table after the text `before`, as lists of cells."""
    _, found, rest = DOCS[page].partition(f"{before}\n")
    assert found, f"docs/{page}.md has no line {before!r}"
    lines = re.search(r"^\|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", rest, re.MULTILINE)[1].splitlines()
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def check_keys(rows, defaults):
    """Holds the keys and defaults of a table `| key | type | range | default | meaning |` against the code's."""
    stated = {row[0].strip("`"): row[3] for row in rows}
    assert set(stated) == set(defaults)
    for name, default in defaults.items():
        # A field that is no key of its own has no default, and one default is said in words.
        if stated[name] not in ("", "the file's name"):
            wanted = "*required*" if default is dataclasses.MISSING else default
            said = yaml.safe_load(stated[name].strip("`")) if stated[name].startswith("`") else stated[name]
            assert said == wanted, name


def field_default(field):
    """The default as YAML writes it."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if dataclasses.is_dataclass(value):
        return {}
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("heading", RECIPE_TABLES)
def test_every_key_of_a_recipe_is_there_with_its_default(heading):
    fields = [field for field in dataclasses.fields(RECIPE_TABLES[heading]) if field.name != "source"]
    hashes = "###" if heading in ("data.augment", "teach", "features", *TECHNIQUES) else "##"
    check_keys(table("recipes", f"\n{hashes} {heading}"), {field.name: field_default(field) for field in fields})


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_key_of_a_schedule_is_there_with_its_default(name):
    (line,) = re.findall(rf"^`{name}`, .*$", DOCS["recipes"], re.MULTILINE)
    parameters = list(inspect.signature(SCHEDULES[name]).parameters.values())[1:]  # without the steps
    empty = inspect.Parameter.empty
    check_keys(
        table("recipes", line), {p.name: dataclasses.MISSING if p.default is empty else p.default for p in parameters}
    )


def test_every_model_family_is_there_with_its_keys():
    rows = {row[0].strip("`"): row[1] for row in table("recipes", "### Model families")}
    assert list(rows) == list(FAMILIES)
    for name, keys in rows.items():
        stated = {
            key: value for pair in re.findall(r"`(\w+: [^`]+)`", keys) for key, value in yaml.safe_load(pair).items()
        }
        parameters = list(inspect.signature(FAMILIES[name]).parameters.values())[2:]  # without the data's shapes
        assert stated == {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in parameters}


@pytest.mark.parametrize("described", [Results, Metrics, ExportResult, Audit, Constant, Parity, Agreement])
def test_every_key_of_the_metrics_is_there(described):
    missing = [field.name for field in dataclasses.fields(described) if f"`{field.name}`" not in DOCS["results"]]
    assert missing == []


def test_every_key_of_the_environment_is_there():
    from tfcompress.measure import environment

    assert [name for name in environment.describe_environment() if f"`{name}`" not in DOCS["results"]] == []


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_yaml_block_is_a_recipe(text):
    recipe = tfc.parse_recipe(text)
    for index in range(len(recipe.stages)):
        build_technique(recipe, index)
    assert tfc.parse_recipe(recipe.to_yaml()) == recipe


def test_every_recipe_to_start_from_is_listed():
    listed = [row[0].strip("`") for row in table("recipes", "## Recipes to start from")]
    assert sorted(listed) == sorted(path.name for path in CONFIGS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_to_start_from_says_what_it_takes_and_gives(path):
    recipe = tfc.load_recipe(path)
    for index in range(len(recipe.stages)):
        build_technique(recipe, index)
    head = path.read_text(encoding="utf-8").partition("seed:")[0]
    assert f"# Command: tfcompress run configs/{path.name}\n" in head
    assert re.search(r"^# Time: +\S", head, re.MULTILINE) and re.search(r"^# Result: +\S", head, re.MULTILINE)


def test_every_technique_that_makes_a_network_smaller_has_a_recipe():
    used = {stage.technique for path in CONFIGS for stage in tfc.load_recipe(path).stages}
    own = {name for name in TECHNIQUES if not name.startswith("tfmot_")}  # docs/migration.md has those.
    assert own - used == {"quantize_post_training"}  # Its page has one.


@pytest.mark.parametrize("text", blocks("python"))
def test_a_python_block_is_python(text):
    compile(text, "block", "exec")


@pytest.mark.slow
@pytest.mark.parametrize("text", blocks("python", marked=True))
def test_a_marked_python_block_runs(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "block", "exec"), {"__name__": "__main__"})


def test_every_public_name_in_the_pages_is_one():
    for page, text in {**DOCS, "README": README}.items():
        for name in set(re.findall(r"\btfc\.(\w+)", text)):
            assert name in tfc.__all__, f"{page}.md: tfc.{name}"


def test_links_between_pages_lead_somewhere():
    for page, text in DOCS.items():
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            file, _, anchor = target.partition("#")
            assert not file or (ROOT / "docs" / file).is_file(), f"{page}.md: {target}"
            if file.endswith(".png"):
                continue
            other = page if not file else Path(file).stem
            assert other in DOCS, f"{page}.md: {target}"
            headings = re.findall(r"^#+ (.*)$", DOCS[other], re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert not anchor or anchor in anchors, f"{page}.md: {target}"


def test_an_unknown_key_reads_as_the_page_says(tmp_path):
    line = next(line for line in DOCS["recipes"].splitlines() if line.startswith("mine.yaml:4: "))
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nseed: 0\ndata: {name: digits}\nteacher: {model: cnn, widht: 3, train: {epochs: 1}}\n")
    with pytest.raises(tfc.RecipeError) as caught:
        tfc.run(tfc.load_recipe(file), tmp_path / "out", progress=False)
    assert str(caught.value).replace(str(file), "mine.yaml") == line
