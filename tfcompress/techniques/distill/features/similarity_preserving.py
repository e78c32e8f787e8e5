"""`SimilarityPreserving`: which samples of a batch are alike.

Invariant: one value per sample, 0 where both find the same samples alike; shapes and scales of the features do not
matter. Left out: samples of other batches; each replica of a distributed training compares its own share.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from keras import ops

from tfcompress.techniques.distill.features.feature_loss import FeatureLoss
from tfcompress.techniques.distill.features.tensors import features, largest, unit_length, vectors


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimilarityPreserving(FeatureLoss):
    """Mean squared difference of the rows of similarity matrices: `mean((g(t) / |g(t)| - g(s) / |g(s)|)²)`.

    The row `g(f)` of a sample has its dot product with each sample of the batch, itself too. The mean over the batch
    is the paper's loss. It is 0 where the rows agree up to a positive number, as they do if one side's features are
    the other's, rotated, and in a batch of one sample.

    Args:
        weight: Weight of this loss, at least 0. The default is the paper's.

    Raises:
        InvalidArgumentError: If the weight is out of its range, or a side has no features.

    Example:
        >>> loss = SimilarityPreserving()
        >>> teacher = ops.array([[1.0, 0.0], [0.0, 1.0]])
        >>> [float(value) for value in loss(teacher, ops.array([[0.0, 0.0, 3.0], [3.0, 0.0, 0.0]]))]
        [0.0, 0.0]

    Reference:
        Tung, Mori, "Similarity-Preserving Knowledge Distillation", 2019, https://arxiv.org/abs/1907.09682
    """

    compares_samples: ClassVar[bool] = True

    weight: float = 3000.0

    def __call__(self, teacher_features: Any, student_features: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two tensors `(batch, ..., channels)`."""
        sides = features("SimilarityPreserving", teacher_features, student_features)
        teacher, student = (_similarities(vectors(side)) for side in sides)
        return ops.mean(ops.square(teacher - student), axis=-1)


def _similarities(tensor: Any) -> Any:
    tensor = tensor / largest(tensor, None)
    return unit_length(ops.matmul(tensor, ops.transpose(tensor)))
