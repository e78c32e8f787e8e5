"""Optimizers and learning-rate schedules from training settings.

Invariant: the learning rate of a step depends on the step alone, so a resumed training goes on where it was.
Left out: schedules that watch the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from tfcompress.train_settings import TrainSettings

# Decay pulls towards zero, which is no natural place for offsets, scales and quantization ranges.
NOT_DECAYED = ("bias", "gamma", "beta", "range_minimum", "range_maximum")


@keras.saving.register_keras_serializable(package="tfcompress")
class WarmUpThenFall(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly from 0, then falls to 0 along a cosine or a line, or stays.

    Args:
        peak: The highest learning rate, above 0.
        total_steps: Steps until the learning rate is 0, the warm-up included.
        shape: `"cosine"`, `"linear"` or `"constant"`.
        warmup_steps: Steps of the rise.

    Example:
        >>> schedule = WarmUpThenFall(1.0, total_steps=10, shape="linear")
        >>> round(float(schedule(5)), 3)
        0.5
    """

    def __init__(self, peak: float, total_steps: int, shape: str = "cosine", warmup_steps: int = 0):
        super().__init__()
        self.peak, self.total_steps, self.shape, self.warmup_steps = peak, total_steps, shape, warmup_steps

    def __call__(self, step):
        ops = keras.ops
        step = ops.cast(step, "float32")
        rise = ops.minimum((step + 1.0) / max(self.warmup_steps, 1), 1.0) if self.warmup_steps else 1.0
        done = ops.clip((step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1), 0.0, 1.0)
        falls = {
            "constant": ops.ones_like(done),
            "linear": 1.0 - done,
            "cosine": 0.5 + 0.5 * ops.cos(3.14159265 * done),
        }
        return self.peak * rise * falls[self.shape]

    def get_config(self):
        return {
            "peak": self.peak,
            "total_steps": self.total_steps,
            "shape": self.shape,
            "warmup_steps": self.warmup_steps,
        }


def make_optimizer(
    settings: TrainSettings,
    total_steps: int,
    *,
    library: Any = keras.optimizers,
    adapt: Callable[[WarmUpThenFall], Any] = lambda rate: rate,
) -> Any:
    """The optimizer of a training of `total_steps` steps.

    Args:
        settings: Which one, and with what.
        total_steps: Steps until the learning rate is 0.
        library: Where the optimizers are taken from: those of Keras 3, or the like-named ones of tf_keras.
        adapt: Makes a learning-rate schedule of that library of ours.
    """
    rate = adapt(WarmUpThenFall(settings.learning_rate, total_steps, settings.schedule, settings.warmup_steps))
    decay = settings.weight_decay or None
    if settings.optimizer == "sgd":
        optimizer = library.SGD(rate, momentum=settings.momentum, nesterov=True, weight_decay=decay)
    elif settings.optimizer == "adamw":
        optimizer = library.AdamW(rate, weight_decay=settings.weight_decay)
    else:
        optimizer = library.Adam(rate, weight_decay=decay)
    if decay:
        optimizer.exclude_from_weight_decay(var_names=NOT_DECAYED)
    return optimizer
