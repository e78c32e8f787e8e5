"""Losses of class logits: how far a student's distribution over the classes is from its teacher's.

Each is a plain callable `(teacher_logits, student_logits) -> loss`, from two tensors of shape `(batch, ..., classes)`
to one value per sample, shape `(batch,)`, with a `weight` beside the student's own loss; between batch and classes
there may be positions, such as those of a segmentation or a sequence, over which the mean is taken. A user's own
callable of that form is accepted wherever these are.

Invariant: each loss is smallest where its docstring says, and finite, with a finite gradient, for logits of any size
that float32 can square. Left out: losses that use labels (`decoupled.py`, `weighting.py`), and outputs that are no
classes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from keras import ops

from tfcompress.techniques.distill.arguments import check_temperature, check_weight
from tfcompress.techniques.distill.outputs import comparable, mean_over_positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftTargets:
    """Kullback-Leibler divergence from teacher to student at a temperature, times its square.

    Softening divides logits, and therefore gradients, by the temperature twice; the square undoes that, so that
    `weight` means the same at every temperature. It is 0 where both distributions agree.

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
        check_temperature("SoftTargets", self.temperature)
        check_weight("SoftTargets", self.weight)

    def __call__(self, teacher_logits: Any, student_logits: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two logit tensors `(batch, ..., classes)`."""
        teacher_logits, student_logits = comparable("SoftTargets", teacher_logits, student_logits, least=2)
        teacher = ops.log_softmax(teacher_logits / self.temperature, axis=-1)
        student = ops.log_softmax(student_logits / self.temperature, axis=-1)
        divergence = ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)
        return self.temperature**2 * mean_over_positions(divergence)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftCrossEntropy:
    """Cross-entropy of the student under the teacher's softened distribution, times the square of the temperature.

    Its gradient is that of `SoftTargets`, and so is its minimum; its value is larger by the teacher's entropy.

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
        check_temperature("SoftCrossEntropy", self.temperature)
        check_weight("SoftCrossEntropy", self.weight)

    def __call__(self, teacher_logits: Any, student_logits: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two logit tensors `(batch, ..., classes)`."""
        teacher_logits, student_logits = comparable("SoftCrossEntropy", teacher_logits, student_logits, least=2)
        teacher = ops.softmax(teacher_logits / self.temperature, axis=-1)
        student = ops.log_softmax(student_logits / self.temperature, axis=-1)
        return -(self.temperature**2) * mean_over_positions(ops.sum(teacher * student, axis=-1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitMatching:
    """Mean squared difference of the logits.

    A teacher that gives probabilities has logits only up to a constant for each sample, so both sides are centred. It
    is 0 where the centred logits agree. `OutputMatching` is the one for regression, which does not centre.

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
        check_weight("LogitMatching", self.weight)

    def __call__(self, teacher_logits: Any, student_logits: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two logit tensors `(batch, ..., classes)`."""
        teacher, student = comparable("LogitMatching", teacher_logits, student_logits, least=2)
        teacher = teacher - ops.mean(teacher, axis=-1, keepdims=True)
        student = student - ops.mean(student, axis=-1, keepdims=True)
        return mean_over_positions(ops.mean(ops.square(teacher - student), axis=-1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class HardLabels:
    """Cross-entropy of the student under the teacher's first choice, which is all that it takes of the teacher.

    It is for samples that nobody has labelled, and shows beside `SoftTargets` what the soft part is worth. It falls
    towards 0 as the student becomes sure of the teacher's first choice.

    Args:
        weight: Share of this loss beside the student's own, in [0, 1].

    Raises:
        InvalidArgumentError: If the weight is out of its range.

    Example:
        >>> round(float(HardLabels()(ops.array([[3.0, 1.0]]), ops.array([[0.0, 0.0]]))[0]), 4)
        0.6931

    Reference:
        Touvron et al., "Training data-efficient image transformers & distillation through attention", 2020,
        https://arxiv.org/abs/2012.12877
    """

    weight: float = 0.5

    def __post_init__(self):
        check_weight("HardLabels", self.weight)

    def __call__(self, teacher_logits: Any, student_logits: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two logit tensors `(batch, ..., classes)`."""
        teacher, student = comparable("HardLabels", teacher_logits, student_logits, least=2)
        chosen = ops.one_hot(ops.argmax(teacher, axis=-1), teacher.shape[-1], dtype=student.dtype)
        return -mean_over_positions(ops.sum(chosen * ops.log_softmax(student, axis=-1), axis=-1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelSmoothing:
    """A control without a teacher: Kullback-Leibler divergence from the uniform distribution to the student's.

    Beside the student's own cross-entropy, `weight` is the share of the label that is spread over all classes, and the
    sum is label smoothing, up to a constant. What a teacher is worth is what it gains over this. It is 0 where all
    logits of the student are equal; the teacher's are not looked at.

    Args:
        weight: Share of the label that is spread, in [0, 1].

    Raises:
        InvalidArgumentError: If the weight is out of its range.

    Example:
        >>> float(LabelSmoothing(weight=0.1)(ops.array([[3.0, 1.0]]), ops.array([[0.0, 0.0]]))[0])
        0.0

    Reference:
        Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", 2020,
        https://arxiv.org/abs/1909.11723
    """

    weight: float = 0.1

    def __post_init__(self):
        check_weight("LabelSmoothing", self.weight)

    def __call__(self, teacher_logits: Any, student_logits: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two logit tensors `(batch, ..., classes)`."""
        _, student = comparable("LabelSmoothing", teacher_logits, student_logits, least=2)
        classes = student.shape[-1]
        uniform = -ops.log(ops.cast(classes, student.dtype))
        return mean_over_positions(uniform - ops.mean(ops.log_softmax(student, axis=-1), axis=-1))
