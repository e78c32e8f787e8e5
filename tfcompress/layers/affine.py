"""A factor and an offset for each channel, as integers compute them best: a depthwise convolution of 1x1.

Each channel's factor is then the largest of its own kernel, so that rounding leaves it as it is, and the offset is a
bias of 32 bits. A product and a sum with two constants would round twice, to one scale for all channels.

Invariant: what `channel_affine` returns is `inputs * scale + offset` up to the last bits of float32. Left out: the
range of the result.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfcompress.layers.fake_quantize import fake_quantize_kernel


def channel_affine(inputs: Any, scale: Any, offset: Any, *, training: bool | None) -> Any:
    """`inputs * scale + offset`, in the form that becomes one integer operation.

    Args:
        inputs: Tensor `(batch, ..., channels)`; all sizes but the batch and one more must be known.
        scale: Float32 tensor `(channels,)`.
        offset: Float32 tensor `(channels,)`.
        training: Whether the result is trained through. Then the plain product is computed, whose gradients are exact.

    Returns:
        A float32 tensor of the shape of `inputs`.
    """
    inputs = tf.cast(inputs, tf.float32)
    if training:
        return inputs * scale + offset
    channels = inputs.shape[-1]
    shape = inputs.shape.as_list()
    kernel = fake_quantize_kernel(tf.reshape(scale, (1, 1, 1, channels)), bits=8, per_channel=True)
    maps = inputs if len(shape) == 4 else tf.reshape(inputs, _as_maps(shape))
    outputs = tf.nn.depthwise_conv2d(maps, tf.reshape(kernel, (1, 1, channels, 1)), (1, 1, 1, 1), "VALID") + offset
    return outputs if len(shape) == 4 else tf.reshape(outputs, [-1, *_known(shape, inputs)])


def _as_maps(shape: list[Any]) -> tuple[int, int, int, int]:
    """The shape `(batch, height, width, channels)` that holds a tensor of another rank."""
    if len(shape) == 2 or None in shape[1:]:
        return (-1, 1, 1, shape[-1])
    return (-1, shape[1], math.prod(shape[2:-1]), shape[-1])


def _known(shape: list[int | None], inputs: Any) -> list[Any]:
    """The sizes after the batch, read from the tensor where they are not known."""
    return [tf.shape(inputs)[at] if size is None else size for at, size in enumerate(shape) if at > 0]
