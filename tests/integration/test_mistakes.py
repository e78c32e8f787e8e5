"""Mistakes in a recipe, seen from the command line: one message that names the key, and nothing trained before it."""

import keras
import numpy as np
import pytest
from helpers import tiny_mlp
from keras import layers

import tfcompress as tfc
from tfcompress.cli import run_command
from tfcompress.pipeline import execute

PRUNE = "{prune: {schedule: {constant_sparsity: {target_sparsity: 0.5}}}}"
SLOW_SCHEDULE = "{polynomial_decay: {final_sparsity: 0.5, frequency: 1000}}"
COMPLETE = f"""
data: {{name: digits, limit_train: 64}}
train: {{epochs: 1}}
teacher: {{model: mlp}}
student: {{model: mlp, widths: [16, 16]}}
stages: [distill, {PRUNE}, quantize]
"""


def head(classes):
    inputs = keras.Input((8, 8, 1), name="image")
    return keras.Model(inputs, layers.Dense(classes, name="classes")(layers.Flatten(name="flat")(inputs)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Model files of all kinds, in the working folder of the commands."""
    folder = tmp_path_factory.mktemp("models")
    head(10).save(folder / "ten.keras")
    head(4).save(folder / "four.keras")
    tiny_mlp(classes=10).save(folder / "flat.keras")
    inputs = keras.Input((8, 8, 1), name="image")
    mish = layers.Dense(10, name="classes")(layers.Flatten()(layers.Conv2D(2, 3, activation="mish", name="g")(inputs)))
    keras.Model(inputs, mish, name="mish").save(folder / "mish.keras")
    (folder / "broken.keras").write_text("not a model")
    tfc.export_tflite(head(10), folder / "ten.tflite", mode="float32", parity_samples=0)
    return folder


@pytest.fixture
def fails(folder, tmp_path, monkeypatch, capsys):
    """Runs a recipe that must fail before it trains, and gives its message."""

    def fit(*args, **kwargs):
        raise AssertionError("something was trained")

    monkeypatch.setattr(execute, "fit", fit)
    monkeypatch.chdir(folder)

    def run(text, *changes):
        (tmp_path / "recipe.yaml").write_text(text)
        flags = [part for change in changes for part in ("--set", change)]
        code = run_command(["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out"), *flags])
        shown = capsys.readouterr()
        assert code == 1 and shown.out == "" and "Traceback" not in shown.err
        assert not list(tmp_path.glob("out/**/*.keras")) and not (tmp_path / "out" / "metrics.json").exists()
        return shown.err

    return run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["teacher=null"], "`stages.0.distill` learns from a teacher"),
        (["teacher=null", f"stages=[{PRUNE}]", "stages.0.teach={}"], "`stages.0.prune` learns from a teacher"),
        (["teacher={file: ten.tflite}", "student=null"], "`student` is missing; a .tflite teacher can teach, but"),
        (["teacher={file: gone.keras}"], "`teacher.file` cannot be read. No teacher file at 'gone.keras'"),
        (["teacher={file: broken.keras}"], "`teacher.file` cannot be read. No model can be read from 'broken.keras'"),
        (["teacher={file: ten.keras, train: {epochs: 1}}"], "`teacher.train` must be left out"),
        (["teacher={file: four.keras}"], "`teacher.file` must be a model from one input (None, 8, 8, 1) to one output "
         "(None, 10), as the data has them. Received: a model from [(None, 8, 8, 1)] to [(None, 4)]"),
        (["teacher={file: flat.keras}"], "Received: a model from [(None, 8)] to [(None, 10)]"),
        (["teacher.model=mpl"], "`teacher.model` must be one of mlp,"),
        (["teacher.widht=3"], "`teacher.widht` is not a key; did you mean `width`?"),
        (["teacher.widths=[0]"], "`teacher.widths` does not describe a model: `mlp.widths`"),
        (["train={}", "teacher.train=null"], "`teacher.train` is missing"),
        (["student={file: gone.keras}"], "`student.file` cannot be read. No model file at 'gone.keras'"),
        (["student={file: ten.tflite}"], "`student.file` must be a Keras model file. Received: 'ten.tflite'"),
        (["student={file: four.keras}"], "`student.file` must be a model from one input"),
        (["student={file: ten.keras, input_range: [0, 255]}"], "`student.input_range` must be left out"),
        (["student={file: mish.keras}", "stages=[quantize]"], "`stages.0.quantize` cannot be applied. Model 'mish'"),
        (["student.widths=wide"], "`student.widths` must be"),
        (["stages.distill.temperature=0"], "`stages.0.distill.temperature` must be"),
        (["stages.distill.temprature=2"], "`stages.0.distill.temprature` is not a key; did you mean `temperature`?"),
        (["stages.prune.schedule=linear"], "`stages.1.prune.schedule` must be a mapping"),
        ([f"stages.prune.schedule={SLOW_SCHEDULE}"], "`stages.1.prune` cannot be applied. The pruning schedule cannot "
         "reach its sparsity of 0.5 in the planned 1 steps"),
        (["stages.prune.include=[conv*]"], "`stages.1.prune` cannot be applied. `include` must be patterns of"),
        (["stages.quantize.weight_bits=3"], "`stages.2.quantize.weight_bits` must be 4 or 8, or patterns of names"),
        (["train={}", "teacher.train={epochs: 1}"], "`stages.0.distill.train` is missing"),
        (["data.name=null"], "`data.name` is missing"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_is_found_before_anything_is_trained(changes, message, fails):
    assert message in fails(COMPLETE, *changes)


def test_a_mistake_in_the_file_names_its_line(fails):
    assert "recipe.yaml:2: `data.batch_siz` is not a key" in fails("\ndata: {name: digits, batch_siz: 3}\n")


def test_a_loss_that_is_no_number_ends_the_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "recipe.yaml").write_text(COMPLETE)
    data = tfc.load_dataset("digits", limit_train=64)
    broken = tfc.from_arrays(
        np.where(np.arange(64 * 64).reshape(64, 8, 8, 1) == 7, 3e38, 1e38).astype("float32"),
        np.arange(64) % 10,
        validation=tuple(next(data.batches("validation", 64).as_numpy_iterator())),
        test=tuple(next(data.batches("test", 64).as_numpy_iterator())),
    )
    monkeypatch.setattr(execute, "load_data", lambda spec: broken)
    assert run_command(["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out"), "--noprogress"]) == 1
    assert "The training loss became nan in epoch 1. Lower `learning_rate`" in capsys.readouterr().err
    # What was trained before the error is not believed later.
    assert not list(tmp_path.glob("out/stages/*/stage.json"))
