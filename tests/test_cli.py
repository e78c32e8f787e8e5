import json
import subprocess
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import tiny_cnn
from keras import layers

import tfcompress as tfc
from tfcompress.cli import COMMANDS, run_command
from tfcompress.errors import TrainingError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def digits_file(tmp_path):
    """A model file for the digits, not trained."""
    inputs = keras.Input((8, 8, 1), name="image")
    outputs = layers.Dense(10, name="classes")(layers.Flatten(name="flat")(inputs))
    path = tmp_path / "model.keras"
    keras.Model(inputs, outputs).save(path)
    return path


def test_help_is_on_stdout_and_names_every_command(capsys):
    assert run_command(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert run_command([]) == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_names_its_flags(name, capsys):
    assert run_command([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: tfcompress {name}")
    assert all(f"--{flag}" in shown or f"--[no]{flag}" in shown for flag in COMMANDS[name].flags)
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["rnu"], 2, "there is no command 'rnu'. Did you mean 'run'?"),
        (["run"], 2, "run takes RECIPE. Received: nothing"),
        (["run", "a", "b"], 2, "run takes RECIPE. Received: a b"),
        (["run", "a", "--oot", "x"], 2, "Unknown command line flag 'oot'. Did you mean: out"),
        (["run", "gone.yaml"], 1, "Cannot read the recipe 'gone.yaml'"),
        (["inspect", "gone.tflite"], 1, "No model file at 'gone.tflite'"),
        (["inspect", "a.txt"], 1, "No model file at 'a.txt'"),
        (["export", "a.keras", "b.tflite", "--mode", "int3"], 2, "flag --mode=int3"),
        (["evaluate", "a.keras"], 2, "evaluate needs --data NAME"),
        (["sensitivity", "a.keras", "--out", "b"], 2, "sensitivity needs --data NAME"),
        (["sensitivity", "a.keras", "--data", "digits"], 2, "sensitivity needs --out DIR"),
        (["sensitivity", "a.keras", "--max_accuracy_drop", "2"], 2, "flag --max_accuracy_drop=2"),
        (["evaluate", "a.keras", "--data", "digits", "--input_range", "1"], 2, "--input_range must be LOW,HIGH"),
    ],
)
def test_wrong_use_and_errors(arguments, code, message, capsys):
    assert run_command(arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("tfcompress: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.fixture
def pipeline(monkeypatch):
    """Stands for `tfcompress.run`; notes its calls and raises what `fails` holds."""
    calls, fails = [], []

    def run(recipe, out, **options):
        calls.append((recipe, str(out), options))
        if fails:
            raise fails[0]
        return types.SimpleNamespace(out=out)

    monkeypatch.setitem(vars(tfc), "run", run)
    # What is shown afterwards has tests of its own.
    monkeypatch.setitem(vars(tfc), "write_report", lambda out: None)
    monkeypatch.setitem(vars(tfc), "print_table", lambda out: None)
    return calls, fails


def test_run_hands_over_the_recipe(tmp_path, pipeline):
    calls, _ = pipeline
    path = tmp_path / "small.yaml"
    path.write_text("stages: [{prune: {train: {epochs: 1}}}]\n")
    flags = ["--set", "stages.prune.train.epochs=3", "--overwrite", str(path), "--set=seed=5", "--noprogress"]
    assert run_command(["run", *flags]) == 0
    assert run_command(["run", str(path), "--out", "elsewhere"]) == 0
    recipe, out, options = calls[0]
    assert (recipe.seed, recipe.stages[0].train.epochs, out) == (5, 3, "runs/small")
    assert options == {"overwrite": True, "progress": False}
    # Flags of one call don't reach the next one.
    recipe, out, options = calls[1]
    assert (recipe.seed, recipe.stages[0].train.epochs, out) == (0, 1, "elsewhere")
    assert options == {"overwrite": False, "progress": True}


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (TrainingError("The loss is NaN."), 1, "tfcompress: The loss is NaN.\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "tfcompress: Permission denied: '/x'.\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes_of_a_run(error, code, message, tmp_path, pipeline, capsys):
    pipeline[1].append(error)
    (tmp_path / "r.yaml").write_text("{}")
    assert run_command(["run", str(tmp_path / "r.yaml")]) == code
    assert message in capsys.readouterr().err


def test_errors_of_our_own_are_not_hidden(tmp_path, pipeline):
    pipeline[1].append(ZeroDivisionError())
    (tmp_path / "r.yaml").write_text("{}")
    with pytest.raises(ZeroDivisionError):
        run_command(["run", str(tmp_path / "r.yaml")])


def test_inspect_and_evaluate(digits_file, capsys):
    assert run_command(["inspect", str(digits_file)]) == 0
    assert "650" in capsys.readouterr().out
    assert run_command(["evaluate", str(digits_file), "--data", "digits", "--split", "validation"]) == 0
    expected = tfc.evaluate(digits_file, tfc.load_dataset("digits"), split="validation")
    shown = capsys.readouterr().out
    assert f"accuracy {expected.accuracy:.4f}" in shown
    assert f"{expected.num_samples} samples of digits" in shown


def test_export(digits_file, tmp_path, capsys):
    target = tmp_path / "out.tflite"
    assert run_command(["export", str(digits_file), str(target), "--data=digits", "--io=float32"]) == 0
    assert f"{target.stat().st_size:,} bytes" in capsys.readouterr().out
    assert tfc.TFLiteRunner(target).input_details["dtype"] == np.float32
    assert run_command(["export", str(digits_file), str(target), "--data=digits", "--target=microcontroller"]) == 0
    assert "out_ops.h" in capsys.readouterr().out
    assert (tmp_path / "out_microcontroller" / "out.tflite").read_bytes() == target.read_bytes()
    assert run_command(["export", str(tmp_path / "gone.keras"), str(target)]) == 1


def test_export_of_a_model_with_fake_quantization(tmp_path, capsys):
    rng = np.random.default_rng(0)
    aware = tfc.quantize_aware(tiny_cnn(), rng.uniform(size=(32, 8, 8, 1)).astype("float32"))
    aware.save(tmp_path / "aware.keras")
    assert run_command(["inspect", str(tmp_path / "aware.keras")]) == 0
    assert "FakeQuantize" in capsys.readouterr().out.replace("\n", "")


def test_list_names_every_family_and_technique(capsys):
    from tfcompress.models import FAMILIES
    from tfcompress.recipe import TECHNIQUES

    assert run_command(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in [*FAMILIES, *TECHNIQUES])


def test_module_exits_with_the_code():
    command = [sys.executable, "-m", "tfcompress"]
    done = subprocess.run([*command, "run", "gone.yaml"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert subprocess.run([*command, "nothing"], capture_output=True, cwd=ROOT).returncode == 2
    assert subprocess.run([*command, "--version"], capture_output=True, cwd=ROOT).returncode == 0


def test_slim(digits_file, tmp_path, capsys):
    plain, smaller = tmp_path / "plain.tflite", tmp_path / "smaller.tflite"
    tfc.export_tflite(tfc.load(digits_file), plain, mode="float32", slim=False)
    assert run_command(["slim", str(plain), str(smaller)]) == 0
    shown = capsys.readouterr().out
    assert f"{plain.stat().st_size:,}" in shown and f"{smaller.stat().st_size:,}" in shown
    assert "tensor names" in shown and "reference" in shown
    assert run_command(["slim", str(plain), str(plain)]) == 1
    assert "another file than `path_in`" in capsys.readouterr().err


def test_sensitivity(digits_file, tmp_path, capsys):
    out = tmp_path / "found"
    command = ["sensitivity", str(digits_file), "--data=digits", "--noprogress", f"--out={out}"]
    assert run_command(command) == 0
    assert sorted(path.name for path in out.iterdir()) == [f"sensitivity.{end}" for end in ("json", "png", "txt")]
    assert (out / "sensitivity.txt").read_text() in capsys.readouterr().out
    assert run_command([*command, "--max_accuracy_drop=0.01"]) == 0
    shown = capsys.readouterr().out
    written = json.loads((out / "sensitivity.json").read_text())
    mixed = written["mixed"]
    data = tfc.load_dataset("digits")
    expected = [tfc.evaluate(path, data, split="validation").accuracy for path in (out / "mixed.tflite", digits_file)]
    assert [mixed["accuracy"], mixed["float_accuracy"]] == pytest.approx(expected)
    assert mixed["file_bytes"] == (out / "mixed.tflite").stat().st_size and f"accuracy {expected[0]:.4f} on" in shown
    assert [row["layer"] for row in written["layers"]] == ["classes", "flat"]
    assert (out / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
