"""Distillation losses: how far a student's outputs are from its teacher's.

Each is a plain callable `(teacher_logits, student_logits) -> loss`, from two tensors of shape `(batch, classes)` to one
value per sample, shape `(batch,)`, with a `weight` beside the student's own loss. A user's own callable of that form is
accepted wherever these are.

Invariant: each loss is smallest exactly where both outputs agree (for logits: up to what a softmax cannot see, except
`LogitMatching`). Left out: hard labels, which stay in the student's compiled loss, and the features inside a network.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from keras import ops

from tfcompress.errors import InvalidArgumentError


def _check_weight(owner: str, weight: float) -> None:
    if not 0 <= weight <= 1:
        raise InvalidArgumentError(f"{owner}.weight", "a number in [0, 1]", weight)


def _check_temperature(owner: str, temperature: float) -> None:
    if not temperature > 0:
        raise InvalidArgumentError(f"{owner}.temperature", "a number above 0", temperature)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftTargets:
    """Kullback-Leibler divergence from teacher to student at a temperature, times its square.

    Softening divides logits, and therefore gradients, by the temperature twice; the square undoes that, so that
    `weight` means the same at every temperature.

    Args:
        temperature: Softening of both distributions, in (0, inf). 1 leaves them as they are.
        weight: Share of this loss beside the student's own, in [0, 1].

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> loss = SoftTargets(temperature=4.0)
        >>> float(loss(ops.array([[2.0, 0.0]]), ops.array([[2.0, 0.0]]))[0])
        0.0

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, https://arxiv.org/abs/1503.02531
    """

    temperature: float = 4.0
    weight: float = 0.9

    def __post_init__(self):
        _check_temperature("SoftTargets", self.temperature)
        _check_weight("SoftTargets", self.weight)

    def __call__(self, teacher_logits: Any, student_logits: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two logit tensors of shape `(batch, classes)`."""
        teacher = ops.log_softmax(teacher_logits / self.temperature, axis=-1)
        student = ops.log_softmax(student_logits / self.temperature, axis=-1)
        divergence = ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)
        return self.temperature**2 * divergence


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftCrossEntropy:
    """Cross-entropy of the student under the teacher's softened distribution, times the square of the temperature.

    Its gradient is that of `SoftTargets`; its value is larger by the teacher's entropy.

    Args:
        temperature: Softening of both distributions, in (0, inf).
        weight: Share of this loss beside the student's own, in [0, 1].

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> loss = SoftCrossEntropy(temperature=1.0)
        >>> round(float(loss(ops.array([[0.0, 0.0]]), ops.array([[0.0, 0.0]]))[0]), 4)
        0.6931
    """

    temperature: float = 4.0
    weight: float = 0.9

    def __post_init__(self):
        _check_temperature("SoftCrossEntropy", self.temperature)
        _check_weight("SoftCrossEntropy", self.weight)

    def __call__(self, teacher_logits: Any, student_logits: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two logit tensors of shape `(batch, classes)`."""
        teacher = ops.softmax(teacher_logits / self.temperature, axis=-1)
        student = ops.log_softmax(student_logits / self.temperature, axis=-1)
        return -(self.temperature**2) * ops.sum(teacher * student, axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitMatching:
    """Mean squared difference of the logits.

    A teacher that gives probabilities has logits only up to a constant for each sample, so both sides are centred.

    Args:
        weight: Share of this loss beside the student's own, in [0, 1].

    Raises:
        InvalidArgumentError: If the weight is out of its range.

    Example:
        >>> float(LogitMatching()(ops.array([[1.0, -1.0]]), ops.array([[0.0, 0.0]]))[0])
        1.0

    Reference:
        Ba, Caruana, "Do Deep Nets Really Need to be Deep?", 2014, https://arxiv.org/abs/1312.6184
    """

    weight: float = 0.5

    def __post_init__(self):
        _check_weight("LogitMatching", self.weight)

    def __call__(self, teacher_logits: Any, student_logits: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two logit tensors of shape `(batch, classes)`."""
        teacher = teacher_logits - ops.mean(teacher_logits, axis=-1, keepdims=True)
        student = student_logits - ops.mean(student_logits, axis=-1, keepdims=True)
        return ops.mean(ops.square(teacher - student), axis=-1)


LOSSES: dict[str, type] = {
    "soft_targets": SoftTargets,
    "soft_cross_entropy": SoftCrossEntropy,
    "logit_matching": LogitMatching,
}
