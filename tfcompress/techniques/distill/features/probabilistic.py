"""`ProbabilisticTransfer`: which neighbours a sample would choose in the batch.

Invariant: one value per sample, 0 where the neighbours are chosen alike; shapes and scales of the features do not
matter. Left out: kernels but the cosine's, and samples of other batches; each replica of a distributed training
compares its own share.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from keras import ops

from tfcompress.techniques.distill.features.feature_loss import FeatureLoss
from tfcompress.techniques.distill.features.tensors import different_samples, features, unit_length, vectors

# Opposite features have a kernel of 0, which no logarithm takes.
_LEAST_KERNEL = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbabilisticTransfer(FeatureLoss):
    """Probabilistic knowledge transfer (PKT): `KL(p(t), p(s))`, `p(f)[j] = k(f, f[j]) / sum(k)`.

    The kernel is `k = (1 + cosine) / 2`, and `p` is over the other samples of the batch. It is 0 where the features of
    both sides have the same cosines, as they do if one's are the other's, rotated and scaled, and in a batch of one
    or two samples.

    Args:
        weight: Weight of this loss, at least 0. The default is about that of comparisons on CIFAR: 30,000 there, with
            a mean over batches of 64 where this is a sum.

    Raises:
        InvalidArgumentError: If the weight is out of its range, or a side has no features.

    Example:
        >>> loss = ProbabilisticTransfer()
        >>> teacher, student = ops.array([[1.0], [1.0], [-1.0]]), ops.array([[2.0, 0.0], [5.0, 0.0], [-3.0, 0.0]])
        >>> [round(float(value), 4) for value in loss(teacher, student)]
        [0.0, 0.0, 0.0]

    Reference:
        Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", 2018,
        https://arxiv.org/abs/1803.10837
    """

    compares_samples: ClassVar[bool] = True

    weight: float = 500.0

    def __call__(self, teacher_features: Any, student_features: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two tensors `(batch, ..., channels)`."""
        sides = features("ProbabilisticTransfer", teacher_features, student_features)
        (chosen, teacher), (_, student) = (_neighbours(vectors(side)) for side in sides)
        return ops.sum(chosen * (teacher - student), axis=-1)


def _neighbours(tensor: Any) -> tuple[Any, Any]:
    """Probabilities of the other samples and their logarithms, each `(batch, batch)`; a sample's own is 0 in both."""
    directions = unit_length(tensor)
    kernel = ops.maximum(0.5 + 0.5 * ops.matmul(directions, ops.transpose(directions)), _LEAST_KERNEL)
    others = different_samples(tensor)
    total = ops.sum(ops.where(others, kernel, ops.zeros_like(kernel)), axis=-1, keepdims=True)
    # A batch of one sample has no others.
    share = kernel / ops.maximum(total, _LEAST_KERNEL)
    logarithms = ops.log(ops.where(others, share, ops.ones_like(share)))
    return ops.where(others, share, ops.zeros_like(share)), logarithms
