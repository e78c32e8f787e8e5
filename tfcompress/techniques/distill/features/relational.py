"""`RelationalDistance`, `RelationalAngle`: how the samples of a batch lie among each other.

Invariant: one value per sample, 0 where one side's features are the other's, moved, rotated and scaled; the numbers of
features do not matter. All comes from dot products, so that there is no tensor of the size batch * batch * features.
Left out: relations of more than three samples, and samples of other batches; each replica of a distributed training
compares its own share.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from keras import ops

from tfcompress.techniques.distill.features.feature_loss import FeatureLoss
from tfcompress.techniques.distill.features.tensors import LEAST, different_samples, features, largest, vectors

# Of a squared distance by dot products, less than this part of the squared lengths is rounding.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelationalDistance(FeatureLoss):
    """Relational knowledge (RKD) of pairs: `mean(huber(d(t) / mean(d(t)) - d(s) / mean(d(s))))`.

    `d` are the distances of a sample from each of the batch, itself too, as in the authors' code; `mean(d)` is that of
    all pairs of two samples, and Huber's loss turns from the square into a line at 1. It is 0 where all distances of
    the student are the teacher's, times one positive number, and in a batch of one sample.

    Args:
        weight: Weight of this loss, at least 0. The default is the paper's for classification.

    Raises:
        InvalidArgumentError: If the weight is out of its range, or a side has no features.

    Example:
        >>> loss = RelationalDistance()
        >>> teacher, student = ops.array([[0.0], [1.0], [3.0]]), ops.array([[5.0, 0.0], [5.0, 2.0], [5.0, 6.0]])
        >>> [round(float(value), 4) for value in loss(teacher, student)]
        [0.0, 0.0, 0.0]

    Reference:
        Park et al., "Relational Knowledge Distillation", 2019, https://arxiv.org/abs/1904.05068
    """

    compares_samples: ClassVar[bool] = True

    weight: float = 25.0

    def __call__(self, teacher_features: Any, student_features: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two tensors `(batch, ..., channels)`."""
        sides = features("RelationalDistance", teacher_features, student_features)
        teacher, student = (_relative_distances(vectors(side)) for side in sides)
        return ops.mean(_huber(teacher - student), axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelationalAngle(FeatureLoss):
    """Relational knowledge (RKD) of triplets: `mean(huber(cos(t) - cos(s)))`, of the angles at each sample.

    At the sample `j`, `cos` is that of the angle between the directions to `i` and to `k`, for all `i` and `k` of the
    batch, as in the authors' code; a direction to `j` itself, or to a sample at the same place, makes it 0. It is 0
    where all angles agree, and in a batch of one or two samples. It takes a tensor of batch * batch * batch numbers.

    Args:
        weight: Weight of this loss, at least 0. The default is the paper's for classification.

    Raises:
        InvalidArgumentError: If the weight is out of its range, or a side has no features.

    Example:
        >>> loss = RelationalAngle()
        >>> teacher = ops.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> [round(float(value), 4) for value in loss(teacher, ops.array([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0]]))]
        [0.0, 0.0, 0.0]

    Reference:
        Park et al., "Relational Knowledge Distillation", 2019, https://arxiv.org/abs/1904.05068
    """

    compares_samples: ClassVar[bool] = True

    weight: float = 50.0

    def __call__(self, teacher_features: Any, student_features: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two tensors `(batch, ..., channels)`."""
        sides = features("RelationalAngle", teacher_features, student_features)
        teacher, student = (_cosines(vectors(side)) for side in sides)
        return ops.mean(_huber(teacher - student), axis=(1, 2))


def _relative_distances(tensor: Any) -> Any:
    """Distances in units of their mean, shape `(batch, batch)`; 0 where two samples are at one place."""
    _, squares, apart = _pairs(tensor)
    distances = ops.where(apart, ops.sqrt(squares), ops.zeros_like(squares))
    samples = ops.cast(ops.shape(tensor)[0], tensor.dtype)
    mean = ops.sum(distances) / ops.maximum(samples * (samples - 1), 1)
    return distances / ops.maximum(mean, LEAST)


def _cosines(tensor: Any) -> Any:
    """Of the angles at each sample between any two, shape `(batch, batch, batch)`: the first axis is the vertex."""
    products, squares, apart = _pairs(tensor)
    nearness = ops.where(apart, ops.rsqrt(squares), ops.zeros_like(squares))
    own = ops.expand_dims(ops.diagonal(products), (1, 2))
    directions = products[None] - products[:, :, None] - products[:, None, :] + own
    return directions * nearness[:, :, None] * nearness[:, None, :]


def _pairs(tensor: Any) -> tuple[Any, Any, Any]:
    """Dot products, squared distances and which pairs are apart, each `(batch, batch)`; the distance of others is 1."""
    tensor = tensor / largest(tensor, None)
    # A shift changes no distance, but costs digits.
    tensor = tensor - ops.mean(tensor, axis=0, keepdims=True)
    products = ops.matmul(tensor, ops.transpose(tensor))
    own = ops.diagonal(products)
    lengths = ops.expand_dims(own, 1) + own
    squares = lengths - 2 * products
    apart = ops.logical_and(different_samples(tensor), squares > ops.maximum(_ROUNDING * lengths, LEAST**2))
    # The root of 0 has no slope: `where` after the root would still multiply 0 by infinity.
    return products, ops.where(apart, squares, ops.ones_like(squares)), apart


def _huber(apart: Any) -> Any:
    apart = ops.abs(apart)
    near = ops.minimum(apart, 1)
    return 0.5 * ops.square(near) + apart - near
