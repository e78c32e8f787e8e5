"""Whole recipes: what a run leaves, what a second one reuses, and what `recipe.yaml` gives when it is run again."""

import json
import shutil

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from helpers import CLOSE

import tfcompress as tfc
from tfcompress.errors import RecipeError
from tfcompress.pipeline import execute

FULL = """
seed: 3
data: {name: digits, limit_train: 256, batch_size: 32, augment: {shift: 1}}
train: {learning_rate: 1.0e-2}
teacher: {model: mlp, train: {epochs: 2}}
student: {model: cnn, widths: [4, 6]}
stages:
  - distill: {train: {epochs: 2}}
  - prune: {schedule: {polynomial_decay: {final_sparsity: 0.5}}, teach: {weight: 0.5}, train: {epochs: 2}}
  - quantize: {teach: {kind: logit_matching}, train: {epochs: 2, learning_rate: 1.0e-3}}
export: [tflite]
"""
STAGES = ["00-teacher", "01-distill", "02-prune", "03-quantize"]
ROWS = ["teacher", "01-distill", "02-prune", "03-quantize", "export-int8"]
MEASURED = {"latency_ms_median", "latency_ms_p90", "seconds"}

SMALL = """
data: {name: digits, limit_train: 64}
train: {epochs: 1}
teacher: {model: mlp, widths: [16]}
stages:
  - distill
  - prune: {schedule: {constant_sparsity: {target_sparsity: 0.5}}, include: [hidden1]}
"""


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    out = tmp_path_factory.mktemp("full")
    return tfc.run(tfc.parse_recipe(FULL), out, progress=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("small")
    tfc.run(tfc.parse_recipe(SMALL), out, progress=False)
    return out


@pytest.fixture
def small_copy(small, tmp_path):
    return shutil.copytree(small, tmp_path / "run")


@pytest.fixture
def no_training(monkeypatch):
    def fit(*args, **kwargs):
        raise AssertionError("something was trained")

    monkeypatch.setattr(execute, "fit", fit)


def stage_model(out, name):
    return keras.saving.load_model(out / "stages" / name / "model.keras", compile=False)


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


def finished(out):
    """When each stage of a run was finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("stages/*/stage.json")}


def digits_test():
    return next(tfc.load_dataset("digits").batches("test", 1000).as_numpy_iterator())


def integers(path):
    """The int8 constants of a file by their shape, and an interpreter that computes without any delegate."""
    interpreter = Interpreter(
        str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES, num_threads=1
    )
    interpreter.allocate_tensors()
    found = {}
    for details in interpreter.get_tensor_details():
        if details["dtype"] == np.int8 and details["shape"].size in (2, 4):
            found.setdefault(tuple(details["shape"]), details["index"])
    return {shape: lambda index=index: interpreter.get_tensor(index) for shape, index in found.items()}, interpreter


def test_a_run_leaves_what_the_design_names(full):
    out = full.out
    assert sorted(path.name for path in (out / "stages").iterdir()) == STAGES
    for name in STAGES:
        assert sorted(path.name for path in (out / "stages" / name).iterdir()) == ["key", "model.keras", "stage.json"]
    assert full.exports == {"int8": out / "export" / "model_int8.tflite"}
    written = metrics(out)
    assert set(written) == {"recipe", "rows", "export", "histories", "sparsity", "layers", "environment"}
    assert [row["stage"] for row in written["rows"]] == ROWS == [row.stage for row in full.rows]
    for row in written["rows"]:
        assert row["file_bytes"] > row["gzip_bytes"] > 0 and 0 < row["latency_ms_median"] <= row["latency_ms_p90"]
        assert row["macs"] > 0 and row["num_params"] >= row["num_nonzero"] > 0 and row["seconds"] > 0
    assert written["rows"][-1]["file_bytes"] == full.exports["int8"].stat().st_size
    assert {"audit", "parity", "file_bytes", "gzip_bytes"} <= set(written["export"]["int8"])
    assert written["export"]["int8"]["path"] == "export/model_int8.tflite"
    assert {stage: len(history["loss"]) for stage, history in written["histories"].items()} == dict.fromkeys(
        ROWS[:4], 2
    )
    sizes = {stage: sum(layer["params"] for layer in of.values()) for stage, of in written["layers"].items()}
    assert sizes.pop("student") == sizes["01-distill"]
    assert sizes == {row["stage"]: row["num_params"] for row in written["rows"][:-1]}
    assert tfc.load_recipe(out / "recipe.yaml") == tfc.parse_recipe(FULL)


def test_accuracies_equal_an_independent_evaluation(full):
    x, y = digits_test()
    rows = {row["stage"]: row["accuracy"] for row in metrics(full.out)["rows"]}
    for name in STAGES:
        outputs = stage_model(full.out, name).predict(x, verbose=0)
        assert rows[name.removeprefix("00-")] == pytest.approx(np.mean(outputs.argmax(1) == y), abs=1e-9)
    _, interpreter = integers(full.exports["int8"])
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = source["quantization"]
    answers = []
    for sample in x:
        interpreter.set_tensor(
            source["index"], np.clip(np.round(sample[None] / scale) + zero, -128, 127).astype("int8")
        )
        interpreter.invoke()
        answers.append(interpreter.get_tensor(target["index"])[0].argmax())
    # This interpreter runs other kernels than the measured one: a tie may fall the other way.
    assert rows["export-int8"] == pytest.approx(np.mean(np.array(answers) == y), abs=3 / len(y))


def test_pruned_weights_are_zero_in_every_later_model_and_file(full):
    pruned, quantized = stage_model(full.out, "02-prune"), stage_model(full.out, "03-quantize")
    constants, _ = integers(full.exports["int8"])
    before, after = (model.get_layer("block2_conv").kernel.numpy() for model in (pruned, quantized))
    assert np.mean(before == 0) == np.mean(after == 0) == 0.5 and not np.array_equal(before, after)
    np.testing.assert_array_equal(after[before == 0], 0)
    stored = constants[tuple(np.roll(after.shape, 1))]().transpose(1, 2, 3, 0)
    np.testing.assert_array_equal(stored[before == 0], 0)
    # Folding BatchNormalization scales a channel as a whole, so only its sign can differ.
    expected = np.round(np.abs(after) / np.abs(after).max((0, 1, 2)) * 127)
    np.testing.assert_allclose(np.abs(stored.astype("float32")), expected, atol=1)
    sparsity = metrics(full.out)["sparsity"]
    assert sparsity["03-quantize"]["block2_conv"] == sparsity["02-prune"]["block2_conv"] == 0.5


def test_the_written_recipe_gives_the_same_in_another_folder(small, tmp_path):
    again = tfc.run(tfc.load_recipe(small / "recipe.yaml"), tmp_path / "again", progress=False)
    for name in ("00-teacher", "01-distill", "02-prune"):
        models = (stage_model(out, name) for out in (small, again.out))
        for first, second in zip(*(model.get_weights() for model in models), strict=True):
            np.testing.assert_allclose(second, first, **CLOSE)
    for first, second in zip(metrics(small)["rows"], again.rows, strict=True):
        same = first.keys() - MEASURED - {"gzip_bytes", "accuracy"}
        assert {key: first[key] for key in same} == {key: second.to_dict()[key] for key in same}
        assert second.accuracy == pytest.approx(first["accuracy"], abs=1 / 359 + 1e-9)


def test_a_rerun_trains_nothing(full, no_training):
    before, rows = finished(full.out), metrics(full.out)["rows"]
    again = tfc.run(tfc.load_recipe(full.out / "recipe.yaml"), full.out, progress=False)
    assert finished(full.out) == before
    assert metrics(full.out)["rows"][:-1] == rows[:-1]
    assert again.exports == full.exports
    for first, second in zip(full.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(second, first)


def test_another_recipe_is_refused_without_overwrite(small_copy, no_training):
    before, written = finished(small_copy), (small_copy / "metrics.json").read_text()
    for change, message in [
        ("stages.prune.schedule.constant_sparsity.target_sparsity=0.6", "'.*02-prune' holds .* Pass --overwrite"),
        ("data.batch_size=32", "'.*00-teacher' holds"),
        ("stages=[distill]", "stages that this recipe does not have: 02-prune. Pass --overwrite"),
        ("stages=[distill, {quantize: {}}]", "does not have: 02-prune"),
    ]:
        with pytest.raises(RecipeError, match=message):
            tfc.run(tfc.parse_recipe(SMALL, [change]), small_copy, progress=False)
    assert finished(small_copy) == before and (small_copy / "metrics.json").read_text() == written


def test_overwrite_keeps_the_stages_before_the_change(small_copy):
    before = finished(small_copy)
    change = "stages.prune.schedule.constant_sparsity.target_sparsity=0.75"
    changed = tfc.run(tfc.parse_recipe(SMALL, [change]), small_copy, overwrite=True, progress=False)
    after = finished(small_copy)
    assert [name for name in before if before[name] != after[name]] == ["02-prune"]
    assert np.mean(changed.model.get_layer("hidden1").kernel.numpy() == 0) == 0.75
    shorter = tfc.run(tfc.parse_recipe(SMALL, ["stages=[distill]"]), small_copy, overwrite=True, progress=False)
    assert sorted(finished(small_copy)) == ["00-teacher", "01-distill"]
    assert [row.stage for row in shorter.rows] == ["teacher", "01-distill"]


def test_what_is_compressed_is_part_of_every_later_stage(small_copy):
    # The teacher is the student here, so another teacher makes every stage stale.
    before = finished(small_copy)
    tfc.run(tfc.parse_recipe(SMALL, ["teacher.widths=[24]"]), small_copy, overwrite=True, progress=False)
    assert all(time != before[name] for name, time in finished(small_copy).items())
    assert stage_model(small_copy, "02-prune").get_layer("hidden1").kernel.shape[1] == 24


def test_a_removal_that_was_interrupted_leaves_nothing_to_believe(small_copy):
    (small_copy / "stages" / "02-prune" / "key").unlink()
    before = finished(small_copy)
    tfc.run(tfc.parse_recipe(SMALL), small_copy, progress=False)
    after = finished(small_copy)
    assert [name for name in before if before[name] != after[name]] == ["02-prune"]
