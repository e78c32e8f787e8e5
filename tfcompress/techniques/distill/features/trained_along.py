"""What losses with trainable parts have in common.

Such a loss is a recipe only: its `trained_along(teacher_shape, student_shape)` makes the Keras layer that computes it,
`layer(teacher_features, student_features) -> (batch,)`, whose weights train with the student and are thrown away.

Invariant: the layer has all its weights before its first call, and computes in float32 whatever the policy. Left out:
saving it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.features.feature_loss import FeatureLoss


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedAlong(FeatureLoss):
    """Base of losses that take part in training: calling one itself is an error that says how it is called."""

    def __call__(self, teacher_features: Any, student_features: Any) -> Any:
        """Raises an `InvalidArgumentError`: the loss is computed by the layer of `trained_along`."""
        name = type(self).__name__
        raise InvalidArgumentError(
            name,
            f"called as `{name}().trained_along(teacher_shape, student_shape)(teacher_features, student_features)`, "
            "with shapes without the batch, since it has weights to train; `Distiller` does so",
            "a call without them",
        )


def channels_of(name: str, shape: Any) -> int:
    """The last number of a shape without the batch.

    Raises:
        InvalidArgumentError: If it is no shape, or that number is not known.

    Example:
        >>> channels_of("shape", (None, 8))
        8
    """
    if not isinstance(shape, tuple | list) or not shape or not isinstance(shape[-1], int) or shape[-1] < 1:
        raise InvalidArgumentError(name, "a shape (..., channels) without the batch, of known channels", shape)
    return shape[-1]


def dense(inputs: int, units: int, **options: Any) -> keras.layers.Dense:
    """A built layer for the last axis, which on maps is a 1x1 convolution, in float32."""
    layer = keras.layers.Dense(units, dtype="float32", **options)
    layer.build((None, inputs))
    return layer
