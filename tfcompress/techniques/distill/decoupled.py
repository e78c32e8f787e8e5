"""`Decoupled`: the two halves of soft targets, each with its own weight.

Invariant: with `labels` for the target class, `alpha = 1` and `beta` the teacher's share of the other classes, it is
`SoftTargets`. Left out: the paper's warm-up of the whole loss, which is a schedule of its weight.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from keras import ops

from tfcompress.techniques.distill.arguments import check_not_negative, check_temperature, check_weight
from tfcompress.techniques.distill.outputs import class_labels, comparable, mean_over_positions

# Stands for the logit of a class that takes no part. Its exponential is 0, and differences of two of it are finite.
_NO_PART = -1e30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoupled:
    """Decoupled knowledge distillation (DKD): how sure the teacher is, and how it ranks the wrong classes.

    The divergence of soft targets is that of "target class or not" plus that among the other classes, the latter times
    the teacher's doubt. A sure teacher's ranking of the wrong classes is thereby drowned; here it has a weight of its
    own. With two classes only the first part is left. It is 0 where both distributions agree.

    Args:
        alpha: Weight of the divergence between target class and all others, at least 0.
        beta: Weight of the divergence among the other classes, at least 0. The paper takes 8 where the teacher is sure,
            down to 0.5 where it is not.
        temperature: Softening of both distributions, in (0, inf).
        weight: Share of this loss beside the student's own, in [0, 1].

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> loss = Decoupled(beta=2.0)
        >>> teacher = ops.array([[3.0, 1.0, 0.0]])
        >>> float(loss(teacher, teacher, labels=ops.array([0]))[0])
        0.0

    Reference:
        Zhao et al., "Decoupled Knowledge Distillation", 2022, https://arxiv.org/abs/2203.08679
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0
    weight: float = 0.5

    def __post_init__(self):
        check_not_negative("Decoupled.alpha", self.alpha)
        check_not_negative("Decoupled.beta", self.beta)
        check_temperature("Decoupled", self.temperature)
        check_weight("Decoupled", self.weight)

    def __call__(self, teacher_logits: Any, student_logits: Any, labels: Any = None) -> Any:
        """Returns the loss of each sample, shape `(batch,)`.

        Args:
            teacher_logits: Shape `(batch, ..., classes)`.
            student_logits: Of the same shape.
            labels: Integer target classes, shape `(batch, ...)`, or one-hot; a label that is no class, such as -1, and
                no labels at all stand for the teacher's first choice.
        """
        teacher, student = comparable("Decoupled", teacher_logits, student_logits, least=2)
        is_target = ops.one_hot(class_labels("Decoupled", labels, teacher), teacher.shape[-1], dtype="bool")
        sure, ranks = _halves(teacher / self.temperature, is_target)
        student_sure, student_ranks = _halves(student / self.temperature, is_target)
        target = _divergence(sure, student_sure)
        others = _divergence(ranks, student_ranks)
        return self.temperature**2 * mean_over_positions(self.alpha * target + self.beta * others)


def _halves(logits: Any, is_target: Any) -> tuple[Any, Any]:
    """Logarithms of (target, any other), shape `(..., 2)`, and of the others among themselves, `(..., classes)`."""
    others = ops.where(is_target, ops.cast(_NO_PART, logits.dtype), logits)
    target = ops.sum(ops.where(is_target, logits, ops.zeros_like(logits)), axis=-1)
    # Both probabilities come from the one margin, so that neither is the logarithm of a rounded 0.
    margin = target - ops.logsumexp(others, axis=-1)
    sure = ops.stack([ops.log_sigmoid(margin), ops.log_sigmoid(-margin)], axis=-1)
    return sure, ops.log_softmax(others, axis=-1)


def _divergence(teacher: Any, student: Any) -> Any:
    """Kullback-Leibler divergence of two distributions by their logarithms, over the last axis."""
    return ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)
