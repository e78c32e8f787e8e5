"""`Scheduled`: a loss whose weight or temperature changes with the steps of the training.

A schedule is a callable from the number of the step to a number, such as those of `keras.optimizers.schedules`. A
weight of hints that falls to 0 gives their stage before that of the outputs, in one training.

Invariant: at each step the value is that of the loss inside, with the schedule's number in the place of its own. Left
out: weights that depend on what the networks say (`adaptive.py`, `learned_weights.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.features.pairs import Features
from tfcompress.techniques.distill.keras_losses import as_loss
from tfcompress.techniques.distill.outputs import precise, takes_labels

Schedule = Callable[[Any], Any]

# A schedule that runs down to nothing would divide by it.
_LEAST_TEMPERATURE = 1e-2


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """A loss by schedules.

    Args:
        loss: Any loss that `Distiller` takes, `Features` too.
        weight: Gives the weight at a step, a float32 tensor; one below 0 counts as 0. None keeps the loss's own.
        temperature: Gives the temperature at a step, for a loss that has one; one below 0.01 counts as that. None keeps
            the loss's own.

    Raises:
        InvalidArgumentError: If there is no schedule, one is not of operations on tensors or gives no number of its
            range at step 0, or the loss has no temperature.

    Example:
        >>> import keras
        >>> from tfcompress.techniques.distill.losses import SoftTargets
        >>> cooling = keras.optimizers.schedules.PolynomialDecay(8.0, decay_steps=1000, end_learning_rate=1.0)
        >>> loss = Scheduled(SoftTargets(weight=0.9), temperature=cooling)
        >>> teacher, student = ops.array([[2.0, 0.0]]), ops.array([[0.0, 0.0]])
        >>> warm = SoftTargets(temperature=8.0)(teacher, student)
        >>> abs(float(loss(teacher, student, step=0)[0] - warm[0])) < 1e-6
        True

    Reference:
        Jafari et al., "Annealing Knowledge Distillation", 2021, https://arxiv.org/abs/2104.07163
    """

    loss: Any
    weight: Schedule | None = dataclasses.field(default=None, kw_only=True)
    temperature: Schedule | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        inner = as_loss("Scheduled.loss", self.loss)
        if isinstance(inner, Scheduled):
            raise InvalidArgumentError("Scheduled.loss", "a loss without a schedule; one has both of its own", inner)
        object.__setattr__(self, "loss", inner)
        if self.weight is None and self.temperature is None:
            raise InvalidArgumentError("Scheduled.weight", "a schedule, or one of the temperature", None)
        _check("Scheduled.weight", self.weight, "a callable from the step to a number of at least 0", 0.0)
        _check("Scheduled.temperature", self.temperature, "a callable from the step to a number above 0", 1e-12)
        if self.temperature is not None and not isinstance(getattr(inner, "temperature", None), int | float):
            raise InvalidArgumentError("Scheduled.loss", "a loss with a temperature, where that has a schedule", inner)

    def weight_at(self, step: Any) -> Any:
        """The weight at a step."""
        if self.weight is None:
            return float(getattr(self.loss, "weight", 1.0))
        return ops.maximum(_at(self.weight, step), 0.0)

    @property
    def needs_whole_batch(self) -> bool:
        """As the loss inside."""
        return bool(getattr(self.loss, "needs_whole_batch", False))

    def __call__(self, teacher_outputs: Any, student_outputs: Any, labels: Any = None, *, step: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, at a step; labels are the inner loss's."""
        options = {"labels": labels} if labels is not None and takes_labels(self.loss) else {}
        if self.temperature is None:
            return self.loss(teacher_outputs, student_outputs, **options)
        # A loss at temperature T is T squared times that at 1 of outputs that are divided by T.
        temperature = ops.maximum(_at(self.temperature, step), _LEAST_TEMPERATURE)
        at_one = dataclasses.replace(self.loss, temperature=1.0)
        sides = [precise(outputs) / temperature for outputs in (teacher_outputs, student_outputs)]
        return temperature**2 * at_one(*sides, **options)


def weight_at(loss: Any, step: Any) -> Any:
    """The weight of any loss at a step; 1 for a plain callable."""
    if isinstance(loss, Scheduled):
        return loss.weight_at(step)
    return float(getattr(loss, "weight", 1.0))


def features_of(loss: Any) -> Features | None:
    """The pair of layers that a loss compares, also by a schedule, or None."""
    inner = loss.loss if isinstance(loss, Scheduled) else loss
    return inner if isinstance(inner, Features) else None


def _at(schedule: Schedule, step: Any) -> Any:
    """What a schedule gives at a step, which it may divide and multiply."""
    return ops.cast(schedule(ops.cast(step, "float32")), "float32")


def _check(name: str, schedule: Any, wanted: str, least: float) -> None:
    if schedule is None:
        return
    if not callable(schedule):
        raise InvalidArgumentError(name, wanted, schedule)
    try:
        # As in a training, where the step is not known yet.
        traced = tf.function(lambda step: _at(schedule, step), autograph=False)
        first = np.asarray(ops.convert_to_numpy(traced(tf.constant(0))))
    except (TypeError, ValueError, NotImplementedError) as error:
        what = f"{wanted}, of `keras.ops` or TensorFlow operations: no `if`, no NumPy"
        raise InvalidArgumentError(name, what, f"{type(error).__name__}: {error}") from error
    if first.shape or not least <= float(first) < float("inf"):
        raise InvalidArgumentError(name, wanted, first.tolist())
