"""Checkpoints within a training: everything that the next epoch depends on, written after each epoch.

Invariant: a training that is killed and resumed ends with the weights of one that was not (as far as TensorFlow's own
arithmetic repeats); a checkpoint of another model or other settings is not read. Left out: positions within an epoch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcompress.errors import TrainingError
from tfcompress.files import atomic_path


class EpochCheckpoint(keras.callbacks.Callback):
    """Writes the state of a training after each epoch, and reads it back.

    Args:
        path: The `.npz` file; `None` keeps the history only.
        key: What the training is known by; a file with another key is an error, not a start from nothing.
        variables: Gives the variables to save, in a fixed order, once the optimizer is built.
        best: The callback that holds the best weights so far.
    """

    def __init__(self, path: Path | None, key: str, variables: Callable[[], Sequence[Any]], best: BestEpoch):
        super().__init__()
        self._path = path
        self._key = key
        self._variables = variables
        self._best = best
        self.history: dict[str, list[float]] = {}

    def restore(self) -> int:
        """Loads the file if there is one. Returns the epoch to go on with, 0 without a file."""
        if self._path is None or not self._path.exists():
            return 0
        with np.load(self._path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            variables = self._variables()
            if header["key"] != self._key or header["count"] != len(variables):
                raise TrainingError(
                    f"The checkpoint {str(self._path)!r} is of another training. Delete it to start anew."
                )
            for at, variable in enumerate(variables):
                variable.assign(file[f"variable_{at}"])
            self._best.set_state(header["best"], [file[f"best_{at}"] for at in range(header["best"]["count"])])
            self.history = header["history"]
            return int(header["epoch"])

    def on_epoch_end(self, epoch, logs=None):
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        if self._path is not None:
            self._write(self._path, epoch)

    def _write(self, path: Path, epoch: int) -> None:
        best_state, best_weights = self._best.get_state()
        variables = self._variables()
        header = {
            "key": self._key,
            "epoch": epoch + 1,
            "count": len(variables),
            "history": self.history,
            "best": best_state,
        }
        arrays = {f"variable_{at}": keras.ops.convert_to_numpy(variable) for at, variable in enumerate(variables)}
        arrays |= {f"best_{at}": weight for at, weight in enumerate(best_weights)}
        with atomic_path(path) as temporary:
            np.savez(temporary, header=np.array(json.dumps(header)), **arrays)


class BestEpoch(keras.callbacks.Callback):
    """Remembers the weights of the epoch with the best validation accuracy, and stops when there is no better one.

    An epoch counts only if every callback that can say whether it is `settled` says so: a network that is not sparse
    yet, or whose ranges still move, is not a candidate.

    Args:
        model: The model whose weights are kept.
        patience: Epochs without a better one before training stops; `None` never stops.
        keep_best: Whether the best weights are restored at the end.
    """

    def __init__(self, model: keras.Model, patience: int | None, keep_best: bool):
        super().__init__()
        self._kept = model
        self._patience = patience
        self._keep_best = keep_best
        self._accuracy = -1.0
        self._waited = 0
        self._weights: list[np.ndarray] = []
        self.others: Sequence[keras.callbacks.Callback] = ()

    def on_epoch_end(self, epoch, logs=None):
        accuracy = (logs or {}).get("val_accuracy")
        if accuracy is None or not all(getattr(callback, "settled", True) for callback in self.others):
            return
        if accuracy > self._accuracy:
            self._accuracy, self._waited = float(accuracy), 0
            if self._keep_best:
                self._weights = self._kept.get_weights()
        else:
            self._waited += 1
            if self._patience is not None and self._waited >= self._patience:
                self.model.stop_training = True

    def on_train_end(self, logs=None):
        if self._weights:
            self._kept.set_weights(self._weights)

    @property
    def exhausted(self) -> bool:
        """Whether the patience is used up, also before a resumed training begins."""
        return self._patience is not None and self._waited >= self._patience

    def get_state(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        """What a resumed training needs: numbers for JSON, and arrays."""
        return {"accuracy": self._accuracy, "waited": self._waited, "count": len(self._weights)}, self._weights

    def set_state(self, state: dict[str, Any], weights: list[np.ndarray]) -> None:
        """Takes over what `get_state` gave."""
        self._accuracy, self._waited, self._weights = state["accuracy"], state["waited"], weights


class StopOnNaN(keras.callbacks.Callback):
    """Raises a `TrainingError` when an epoch ends with a loss that is no number."""

    def on_epoch_end(self, epoch, logs=None):
        loss = (logs or {}).get("loss", 0.0)
        if not np.isfinite(loss):
            raise TrainingError(
                f"The training loss became {loss} in epoch {epoch + 1}. Lower `learning_rate`, or use "
                "`precision: float32`."
            )
