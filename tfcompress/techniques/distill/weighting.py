"""Losses around losses: which samples and positions a loss counts for, how much, and on what scale of logits.

Each takes any loss of class logits that is a callable `(teacher, student) -> (batch,)` on outputs `(batch, classes)`,
and has its weight. Outputs with positions are given to it position by position.

Invariant: what is left out counts as 0, and the mean is still taken over all positions, so that the gradient of what
stays does not depend on how much was left out; only `WhereLabelled` takes it over what stays. Left out: weights of
samples, which are `sample_weight` of `fit`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.dense_losses import ChannelWiseTargets
from tfcompress.techniques.distill.features.pairs import Features
from tfcompress.techniques.distill.keras_losses import as_loss
from tfcompress.techniques.distill.multi_label import MultiLabelTargets
from tfcompress.techniques.distill.outputs import (
    class_labels,
    comparable,
    integer_labels,
    mean_over_positions,
    takes_labels,
)
from tfcompress.techniques.distill.regression import TeacherBounded
from tfcompress.techniques.distill.scheduled import Scheduled

# Logits with a standard deviation below 0.01 are those of a network that knows nothing yet. They are not blown up
# further, and so their gradient is neither.
_LEAST_VARIANCE = 1e-4

# The last axis has no one class for each position, or the positions belong together.
_OF_NO_CLASSES = (ChannelWiseTargets, MultiLabelTargets, TeacherBounded)


@dataclasses.dataclass(frozen=True)
class AroundLoss:
    """A loss around another one, with its weight.

    Args:
        loss: The loss inside, of any kind that `Distiller` takes.

    Raises:
        InvalidArgumentError: If it is none.
    """

    loss: Callable[..., Any]

    def __post_init__(self):
        inner = as_loss(f"{type(self).__name__}.loss", self.loss)
        if isinstance(inner, Features):
            raise InvalidArgumentError(f"{type(self).__name__}.loss", "a loss of outputs", self.loss)
        if isinstance(inner, Scheduled):
            expected = f"a loss without a schedule: write `Scheduled({type(self).__name__}(...))`"
            raise InvalidArgumentError(f"{type(self).__name__}.loss", expected, self.loss)
        if getattr(inner, "needs_whole_batch", False):
            raise InvalidArgumentError(
                f"{type(self).__name__}.loss", "a loss with a value for each sample, not one for the batch", self.loss
            )
        if isinstance(inner, _OF_NO_CLASSES):
            raise InvalidArgumentError(f"{type(self).__name__}.loss", "a loss of class logits, by position", self.loss)
        object.__setattr__(self, "loss", inner)

    @property
    def weight(self) -> float:
        """The weight of the loss inside; that of a plain callable is 1."""
        return float(getattr(self.loss, "weight", 1.0))

    def _of_positions(self, teacher: Any, student: Any, labels: Any) -> Any:
        """The inner loss at each position, shape `(batch, ...)`."""
        flat = [ops.reshape(outputs, (-1, outputs.shape[-1])) for outputs in (teacher, student)]
        if labels is not None and takes_labels(self.loss):
            labels = integer_labels(type(self).__name__, labels, teacher)
            values = self.loss(*flat, labels=ops.reshape(labels, (-1,)))
        else:
            values = self.loss(*flat)
        return ops.reshape(values, ops.shape(teacher)[:-1])


@dataclasses.dataclass(frozen=True)
class PerClass(AroundLoss):
    """Weighs a loss by the class: that of the label, or of the teacher's first choice where there is none.

    Args:
        loss: The loss to weigh.
        weights: One number of at least 0 for each class.

    Raises:
        InvalidArgumentError: If an argument is not as above, or the outputs have another number of classes.

    Example:
        >>> from tfcompress.techniques.distill.losses import SoftTargets
        >>> loss = PerClass(SoftTargets(), weights=[1.0, 0.0])
        >>> teacher = ops.array([[2.0, 0.0], [0.0, 2.0]])
        >>> [float(value) > 0 for value in loss(teacher, 0.5 * teacher)]
        [True, False]
    """

    weights: Sequence[float] = dataclasses.field(kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        given = tuple(self.weights) if isinstance(self.weights, list | tuple | np.ndarray) else ()
        of_range = [isinstance(one, int | float | np.number) and 0 <= one < float("inf") for one in given]
        if not given or not all(of_range):
            wanted = "a list of numbers of at least 0, one for each class"
            raise InvalidArgumentError("PerClass.weights", wanted, self.weights)
        weights = tuple(float(weight) for weight in given)
        object.__setattr__(self, "weights", weights)

    def __call__(self, teacher_logits: Any, student_logits: Any, labels: Any = None) -> Any:
        """Returns the loss of each sample, shape `(batch,)`; labels as in `Decoupled`."""
        teacher, student = comparable("PerClass", teacher_logits, student_logits, least=2)
        if teacher.shape[-1] != len(self.weights):
            expected = f"{teacher.shape[-1]} numbers, one for each class"
            raise InvalidArgumentError("PerClass.weights", expected, self.weights)
        classes = class_labels("PerClass", labels, teacher)
        weights = ops.take(ops.convert_to_tensor(self.weights, dtype=student.dtype), classes)
        return mean_over_positions(weights * self._of_positions(teacher, student, labels))


@dataclasses.dataclass(frozen=True)
class WhereConfident(AroundLoss):
    """Counts a loss only where the teacher is sure: where its largest probability is at least `threshold`.

    Args:
        loss: The loss that counts there.
        threshold: The least probability of the teacher's first choice, in [0, 1].

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> from tfcompress.techniques.distill.losses import SoftTargets
        >>> loss = WhereConfident(SoftTargets(), threshold=0.8)
        >>> teacher = ops.array([[2.0, 0.0], [1.0, 0.0]])
        >>> [float(value) > 0 for value in loss(teacher, 0.5 * teacher)]
        [True, False]
    """

    threshold: float = dataclasses.field(default=0.8, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.threshold <= 1:
            raise InvalidArgumentError("WhereConfident.threshold", "a probability in [0, 1]", self.threshold)

    def __call__(self, teacher_logits: Any, student_logits: Any, labels: Any = None) -> Any:
        """Returns the loss of each sample, shape `(batch,)`; labels are the inner loss's."""
        teacher, student = comparable("WhereConfident", teacher_logits, student_logits, least=2)
        sure = ops.max(ops.softmax(teacher, axis=-1), axis=-1) >= self.threshold
        return mean_over_positions(ops.cast(sure, student.dtype) * self._of_positions(teacher, student, labels))


@dataclasses.dataclass(frozen=True)
class WhereCorrect(AroundLoss):
    """Counts a loss only where the teacher's first choice is the label; elsewhere the labels teach alone.

    A sample whose label is no class, such as -1, counts nowhere.

    Args:
        loss: The loss that counts there.

    Raises:
        InvalidArgumentError: If there are no labels.

    Example:
        >>> from tfcompress.techniques.distill.losses import SoftTargets
        >>> teacher = ops.array([[2.0, 0.0], [2.0, 0.0]])
        >>> values = WhereCorrect(SoftTargets())(teacher, 0.5 * teacher, labels=ops.array([0, 1]))
        >>> [float(value) > 0 for value in values]
        [True, False]
    """

    def __call__(self, teacher_logits: Any, student_logits: Any, labels: Any = None) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, for integer or one-hot labels."""
        teacher, student = comparable("WhereCorrect", teacher_logits, student_logits, least=2)
        if labels is None:
            raise InvalidArgumentError(
                "WhereCorrect.labels", "the true classes: of data with labels, and without `mix`", labels
            )
        labels = integer_labels("WhereCorrect", labels, teacher)
        correct = ops.equal(ops.cast(ops.argmax(teacher, axis=-1), labels.dtype), labels)
        return mean_over_positions(ops.cast(correct, student.dtype) * self._of_positions(teacher, student, labels))


@dataclasses.dataclass(frozen=True)
class WhereLabelled(AroundLoss):
    """Leaves out positions with a certain label: the padding of a sequence, the unknown areas of a segmentation.

    The mean of a sample is taken over the positions that stay; a sample of which none stays counts 0.

    Args:
        loss: The loss of the other positions.
        ignored: The integer label that is left out, as `ignore_class` of Keras's losses.

    Raises:
        InvalidArgumentError: If there are no labels.

    Example:
        >>> from tfcompress.techniques.distill.losses import SoftTargets
        >>> teacher = ops.array([[[2.0, 0.0], [0.0, 9.0]]])
        >>> student, loss = ops.array([[[2.0, 0.0], [9.0, 0.0]]]), WhereLabelled(SoftTargets(), ignored=-1)
        >>> float(loss(teacher, student, labels=ops.array([[0, -1]]))[0])
        0.0
    """

    ignored: int = dataclasses.field(default=-1, kw_only=True)

    def __call__(self, teacher_logits: Any, student_logits: Any, labels: Any = None) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, for labels of shape `(batch, ...)`."""
        teacher, student = comparable("WhereLabelled", teacher_logits, student_logits)
        if labels is None:
            raise InvalidArgumentError("WhereLabelled.labels", "integers, one for each position", labels)
        labels = integer_labels("WhereLabelled", labels, teacher)
        stays = ops.cast(ops.not_equal(labels, self.ignored), student.dtype)
        values = stays * self._of_positions(teacher, student, labels)
        axes = tuple(range(1, len(values.shape)))
        return ops.sum(values, axis=axes) / ops.maximum(ops.sum(stays, axis=axes), 1.0) if axes else values


@dataclasses.dataclass(frozen=True)
class Standardized(AroundLoss):
    """Gives a loss standardized logits: at each position a mean of 0 and a standard deviation of 1.

    The temperature inside thereby multiplies each side's own deviation, and a student need not have logits as large as
    its teacher's, only in the same proportions. A deviation below 0.01 counts as 0.01. It is as small as the loss
    inside where one side's logits are the other's, times a positive number, plus any number.

    Args:
        loss: The loss of the standardized logits. The paper takes a temperature of 2.

    Raises:
        InvalidArgumentError: If `loss` is no loss.

    Example:
        >>> from tfcompress.techniques.distill.losses import SoftTargets
        >>> loss = Standardized(SoftTargets(temperature=2.0))
        >>> teacher = ops.array([[4.0, 2.0, 0.0]])
        >>> abs(round(float(loss(teacher, 0.5 * teacher + 3.0)[0]), 5))
        0.0

    Reference:
        Sun et al., "Logit Standardization in Knowledge Distillation", 2024, https://arxiv.org/abs/2403.01427
    """

    def __call__(self, teacher_logits: Any, student_logits: Any, labels: Any = None) -> Any:
        """Returns the loss of each sample, shape `(batch,)`; labels are the inner loss's."""
        teacher, student = comparable("Standardized", teacher_logits, student_logits, least=2)
        sides = [_standardize(logits) for logits in (teacher, student)]
        if labels is not None and takes_labels(self.loss):
            return self.loss(*sides, labels=labels)
        return self.loss(*sides)


def _standardize(logits: Any) -> Any:
    centred = logits - ops.mean(logits, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
    return centred * ops.rsqrt(ops.maximum(variance, _LEAST_VARIANCE))
