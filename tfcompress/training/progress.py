"""A progress bar for a training, with the time left.

Invariant: the bar counts steps over all epochs, so that the time left is that of the whole training. Left out: logs.
"""

from __future__ import annotations

import keras
from rich import progress


class ProgressBar(keras.callbacks.Callback):
    """Shows steps, loss, accuracy and the time left.

    Args:
        label: What is trained, such as `"02-prune"`.
        epochs: Epochs of the training.
        steps: Steps of an epoch.
    """

    def __init__(self, label: str, epochs: int, steps: int):
        super().__init__()
        self._steps = steps
        self._epochs = epochs
        self._epoch = 0
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            # Narrow enough to leave room for the figures in a terminal of 80 columns.
            progress.BarColumn(bar_width=16),
            progress.TaskProgressColumn(),
            progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            progress.TextColumn("{task.fields[figures]}"),
        )
        self._task = self._bar.add_task(label, total=epochs * steps, figures="")

    def on_train_begin(self, logs=None):
        self._bar.start()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self._bar.update(self._task, completed=self._epoch * self._steps + min(batch + 1, self._steps))

    def on_epoch_end(self, epoch, logs=None):
        names = {"loss": "loss", "val_accuracy": "val_acc"}
        figures = "  ".join(f"{short} {logs[name]:.4f}" for name, short in names.items() if logs and name in logs)
        self._bar.update(self._task, figures=f"{epoch + 1}/{self._epochs}  {figures}")

    def on_train_end(self, logs=None):
        self.close()

    def close(self) -> None:
        """Ends the display, also when training ended by an error."""
        self._bar.stop()
