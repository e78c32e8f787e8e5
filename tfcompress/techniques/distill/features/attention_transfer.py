"""`AttentionTransfer`: where in a map the network looks.

Invariant: one value per sample, 0 where both look at the same positions; neither the numbers of channels nor the scale
of the features matter. Left out: attention by gradients of the loss, the paper's second kind.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from keras import ops

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.features.feature_loss import FeatureLoss
from tfcompress.techniques.distill.features.tensors import features, largest, of_one_size, unit_length, vectors


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionTransfer(FeatureLoss):
    """Mean squared difference of attention maps: `mean((a(t) / |a(t)| - a(s) / |a(s)|)²)`, `a(f) = sum(|f|^p)`.

    The sum is over the channels, the mean and the length over the positions. Where the maps have different sizes, the
    larger is averaged over areas down to the smaller. It is 0 where one map of attention is the other, times a
    positive number.

    Args:
        power: The `p` above, at least 1. The larger, the more the strongest channels count.
        weight: Weight of this loss, at least 0. The default is the paper's.

    Raises:
        InvalidArgumentError: If an argument is out of its range, or the features have no positions, or one side has
            more axes than the other.

    Example:
        >>> loss = AttentionTransfer()
        >>> teacher, student = ops.array([[[2.0, 0.0], [0.0, 0.0]]]), ops.array([[[0.0], [3.0]]])
        >>> float(loss(teacher, student)[0])
        1.0

    Reference:
        Zagoruyko, Komodakis, "Paying More Attention to Attention", 2017, https://arxiv.org/abs/1612.03928
    """

    power: float = 2.0
    weight: float = 1000.0

    def __post_init__(self):
        if not 1 <= self.power < float("inf"):
            raise InvalidArgumentError("AttentionTransfer.power", "a number of at least 1", self.power)
        super().__post_init__()

    def __call__(self, teacher_features: Any, student_features: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two tensors `(batch, positions..., channels)`."""
        sides = features("AttentionTransfer", teacher_features, student_features, positions=True)
        teacher, student = (self._attention(side) for side in sides)
        teacher, student = of_one_size(teacher, student)
        apart = unit_length(vectors(teacher)) - unit_length(vectors(student))
        return ops.mean(ops.square(apart), axis=-1)

    def _attention(self, tensor: Any) -> Any:
        """How much of a sample is at each position, up to a factor: shape `(batch, positions..., 1)`."""
        share = ops.abs(tensor) / largest(tensor, tuple(range(1, len(tensor.shape))))
        return ops.sum(ops.power(share, self.power), axis=-1, keepdims=True)
