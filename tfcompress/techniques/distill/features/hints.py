"""`Hints`: the student's features are to be the teacher's.

Invariant: one value per sample, 0 where both agree. Left out: what brings both to one shape, which is the projector's.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from keras import ops

from tfcompress.techniques.distill.features.feature_loss import FeatureLoss
from tfcompress.techniques.distill.features.tensors import features, unit_length
from tfcompress.techniques.distill.outputs import mean_over_positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hints(FeatureLoss):
    """Mean squared difference of the features: `mean((t - s)²)`.

    With `normalize` the channels of each position are one direction: `mean over positions of |t / |t| - s / |s||²`,
    which is twice 1 minus their cosine, in [0, 4], whatever the scale of either network. It is 0 where the features
    agree; with `normalize` also where one's are the other's, times a positive number at each position.

    Args:
        normalize: Whether only the directions count, not the lengths.
        weight: Weight of this loss, at least 0. It depends on the scale of the features: the paper trains on it alone
            first, comparisons on CIFAR take up to 100.

    Raises:
        InvalidArgumentError: If the weight is out of its range, or the shapes of the features differ.

    Example:
        >>> loss = Hints()
        >>> float(loss(ops.array([[1.0, 3.0]]), ops.array([[1.0, 1.0]]))[0])
        2.0

    Reference:
        Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, https://arxiv.org/abs/1412.6550
    """

    same_shape: ClassVar[bool] = True

    normalize: bool = False

    def __call__(self, teacher_features: Any, student_features: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two tensors `(batch, ..., channels)`."""
        teacher, student = features("Hints", teacher_features, student_features, alike=True)
        if self.normalize:
            apart = unit_length(teacher) - unit_length(student)
            return mean_over_positions(ops.sum(ops.square(apart), axis=-1))
        return mean_over_positions(ops.square(teacher - student))
