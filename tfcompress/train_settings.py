"""How a stage trains: the keys of `train:` in a recipe, and the argument of `tfcompress.training.fit`.

Invariant: settings that exist are valid. Left out: what they do, which is `training.py`; this module imports no
TensorFlow, so that a recipe is checked in milliseconds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, get_args

from tfcompress.errors import InvalidArgumentError

Optimizer = Literal["adam", "adamw", "sgd"]
LearningRateSchedule = Literal["cosine", "constant", "linear"]
Precision = Literal["float32", "mixed_float16", "mixed_bfloat16"]
Strategy = Literal["default", "mirrored"]
Keep = Literal["last", "best"]

_CHOICES = {
    "optimizer": Optimizer,
    "schedule": LearningRateSchedule,
    "precision": Precision,
    "strategy": Strategy,
    "keep": Keep,
}
_WHOLE_NUMBERS = {"epochs": 1, "warmup_steps": 0, "steps_per_execution": 1, "early_stopping": 1}
_NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "learning_rate": (lambda value: 0 < value < math.inf, "a finite number above 0"),
    "weight_decay": (lambda value: 0 <= value < math.inf, "a finite number of at least 0"),
    "momentum": (lambda value: 0 <= value < 1, "a number in [0, 1)"),
    "label_smoothing": (lambda value: 0 <= value < 1, "a number in [0, 1)"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of one training.

    Args:
        epochs: Passes over the training data, at least 1.
        optimizer: `adam`, `adamw` or `sgd`.
        learning_rate: The highest learning rate, above 0.
        schedule: What the learning rate does after the warm-up: fall to 0 along a `cosine` or a `linear` line over all
            steps, or stay `constant`.
        warmup_steps: Steps in which the learning rate first rises linearly from 0, at least 0.
        weight_decay: Decoupled weight decay per step, relative to the learning rate, at least 0.
        momentum: Momentum of `sgd`, in [0, 1); the other optimizers don't read it.
        label_smoothing: Share of the label's probability that is spread over all classes, in [0, 1).
        precision: `float32`, `mixed_float16` (with loss scaling) or `mixed_bfloat16`; the weights stay float32.
        jit_compile: Whether XLA compiles the training step.
        strategy: `default`, or `mirrored` for data parallelism over all devices of this machine; the batch size is the
            global one in both.
        steps_per_execution: Steps that run in one call of the compiled function, at least 1.
        early_stopping: Stop after so many epochs without a better validation accuracy, at least 1; None never stops.
        keep: Weights to keep at the end: of the `last` epoch, or of the `best` one by validation accuracy.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> TrainSettings(epochs=3, learning_rate=0.01).schedule
        'cosine'
    """

    epochs: int
    optimizer: Optimizer = "adam"
    learning_rate: float = 1e-3
    schedule: LearningRateSchedule = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    momentum: float = 0.9
    label_smoothing: float = 0.0
    precision: Precision = "float32"
    jit_compile: bool = False
    strategy: Strategy = "default"
    steps_per_execution: int = 1
    early_stopping: int | None = None
    keep: Keep = "last"

    def __post_init__(self):
        for name, choice in _CHOICES.items():
            allowed = get_args(choice)
            self._require(name, getattr(self, name) in allowed, f"one of {', '.join(map(repr, allowed))}")
        for name, least in _WHOLE_NUMBERS.items():
            value = getattr(self, name)
            holds = isinstance(value, int) and not isinstance(value, bool) and value >= least
            unset = name == "early_stopping" and value is None
            self._require(name, holds or unset, f"a whole number of at least {least}")
        for name, (allows, expected) in _NUMBERS.items():
            value = getattr(self, name)
            self._require(name, isinstance(value, int | float) and allows(value), expected)
        if self.strategy == "mirrored":
            # Keras 3.15 cannot run several steps in one call over several replicas.
            self._require("steps_per_execution", self.steps_per_execution == 1, "1 with `strategy: mirrored`")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InvalidArgumentError(f"TrainSettings.{name}", expected, getattr(self, name))
