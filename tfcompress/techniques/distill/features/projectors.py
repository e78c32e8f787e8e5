"""`Projector`: a student's features in the shape of its teacher's, by a layer that is trained along and thrown away.

Invariant: features that have the teacher's shape already come out as they are, without any weight. Left out: features
without positions for a teacher that has some, and sequences for images; which position is which nobody can know.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.interpolation import area_weights, triangle_weights
from tfcompress.techniques.distill.outputs import precise

Shape = tuple[int | None, ...]


class Projector(keras.layers.Layer):
    """Positions are resized, then channels mapped by a 1x1 convolution.

    Where there are fewer positions than the teacher's they are interpolated, where there are more they are averaged.

    Args:
        shape: The teacher's, without the batch: `(height, width, channels)`, `(steps, channels)` or `(channels,)`.
            Sizes of positions may be None; they are then taken as they are.

    Raises:
        InvalidArgumentError: If the student's features have fewer axes than the teacher's.

    Example:
        >>> Projector((4, 4, 6))(ops.ones((2, 8, 8, 3))).shape
        TensorShape([2, 4, 4, 6])

    Reference:
        Romero et al., "FitNets: Hints for Thin Deep Nets", 2014, https://arxiv.org/abs/1412.6550
    """

    def __init__(self, shape: Shape, **kwargs: Any):
        # Features are compared in float32, whatever the student computes in.
        super().__init__(dtype="float32", **kwargs)
        self.shape = tuple(shape)
        self._channels: keras.layers.Dense | None = None

    def build(self, input_shape: Shape) -> None:
        """Makes the kernel, where there is something to map."""
        received = tuple(input_shape[1:])
        if len(received) != len(self.shape) and len(self.shape) != 1:
            raise InvalidArgumentError(
                "student_layer",
                f"a layer whose features have the axes of the teacher's, {self.shape} without the batch",
                received,
            )
        if received[-1] is None or self.shape[-1] is None:
            raise InvalidArgumentError("student_layer", "layers with a known number of channels", received)
        if received[-1] != self.shape[-1]:
            # On the last axis alone a dense layer is a 1x1 convolution, whatever the number of axes.
            self._channels = keras.layers.Dense(self.shape[-1], dtype="float32", name="channels")
            self._channels.build(input_shape)
        self.built = True

    def call(self, features: Any) -> Any:
        """Features `(batch, ..., channels)` of the student, in the teacher's shape."""
        features = resized(precise(features), self.shape[:-1])
        return features if self._channels is None else self._channels(features)


def resized(features: Any, sizes: Shape) -> Any:
    """Features with other numbers of positions, or without any: their mean.

    Args:
        features: Shape `(batch, positions..., channels)`.
        sizes: One for each axis of positions, or none at all; None keeps an axis.

    Raises:
        InvalidArgumentError: If an axis that has to change has no known size.

    Example:
        >>> resized(ops.array([[[1.0], [3.0], [5.0], [7.0]]]), (2,)).numpy().tolist()
        [[[2.0], [6.0]]]
    """
    positions = tuple(features.shape[1:-1])
    if not sizes:
        return ops.mean(features, axis=tuple(range(1, len(positions) + 1))) if positions else features
    for axis, (old, new) in enumerate(zip(positions, sizes, strict=True), start=1):
        if new is None or new == old:
            continue
        if old is None:
            raise InvalidArgumentError("student_layer", "a layer whose features have known sizes", positions)
        weights = triangle_weights(old, new) if new > old else area_weights(old, new)
        moved = ops.moveaxis(features, axis, -1)
        features = ops.moveaxis(ops.matmul(moved, ops.cast(weights.T, features.dtype)), -1, axis)
    return features
