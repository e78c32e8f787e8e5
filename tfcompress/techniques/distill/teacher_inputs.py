"""From the data's inputs to a teacher's: other image sizes and pixel ranges.

Invariant: images are resized and mapped in float32 by the same numbers eagerly, in a graph and under XLA. Left out: any
other change of the inputs, for which a teacher is passed as a callable.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.data.dataset import check_range
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.techniques.distill.interpolation import triangle_weights
from tfcompress.techniques.distill.teacher_source import Source


@dataclasses.dataclass(frozen=True)
class ToTeacher:
    """Turns a batch of the data into one that the teacher takes: `resized(inputs) * scale + offset`.

    Args:
        scale: Factor of the pixel values.
        offset: What is added to them.
        size: Height and width in pixels, or None.

    Example:
        >>> ToTeacher(size=(1, 1))(tf.constant([[[[1.0], [3.0]]]])).numpy().ravel().tolist()
        [2.0]
    """

    scale: float = 1.0
    offset: float = 0.0
    size: tuple[int, int] | None = None

    def __call__(self, inputs: Any) -> Any:
        if self.size is not None:
            inputs = _resized(inputs, self.size)
        if (self.scale, self.offset) == (1.0, 0.0):
            return inputs
        return tf.cast(inputs, tf.float32) * self.scale + self.offset


def to_teacher(
    input_range: tuple[float, float] | None, data_range: tuple[float, float] | None, resize: Any
) -> ToTeacher:
    """`ToTeacher` for the arguments of `Teacher`.

    Raises:
        InvalidArgumentError: If one is out of its range.
    """
    size = None if resize is None else _checked_size(resize)
    if input_range is None and data_range is None:
        return ToTeacher(size=size)
    if input_range is None:
        raise InvalidArgumentError("data_range", "left out where `input_range` is, which it goes with", data_range)
    if data_range is None:
        raise InvalidArgumentError("data_range", "the range of the data when `input_range` is given", data_range)
    check_range("input_range", input_range)
    check_range("data_range", data_range)
    if tuple(input_range) == tuple(data_range):
        return ToTeacher(size=size)
    scale = (input_range[1] - input_range[0]) / (data_range[1] - data_range[0])
    return ToTeacher(scale, input_range[0] - data_range[0] * scale, size)


def check_fits(source: Source, inputs: Any) -> None:
    """Raises a `ModelError` if inputs, as `ToTeacher` gives them, have not the shapes that a source is known by."""
    for name, wanted in source.inputs.items():
        if isinstance(inputs, dict) and name in inputs:
            given = inputs[name]
        elif len(source.inputs) == 1 and len(keras.tree.flatten(inputs)) == 1:
            given = keras.tree.flatten(inputs)[0]
        else:
            continue  # Which input is which, the model says itself when it is called.
        shape = tuple(given.shape)[1:]
        if not _fits(shape, wanted, source.adjusts_rank):
            raise ModelError(
                f"The teacher, {source.name}, takes inputs of shape {_batch(wanted)}. Received: inputs of shape "
                f"{_batch(shape)}. {_remedy(shape, wanted)}"
            )


def _fits(shape: tuple[int | None, ...], wanted: tuple[int | None, ...], adjusts_rank: bool) -> bool:
    if len(shape) == len(wanted):
        return all(None in pair or pair[0] == pair[1] for pair in zip(shape, wanted, strict=True))
    # Keras takes a last axis of 1 as if it were not there, and the other way round.
    if not adjusts_rank:
        return False
    longer, shorter = sorted((shape, wanted), key=len, reverse=True)
    return longer[-1:] == (1,) and _fits(longer[:-1], shorter, False)


def _remedy(shape: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> str:
    if len(shape) == len(wanted) == 3 and None not in wanted[:2] and _fits(shape[2:], wanted[2:], False):
        return f"`Teacher(..., resize={wanted[:2]})` brings images to the size that it takes."
    return "Pass a callable that turns one into the other and calls the teacher."


def _batch(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join(['batch', *('any' if size is None else str(size) for size in shape)])})"


def _checked_size(resize: Any) -> tuple[int, int]:
    whole = isinstance(resize, list | tuple) and all(isinstance(n, int | np.integer) and n > 0 for n in resize)
    if not whole or len(resize) != 2 or any(isinstance(n, bool) for n in resize):
        raise InvalidArgumentError("resize", "None or (height, width), whole numbers of at least 1", resize)
    return int(resize[0]), int(resize[1])


def _resized(images: Any, size: tuple[int, int]) -> Any:
    shape = getattr(images, "shape", None)
    if shape is None or len(shape) != 4:
        received = type(images).__name__ if shape is None else tuple(shape)
        raise InvalidArgumentError(
            "resize", "None unless the inputs are images, of shape (batch, height, width, channels)", received
        )
    images = tf.cast(images, tf.float32)
    height, width = shape[1:3]
    if (height, width) == size:
        return images
    if None in (height, width):
        return tf.image.resize(images, size, antialias=True)
    # The same as that function, which XLA cannot compile, and faster.
    return tf.einsum("yh,bhwc,xw->byxc", triangle_weights(height, size[0]), images, triangle_weights(width, size[1]))
