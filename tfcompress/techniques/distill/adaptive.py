"""Losses that count by what the networks say: how sure the teacher is, and whether it pulls where the label pulls.

Both are wrappers, as those of `weighting.py`.

Invariant: the factor of a sample has no gradient; a sample of which nothing counts has a loss and a gradient of 0. Left
out: weights by the step (`scheduled.py`), and weights that are learned (`learned_weights.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf
from keras import ops

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.outputs import comparable, integer_labels, mean_over_positions
from tfcompress.techniques.distill.weighting import AroundLoss


@dataclasses.dataclass(frozen=True)
class ByCertainty(AroundLoss):
    """Counts a loss by how sure the teacher is: 1 less the entropy of its probabilities, as a share of the largest.

    A teacher that knows nothing, with equal probabilities, counts 0, one that is certain counts 1.

    Args:
        loss: The loss that counts by it.

    Raises:
        InvalidArgumentError: If `loss` is no loss of class logits.

    Example:
        >>> from tfcompress.techniques.distill.losses import SoftTargets
        >>> teacher, student = ops.array([[0.0, 0.0], [60.0, 0.0]]), ops.array([[1.0, 0.0], [1.0, 0.0]])
        >>> plain, values = SoftTargets()(teacher, student), ByCertainty(SoftTargets())(teacher, student)
        >>> [round(float(share), 3) for share in values / plain]
        [0.0, 1.0]
    """

    def __call__(self, teacher_logits: Any, student_logits: Any, labels: Any = None) -> Any:
        """Returns the loss of each sample, shape `(batch,)`; labels are the inner loss's."""
        teacher, student = comparable("ByCertainty", teacher_logits, student_logits, least=2)
        logarithms = ops.log_softmax(teacher, axis=-1)
        entropy = -ops.sum(ops.exp(logarithms) * logarithms, axis=-1)
        largest = ops.log(ops.cast(teacher.shape[-1], teacher.dtype))
        share = ops.stop_gradient(ops.clip(1 - entropy / largest, 0, 1))
        return mean_over_positions(share * self._of_positions(teacher, student, labels))


@dataclasses.dataclass(frozen=True)
class WhereAgreeing(AroundLoss):
    """Counts a loss only where it pulls the student's logits to the side to which the label pulls them.

    That is where the gradients of both by the logits, `softmax(student) - label` for the label, have a cosine of at
    least 0. Where there is no label, such as -1, there is nothing to disagree with, and the loss counts.

    Args:
        loss: The loss that counts there.

    Raises:
        InvalidArgumentError: If there are no labels.

    Example:
        >>> from tfcompress.techniques.distill.losses import SoftTargets
        >>> teacher, student = ops.array([[4.0, 0.0], [4.0, 0.0]]), ops.array([[0.0, 0.0], [0.0, 0.0]])
        >>> values = WhereAgreeing(SoftTargets())(teacher, student, labels=ops.array([0, 1]))
        >>> [float(value) > 0 for value in values]
        [True, False]

    Reference:
        Du et al., "Adapting Auxiliary Losses Using Gradient Similarity", 2018, https://arxiv.org/abs/1812.02224
    """

    def __call__(self, teacher_logits: Any, student_logits: Any, labels: Any = None) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, for integer or one-hot labels."""
        teacher, student = comparable("WhereAgreeing", teacher_logits, student_logits, least=2)
        if labels is None:
            raise InvalidArgumentError(
                "WhereAgreeing.labels", "the true classes: of data with labels, and without `mix`", labels
            )
        labels = integer_labels("WhereAgreeing", labels, teacher)
        classes = student.shape[-1]
        with tf.GradientTape() as tape:
            tape.watch(student)
            values = self._of_positions(teacher, student, labels)
        pull = tape.gradient(values, student)
        own = ops.softmax(student, axis=-1) - ops.one_hot(labels, classes, dtype=student.dtype)
        unlabelled = ops.logical_or(labels < 0, labels >= classes)
        agrees = ops.logical_or(ops.sum(pull * own, axis=-1) >= 0, unlabelled)
        return mean_over_positions(ops.stop_gradient(ops.cast(agrees, student.dtype)) * values)
