"""Runs that end too early: killed, interrupted, or stopped in any stage, and run again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.data import Dataset
from tfcompress.training.checkpoint import EpochCheckpoint

ROOT = Path(__file__).resolve().parents[2]

# Long enough in its second training that it can be caught there.
KILLED = """
seed: 5
data: {name: digits, limit_train: 1024, batch_size: 64, augment: {shift: 1}}
teacher: {model: mlp, widths: [16], train: {epochs: 1}}
student: {model: mlp, widths: [24, 24]}
stages:
  - prune:
      schedule: {polynomial_decay: {final_sparsity: 0.75}}
      teach: {}
      train: {epochs: 40, keep: best}
"""
EPOCHS = 40

# The command, with a pause after each epoch: whoever looks on is never too late to stop it. A process that a shell put
# into the background ignores Ctrl-C, and so do its children: this one listens in any case.
SLOW_COMMAND = """
import signal
import time

signal.signal(signal.SIGINT, signal.default_int_handler)
from tfcompress.cli import main
from tfcompress.training.checkpoint import EpochCheckpoint

on_epoch_end = EpochCheckpoint.on_epoch_end

def on_epoch_end_and_wait(self, epoch, logs=None):
    on_epoch_end(self, epoch, logs)
    time.sleep(0.5)

EpochCheckpoint.on_epoch_end = on_epoch_end_and_wait
main()
"""

STOPPED = """
seed: 5
data: {name: digits, limit_train: 128, batch_size: 32, augment: {shift: 1}}
train: {epochs: 4, learning_rate: 1.0e-2}
student: {model: mlp, widths: [16, 16], train: {optimizer: sgd}}
stages:
  - prune: {schedule: {polynomial_decay: {final_sparsity: 0.75}}, train: {early_stopping: 3, weight_decay: 1.0e-3}}
  - quantize: {ranges: moving_average, train: {keep: best}}
"""


def same_weights(first, second):
    for expected, actual in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


def epochs_done(checkpoint):
    with np.load(checkpoint) as file:
        return json.loads(str(file["header"]))["epoch"]


def signalled(recipe, out, number, *, after):
    """Starts a run in a process of its own, sends it a signal `after` so many epochs; its exit code and stderr."""
    command = [sys.executable, "-c", SLOW_COMMAND, "run", str(recipe), "--out", str(out), "--noprogress"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    checkpoint = out / "stages" / "01-prune" / "training.npz"
    deadline = time.monotonic() + 120
    while not (checkpoint.exists() and epochs_done(checkpoint) >= after):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.01)
    # To the whole group, as a terminal does.
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert not (out / "stages" / "01-prune" / "stage.json").exists(), "the run was over before the signal came"
    return process.returncode, errors


@pytest.fixture
def first_epochs(monkeypatch):
    """The epochs that trainings begin with, in the order of the trainings."""
    seen = []
    original = Dataset.train_batches

    def train_batches(self, batch_size, *, first_epoch=0, **options):
        seen.append(first_epoch)
        return original(self, batch_size, first_epoch=first_epoch, **options)

    monkeypatch.setattr(Dataset, "train_batches", train_batches)
    return seen


def test_a_run_goes_on_after_ctrl_c_and_after_a_kill(tmp_path, first_epochs):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "stopped"
    recipe.write_text(KILLED)
    whole = tfc.run(tfc.load_recipe(recipe), tmp_path / "whole", progress=False)
    shutil.copytree(whole.out / "stages" / "00-teacher", out / "stages" / "00-teacher")
    first_epochs.clear()
    checkpoint = out / "stages" / "01-prune" / "training.npz"

    code, errors = signalled(recipe, out, signal.SIGINT, after=2)
    assert code == 130
    assert "tfcompress: interrupted. A run that is started again goes on where it was." in errors
    assert "Traceback" not in errors
    assert not [path for path in out.rglob("*") if path.name.startswith(".writing-")]
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["key", "training.npz"]
    interrupted = epochs_done(checkpoint)

    code, _ = signalled(recipe, out, signal.SIGKILL, after=interrupted + 1)
    assert code == -signal.SIGKILL
    killed = epochs_done(checkpoint)
    assert interrupted < killed < EPOCHS
    resumed = tfc.run(tfc.load_recipe(recipe), out, progress=False)
    assert first_epochs == [killed]
    assert not checkpoint.exists()

    same_weights(whole.model, resumed.model)
    assert np.mean(resumed.model.get_layer("hidden2").kernel.numpy() == 0) == 0.75
    histories = [json.loads(run.metrics_path.read_text())["histories"]["01-prune"] for run in (whole, resumed)]
    assert len(histories[0]["loss"]) == len(histories[1]["loss"]) == EPOCHS
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-3, atol=0.02, err_msg=name)


@pytest.mark.slow
def test_pruning_and_quantization_resume_at_their_epoch(tmp_path, monkeypatch, first_epochs):
    recipe = tfc.parse_recipe(STOPPED)
    whole = tfc.run(recipe, tmp_path / "whole", progress=False)
    assert first_epochs == [0, 0, 0]
    first_epochs.clear()

    original = EpochCheckpoint.on_epoch_end
    # The sparsity still grows at the first, and the ranges are frozen already at the second.
    stops = {("01-prune", 1), ("02-quantize", 2)}

    def on_epoch_end(self, epoch, logs=None):
        original(self, epoch, logs)
        place = (self._path.parent.name, epoch)
        if place in stops:
            stops.remove(place)
            raise KeyboardInterrupt

    monkeypatch.setattr(EpochCheckpoint, "on_epoch_end", on_epoch_end)
    while stops:
        with pytest.raises(KeyboardInterrupt):
            tfc.run(recipe, tmp_path / "stopped", progress=False)
    stopped = tfc.run(recipe, tmp_path / "stopped", progress=False)
    assert first_epochs == [0, 0, 2, 0, 3]
    same_weights(whole.model, stopped.model)
    rows = [{row.stage: row.accuracy for row in run.rows} for run in (whole, stopped)]
    assert rows[0] == pytest.approx(rows[1], abs=1 / 359 + 1e-9)
