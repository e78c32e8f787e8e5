"""Callbacks for tf_keras's `fit`: masks that hold, a schedule that is checked, and our Keras 3 callbacks carried over.

Invariant: a schedule that cannot reach its sparsity is an error before the first step. Left out: TFMOT's own callbacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
import tf_keras

from tfcompress.errors import TrainingError
from tfcompress.techniques.schedules import Schedule, SchedulePlan, check_reachable

KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel", "embeddings")


class HoldZeros(tf_keras.callbacks.Callback):
    """Keeps the zeros that the kernels of the fitted model have when training begins, as `HoldMasks` does in Keras 3.

    The optimizer may move them within a step; they are zero again before the next one.
    """

    def __init__(self):
        super().__init__()
        self._masks: list[tuple[Any, Any]] = []

    def on_train_begin(self, logs=None):
        self._masks = []
        for kernel in kernels(self.model):
            keep = kernel.numpy() != 0
            if not keep.all():
                self._masks.append((kernel, tf.constant(keep, kernel.dtype)))

    def on_train_batch_end(self, batch, logs=None):
        for kernel, mask in self._masks:
            kernel.assign(kernel * mask)


def kernels(model: Any) -> list[Any]:
    """The trainable variables of a tf_keras model that are kernels."""
    return [weight for weight in model.trainable_variables if weight_name(weight) in KERNELS]


def weight_name(weight: Any) -> str:
    """What a variable is called within its layer: `kernel` for `conv/kernel:0`."""
    return weight.name.rpartition("/")[2].partition(":")[0]


class CheckSchedule(tf_keras.callbacks.Callback):
    """Holds TFMOT's schedule against the planned steps, and says when the final sparsity is reached.

    Args:
        schedule: The schedule; `None` for a pattern, which TFMOT makes once, in the first step.
        pruning_step: Gives the variable in which TFMOT counts the steps.
    """

    def __init__(self, schedule: Schedule | None, pruning_step: Any):
        super().__init__()
        self._schedule = schedule
        self._pruning_step = pruning_step
        self._final_step: int | None = None

    @property
    def settled(self) -> bool:
        """Whether the final sparsity is reached; earlier epochs are no candidates for the best one."""
        return self._final_step is not None and int(self._pruning_step().numpy()) >= self._final_step

    @property
    def has_run(self) -> bool:
        return self._final_step is not None

    def on_train_begin(self, logs=None):
        steps = self.params.get("steps")
        if steps is None:
            raise TrainingError(
                "The planned steps must be known, to hold the schedule against them. Received: data of unknown length. "
                "Pass `steps_per_epoch` to `fit`."
            )
        total = steps * self.params["epochs"]
        self._final_step = 1 if self._schedule is None else check_schedule(self._schedule, total)


def check_schedule(schedule: Schedule, total_steps: int) -> int:
    """Returns the step at which TFMOT reaches the final sparsity.

    Raises:
        TrainingError: If it does not within `total_steps`.
    """
    plan = SchedulePlan.read(schedule, total_steps)
    # TFMOT asks for the first time in the first step.
    plan.should_prune[0] = False
    return check_reachable(schedule, plan)


class InTfKeras(tf_keras.callbacks.Callback):
    """A Keras 3 callback of ours in tf_keras's `fit`.

    Args:
        callback: A callback that uses nothing of its model but what both Keras have: weights and `stop_training`.
    """

    def __init__(self, callback: keras.callbacks.Callback):
        super().__init__()
        self._callback = callback

    def set_model(self, model):
        super().set_model(model)
        self._callback.set_model(model)

    def set_params(self, params):
        super().set_params(params)
        self._callback.set_params(params)

    def on_train_begin(self, logs=None):
        self._callback.on_train_begin(logs)

    def on_epoch_begin(self, epoch, logs=None):
        self._callback.on_epoch_begin(epoch, logs)

    def on_train_batch_end(self, batch, logs=None):
        self._callback.on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self._callback.on_epoch_end(epoch, logs)

    def on_train_end(self, logs=None):
        self._callback.on_train_end(logs)


def in_tf_keras(callbacks: Sequence[keras.callbacks.Callback]) -> list[InTfKeras]:
    """Wraps Keras 3 callbacks for tf_keras."""
    return [InTfKeras(callback) for callback in callbacks]
