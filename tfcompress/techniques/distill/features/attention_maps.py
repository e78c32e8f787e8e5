"""`AttentionMaps`: what each token of a transformer looks at.

Invariant: one value per sample, 0 where both sides' probabilities agree. Left out: scores before the softmax, the
relations of values (MiniLM's second loss), and padding: a masked query counts as any other.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from keras import ops

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.features.feature_loss import FeatureLoss
from tfcompress.techniques.distill.features.tensors import check_samples
from tfcompress.techniques.distill.outputs import mean_over_positions, precise

# Masked keys have a probability of 0, which no logarithm takes.
_LEAST_PROBABILITY = 1e-7


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionMaps(FeatureLoss):
    """Kullback-Leibler divergence of attention probabilities, `mean(KL(t, s))` over heads and queries.

    Both sides are what attention layers give as their scores, after the softmax over the keys. Where the numbers of
    heads differ, the probabilities of each side are averaged over its heads first, since no head is another's. It is 0
    where the probabilities agree. Below 1e-7 they count as that.

    Args:
        weight: Weight of this loss, at least 0. The default is the papers'.

    Raises:
        InvalidArgumentError: If the weight is out of its range, or the shapes are not as above.

    Example:
        >>> loss = AttentionMaps()
        >>> teacher, student = ops.array([[[[1.0, 0.0]]]]), ops.array([[[[0.5, 0.5]]]])
        >>> round(float(loss(teacher, student)[0]), 4)
        0.6931

    Reference:
        Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
        Transformers", 2020, https://arxiv.org/abs/2002.10957; Sun et al., "MobileBERT", 2020,
        https://arxiv.org/abs/2004.02984
    """

    of_attention: ClassVar[bool] = True

    def __call__(self, teacher_features: Any, student_features: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two tensors `(batch, heads, queries, keys)`."""
        teacher, student = self._comparable(teacher_features, student_features)
        if teacher.shape[1] != student.shape[1]:
            teacher, student = (ops.mean(side, axis=1) for side in (teacher, student))
        gain = ops.log(ops.maximum(teacher, _LEAST_PROBABILITY)) - ops.log(ops.maximum(student, _LEAST_PROBABILITY))
        return mean_over_positions(ops.sum(teacher * gain, axis=-1))

    def _comparable(self, teacher: Any, student: Any) -> tuple[Any, Any]:
        teacher, student = precise(teacher), precise(student)
        for side, tensor in (("teacher", teacher), ("student", student)):
            if len(tensor.shape) != 4:
                expected = "attention probabilities of shape (batch, heads, queries, keys)"
                raise InvalidArgumentError(f"AttentionMaps.{side}_features", expected, tuple(tensor.shape))
        name = "AttentionMaps.student_features"
        check_samples(name, student, teacher)
        for axis, of in ((2, "queries"), (3, "keys")):
            count, expected = student.shape[axis], teacher.shape[axis]
            if None not in (count, expected) and count != expected:
                raise InvalidArgumentError(name, f"of {expected} {of}, as the teacher's are", tuple(student.shape))
        return teacher, student
