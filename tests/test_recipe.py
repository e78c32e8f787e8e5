import dataclasses
from typing import Any, Literal

import pytest

from tfcompress.errors import InvalidArgumentError, RecipeError
from tfcompress.recipe import (
    AugmentSpec,
    ExportSpec,
    Recipe,
    Source,
    build_technique,
    check_arguments,
    load_recipe,
    parse_recipe,
)
from tfcompress.recipe.writing import recipe_to_yaml
from tfcompress.teach_settings import FeatureKind, FeatureSettings, TeachSettings
from tfcompress.train_settings import TrainSettings

FULL = """\
# A comment on line 1
seed: 3
data: {name: digits, batch_size: 32, augment: {shift: 1}}
train:
  learning_rate: 1e-2
teacher:
  model: cnn
  width: 32
  train: {epochs: 20, optimizer: adamw}
student: {model: cnn, width: 8}
stages:
  - distill: {temperature: 2.0, train: {epochs: 4}}
  - prune:
      schedule: {polynomial_decay: {final_sparsity: 0.8}}
      teach: {weight: 0.5}
      train: {epochs: 2}
  - quantize
export:
  - tflite: {mode: int8, io: float32}
  - tflite: {mode: float32}
"""


def test_values_and_defaults_are_in_their_places():
    recipe = parse_recipe(FULL, name="full")
    assert (recipe.name, recipe.seed, recipe.data.batch_size, recipe.data.input_range) == ("full", 3, 32, (0.0, 1.0))
    assert recipe.data.augment == AugmentSpec(shift=1)
    assert recipe.teacher.arguments == {"width": 32}
    assert recipe.teacher.train == TrainSettings(epochs=20, optimizer="adamw", learning_rate=0.01)
    assert recipe.student.train is None
    assert [stage.technique for stage in recipe.stages] == ["distill", "prune", "quantize"]
    assert recipe.stages[0].train == TrainSettings(epochs=4, learning_rate=0.01)
    assert recipe.stages[1].teach == TeachSettings(weight=0.5)
    assert recipe.stages[1].arguments == {"schedule": {"polynomial_decay": {"final_sparsity": 0.8}}}
    assert recipe.stages[2].train is None
    assert recipe.export == (ExportSpec(io="float32"), ExportSpec(mode="float32"))


def test_default_epochs_train_the_teacher_and_every_stage_that_does_not_refuse():
    text = (
        "train: {epochs: 7}\nteacher: {model: cnn}\nstudent: {model: cnn}\nstages: [prune, {quantize: {train: null}}]"
    )
    recipe = parse_recipe(text)
    assert recipe.teacher.train == recipe.stages[0].train == TrainSettings(epochs=7)
    assert recipe.student.train is None
    assert recipe.stages[1].train is None


@pytest.mark.parametrize("text", [FULL, "", "stages: [{quantize: {train: null}}]\ntrain: {epochs: 2}", "name: x.y-1"])
def test_written_recipe_reads_back_equal(text):
    recipe = parse_recipe(text)
    again = parse_recipe(recipe.to_yaml())
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()


def test_the_written_recipe_does_not_depend_on_later_defaults():
    written = parse_recipe("stages: [{prune: {train: {epochs: 2}}}]").to_yaml()
    assert set(dataclasses.asdict(TrainSettings(epochs=1))) <= set(written.replace(":", " ").replace("{", " ").split())


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("stages.1.prune.train.epochs=9", lambda recipe: recipe.stages[1].train.epochs),
        ("stages.1.train.epochs=9", lambda recipe: recipe.stages[1].train.epochs),
        ("stages.prune.train.epochs=9", lambda recipe: recipe.stages[1].train.epochs),
        ("stages.quantize.train.epochs=9", lambda recipe: getattr(recipe.stages[2].train, "epochs", None)),
        ("stages.prune.schedule.polynomial_decay.final_sparsity=9", lambda recipe: _decay(recipe)["final_sparsity"]),
        ("data.limit_train=9", lambda recipe: recipe.data.limit_train),
        ("teacher.width=9", lambda recipe: recipe.teacher.arguments["width"]),
        ("export.1.io=float32", lambda recipe: {"float32": 9}.get(recipe.export[1].io)),
        ("train.learning_rate=9", lambda recipe: recipe.stages[0].train.learning_rate),
    ],
)
def test_override(override, read):
    assert read(parse_recipe(FULL)) != 9
    assert read(parse_recipe(FULL, [override])) == 9


def _decay(recipe: Recipe) -> dict[str, Any]:
    return recipe.stages[1].arguments["schedule"]["polynomial_decay"]


def test_override_values_are_yaml_and_the_last_one_holds():
    overrides = ["data.input_range=[0, 255]", "data.augment=null", "data.data_dir=../a b", "seed=1", "seed=2"]
    recipe = parse_recipe(FULL, overrides)
    assert recipe.data.input_range == (0.0, 255.0)
    assert (recipe.data.augment, recipe.data.data_dir, recipe.seed) == (None, "../a b", 2)
    assert parse_recipe(FULL, ["stages=[]"]).stages == ()
    assert parse_recipe(FULL, ["stages.2={prune: {train: {epochs: 1}}}"]).stages[2].technique == "prune"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "seed: 3",
            "sead: 3",
            r"r\.yaml:2: `sead` is not a key; did you mean `seed`\? Allowed: name, seed, data, train",
        ),
        ("seed: 3", "seed: '3'", r"r\.yaml:2: `seed` must be an integer\. Received: '3'"),
        ("seed: 3", "seed: true", r"r\.yaml:2: `seed` must be an integer\. Received: True"),
        ("seed: 3", "seed: -1", r"r\.yaml:2: `seed` must be in \[0, 2147483647\]\. Received: -1"),
        ("seed: 3", "seed: 3\nseed: 4", r"r\.yaml:3: `seed` appears twice, first on line 2"),
        ("seed: 3", "seed: [", r"r\.yaml:\d+: the recipe is not valid YAML"),
        ("batch_size: 32", "batch_size: 0", r"r\.yaml:3: `data\.batch_size` must be at least 1\. Received: 0"),
        ("{shift: 1}", "{shift: -1}", r"r\.yaml:3: `data\.augment\.shift` must be at least 0 pixels\. Received: -1"),
        (
            "learning_rate: 1e-2",
            "learning_rate: x",
            r"r\.yaml:5: `train\.learning_rate` must be a number\. Received: 'x'",
        ),
        ("  width: 32", "  file: t.keras", r"r\.yaml:6: `teacher` must be either `model: <family>` or `file: <path>`"),
        (
            "adamw",
            "adamm",
            r"r\.yaml:9: `teacher\.train\.optimizer` must be one of adam, adamw, sgd\. Received: 'adamm'",
        ),
        (
            "train: {epochs: 4}",
            "train: {}",
            r"r\.yaml:12: `stages\.0\.distill\.train\.epochs` is missing; .* an integer",
        ),
        ("train: {epochs: 4}", "train: 4", r"r\.yaml:12: `stages\.0\.distill\.train` must be a mapping .* or null"),
        (
            "- distill",
            "- destill",
            r"r\.yaml:12: `stages\.0` must be one of .*distill, .*prune, .*did you mean 'distill'\?",
        ),
        (
            "weight: 0.5",
            "weight: 1.5",
            r"r\.yaml:15: `stages\.1\.prune\.teach\.weight` must be in \[0, 1\]\. Received: 1\.5",
        ),
        ("{mode: int8,", "{mode: int9,", r"r\.yaml:19: `export\.0\.tflite\.mode` must be one of float32, .*int4"),
        ("- tflite: {mode: int8,", "- onnx: {mode: int8,", r"r\.yaml:19: `export\.0` must be one of tflite"),
        ("{mode: float32}", "{mode: int8}", r"r\.yaml:18: `export` must be a list with each format and mode once"),
        ("stages:", "stages: 5\nstage:", r"r\.yaml:11: `stages` must be a list\. Received: 5"),
    ],
)
def test_errors_name_line_path_and_what_is_allowed(old, new, message):
    assert old in FULL
    with pytest.raises(RecipeError, match=message):
        parse_recipe(FULL.replace(old, new, 1), source_name="r.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", r"--set seed: an override must be key\.path=value"),
        ("a..b=1", r"an override must be key\.path=value"),
        ("seed=[", r"--set seed=\[: the value is not valid YAML"),
        ("seed.x=1", r"--set seed\.x=1: `seed` is 3, which has no key `x`"),
        (
            "stages.cluster.train.epochs=1",
            r"`stages` must be followed by one of: 0 \(distill\), 1 \(prune\), 2 \(quanti",
        ),
        ("stages.9.train.epochs=1", r"must be followed by one of: 0 \(distill\).* Received: '9'"),
        ("export.tflite.mode=int8", r"`export` has `tflite` 2 times; name it by its index, one of \[0, 1\]"),
        (
            "stages.prune.train.epochs=0",
            r"--set stages.prune.train.epochs=0: `stages\.1\.prune\.train\.epochs` must be a whole",
        ),
        ("data.nmae=x", r"--set data\.nmae=x: `data\.nmae` is not a key; did you mean `name`\?"),
    ],
)
def test_override_errors(override, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(FULL, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", r"recipe: a recipe must be a mapping of keys to values\. Received: \[1\]"),
        ("[a]: 1", r"recipe:1: a key must be a plain word"),
        ("a: &x {b: *x}", r"`a.b` contains itself through a YAML alias"),
        ("data: !!python/object:os.system {}", r"recipe:1: `data` has the tag .*; a recipe has plain values only"),
        ("seed: !!python/name:os.x 1", r"recipe:1: the recipe is not valid YAML"),
        ("data: {name: folder}", r"`data\.folder` must be set where `name: folder`"),
        ("data: {name: mnist, folder: x}", r"`data\.folder` must be left out unless `name: folder`"),
        ("data: {input_range: [1, 0]}", r"`data\.input_range` must be two numbers, the lower one first"),
        ("data: {input_range: [0]}", r"`data\.input_range` must be a list of 2 values\. Received: \[0\]"),
        ("student: {file: x.keras, width: 3}", r"`student\.width` must be left out for `file: <path>`"),
        (
            "student: {model: cnn, input_range: [0, 1]}",
            r"`student\.input_range` must be left out unless `file: <path>`",
        ),
        (
            "stages: [{prune: {teach: {}}}]",
            r"`stages\.0\.prune\.teach` must be left out where the stage does not train",
        ),
        ("stages: [{prune: {}, quantize: {}}]", r"`stages\.0` must be one of .*distill, .*prune, .*quantize"),
        ("name: a/b", r"`name` must be a file name"),
        ("train: {epoch: 3}", r"`train\.epoch` is not a key; did you mean `epochs`\?"),
        ("train: 3", r"`train` must be a mapping"),
        ("train: {learning_rate: .nan, epochs: 1}", r"`train\.learning_rate` must be a finite number above 0"),
    ],
)
def test_more_errors(text, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(text)


def test_anchors_and_merge_keys():
    text = (
        "teacher: {model: cnn, train: &t {epochs: 3, learning_rate: 0.5}}\n"
        "stages:\n- prune: {train: {<<: *t, epochs: 4}}\n"
    )
    assert parse_recipe(text).stages[0].train == TrainSettings(epochs=4, learning_rate=0.5)


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "0.001", "1E-3", ".001"])
def test_numbers_with_exponents_are_numbers(written):
    assert parse_recipe(f"train: {{learning_rate: {written}, epochs: 1}}").train["learning_rate"] == 0.001


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("student: {model: cnn}", r"`data\.name` is missing"),
        ("data: {name: digits}", r"`student` is missing"),
        (
            "data: {name: digits}\nstudent: {model: cnn}\nstages:\n  - distill: {train: {epochs: 1}}",
            r"recipe:4: `stages\.0\.distill` learns from a teacher",
        ),
    ],
)
def test_a_run_needs_a_complete_recipe(text, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(text).require_complete()


def test_file_gives_name_and_place(tmp_path):
    path = tmp_path / "my recipe.yaml"
    path.write_text("seed: 1\ndata: {}\nstuden: {}\n")
    with pytest.raises(RecipeError, match=r"my recipe\.yaml:3: `studen` is not a key; did you mean `student`\?"):
        load_recipe(path)
    path.write_text("seed: 1\n")
    assert load_recipe(path).name == "my-recipe"
    with pytest.raises(RecipeError, match=r"Cannot read the recipe '.*gone\.yaml': No such file"):
        load_recipe(tmp_path / "gone.yaml")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(path)


@dataclasses.dataclass(frozen=True)
class Round:
    bits: int = 8

    def __post_init__(self):
        if self.bits < 1:
            raise InvalidArgumentError("Round.bits", "at least 1", self.bits)


@dataclasses.dataclass(frozen=True)
class Everything:
    count: int
    share: float = 0.5
    mode: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    pair: tuple[int, float] = (0, 0.0)
    table: dict[str, int] = dataclasses.field(default_factory=dict)
    either: int | str | None = None
    inner: Round | None = None
    rounding: Any = dataclasses.field(default=None, metadata={"choices": {"nearest": Round}})


def test_check_arguments_builds_every_type():
    given = {
        "count": 1,
        "share": 1,
        "mode": "b",
        "names": ["x", "y"],
        "pair": [1, 2],
        "table": {"k": 1},
        "either": "s",
        "inner": {"bits": 4},
        "rounding": {"nearest": {"bits": 2}},
    }
    built = check_arguments(Everything, given)
    assert built == Everything(1, 1.0, "b", ("x", "y"), (1, 2.0), {"k": 1}, "s", Round(4), Round(2))
    assert type(built.share) is float
    assert check_arguments(Everything, {"count": 1, "rounding": "nearest"}).rounding == Round()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"`stages\.0\.x\.count` is missing; it must be an integer"),
        ({"count": 1.0}, r"`stages\.0\.x\.count` must be an integer\. Received: 1\.0"),
        ({"count": 1, "names": "x"}, r"`stages\.0\.x\.names` must be a list\. Received: 'x'"),
        ({"count": 1, "names": [1]}, r"`stages\.0\.x\.names\.0` must be a string\. Received: 1"),
        ({"count": 1, "either": 1.5}, r"`stages\.0\.x\.either` must be an integer or a string or null"),
        ({"count": 1, "table": {"k": "v"}}, r"`stages\.0\.x\.table\.k` must be an integer"),
        ({"count": 1, "inner": {"bits": 0}}, r"`stages\.0\.x\.inner\.bits` must be at least 1\. Received: 0"),
        ({"count": 1, "inner": 3}, r"`stages\.0\.x\.inner` must be a mapping of keys to values or null"),
        (
            {"count": 1, "rounding": {"nearset": {}}},
            r"`stages\.0\.x\.rounding` must be one of nearest, .*; did you mean 'nearest'\?",
        ),
        ([], r"`stages\.0\.x` must be a mapping"),
    ],
)
def test_check_arguments_errors(given, message):
    source = Source("r.yaml", None, {("stages", 0): "r.yaml:7"})
    with pytest.raises(RecipeError, match=r"r\.yaml:7: " + message):
        check_arguments(Everything, given, ("stages", 0, "x"), source)


def test_check_arguments_of_a_function():
    def family(input_shape, num_classes: int, *, width: int = 8, strides: tuple[int, ...] = ()):
        raise NotImplementedError

    given = {"input_shape": (8, 8, 1), "num_classes": 10}
    assert check_arguments(family, {"strides": [1, 2]}, given=given) == {**given, "strides": (1, 2)}
    with pytest.raises(
        RecipeError, match=r"`student\.widht` is not a key; did you mean `width`\? Allowed: width, strides"
    ):
        check_arguments(family, {"widht": 1}, ("student",), given=given)
    with pytest.raises(RecipeError, match=r"`student\.num_classes` is not a key"):
        check_arguments(family, {"num_classes": 2}, ("student",), given=given)


def test_technique_arguments_are_checked_with_their_line():
    text = "stages:\n  - quantize:\n      weight_bits: 4\n      weigth_bits: 8\n"
    with pytest.raises(
        RecipeError, match=r"r\.yaml:4: `stages\.0\.quantize\.weigth_bits` is not a key; did you mean `wei"
    ):
        build_technique(parse_recipe(text, source_name="r.yaml"), 0)
    with pytest.raises(RecipeError, match=r"r\.yaml:3: `stages\.0\.quantize\.weight_bits` must be .* Received: 3"):
        build_technique(parse_recipe("stages:\n  - quantize:\n      weight_bits: 3\n", source_name="r.yaml"), 0)
    assert build_technique(parse_recipe("stages: [{quantize: {weight_bits: 4}}]"), 0).weight_bits == 4


def test_losses_of_teach_are_those_of_distill():
    from typing import get_args, get_type_hints

    from tfcompress.techniques.distill.by_name import FEATURE_LOSSES, LOSSES

    assert set(get_args(get_type_hints(TeachSettings)["kind"])) == set(LOSSES)
    assert set(get_args(FeatureKind)) == set(FEATURE_LOSSES)


def test_features_of_a_recipe():
    text = """\
teacher: {model: cnn, train: {epochs: 1}}
stages:
  - distill:
      features: [{kind: hints, teacher_layer: body/conv, student_layer: conv, weight: 2}]
      mixup: 0.2
  - quantize:
      teach: {features: [{kind: solution_flow, teacher_layer: [a, b], student_layer: [c, d]}]}
      train: {epochs: 1}
"""
    recipe = parse_recipe(text)
    distill = build_technique(recipe, 0)
    hints = FeatureSettings(kind="hints", teacher_layer="body/conv", student_layer="conv", weight=2.0)
    assert distill.features == (hints,) and distill.mixup == 0.2
    flow = FeatureSettings(kind="solution_flow", teacher_layer=("a", "b"), student_layer=("c", "d"))
    assert recipe.stages[1].teach == TeachSettings(features=(flow,))
    assert parse_recipe(recipe_to_yaml(recipe)).stages == recipe.stages
    for bad, message in (("hunts", r"stages.0.distill.features.0.kind` must be"), ("3", "kind` must be")):
        with pytest.raises(RecipeError, match=message):
            build_technique(parse_recipe(text.replace("hints", bad)), 0)
    with pytest.raises(RecipeError, match="cutmix` must be null beside `mixup`"):
        build_technique(parse_recipe(text.replace("mixup: 0.2", "mixup: 0.2\n      cutmix: 1.0")), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, r"`TrainSettings.epochs` must be a whole number of at least 1. Received: 0"),
        ({"epochs": "3"}, r"`TrainSettings.epochs` must be a whole number of at least 1. Received: '3'"),
        ({"optimizer": "lion"}, r"`TrainSettings.optimizer` must be one of 'adam', 'adamw', 'sgd'"),
        ({"learning_rate": float("inf")}, r"`TrainSettings.learning_rate` must be a finite number above 0"),
        ({"momentum": 1.0}, r"`TrainSettings.momentum` must be a number in \[0, 1\)"),
        ({"early_stopping": 0}, r"`TrainSettings.early_stopping` must be a whole number of at least 1"),
        ({"precision": "float16"}, r"`TrainSettings.precision` must be one of 'float32', 'mixed_float16'"),
    ],
)
def test_train_settings_refuse(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        TrainSettings(**{"epochs": 1, **arguments})
