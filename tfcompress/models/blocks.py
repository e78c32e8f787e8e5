"""The few pieces that the convolutional families are made of.

Invariant: a convolution is followed by batch normalization and ReLU, and has no bias where normalization has one; layer
names are `<name>_conv`, `<name>_bn`, `<name>_relu`. Left out: blocks that only one family has.
"""

from __future__ import annotations

import keras
from keras import layers


def conv_bn_relu(
    x: keras.KerasTensor, filters: int, kernel_size: int | tuple[int, int] = 3, *, strides=1, name: str
) -> keras.KerasTensor:
    """Convolution that keeps the size (divided by `strides`), batch normalization, ReLU.

    Args:
        x: Shape `(batch, height, width, channels)`.
        filters: Output channels.
        kernel_size: Side of the kernel, in pixels.
        strides: Step of the kernel, in pixels.
        name: What the three layers' names start with.

    Returns:
        Shape `(batch, ceil(height / strides), ceil(width / strides), filters)`.
    """
    x = layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return bn_relu(x, name=name)


def depthwise_bn_relu(x: keras.KerasTensor, *, strides: int = 1, name: str) -> keras.KerasTensor:
    """A 3x3 convolution of each channel by itself, batch normalization, ReLU; shapes as for `conv_bn_relu`."""
    x = layers.DepthwiseConv2D(
        3, strides=strides, padding="same", use_bias=False, depthwise_initializer="he_normal", name=f"{name}_conv"
    )(x)
    return bn_relu(x, name=name)


def bn_relu(x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
    """Batch normalization and ReLU."""
    return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_bn")(x))


def pooled_logits(x: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    """Mean over height and width, then a dense layer: `(batch, height, width, channels)` to `(batch, num_classes)`."""
    x = layers.GlobalAveragePooling2D(name="global_pool")(x)
    return layers.Dense(num_classes, name="logits")(x)


def halvings(input_shape: tuple[int, ...], *, most: int, smallest_map: int) -> int:
    """How often an image can be halved, at most `most` times, with its shorter side at least `smallest_map` after it.

    Example:
        >>> halvings((28, 28, 1), most=5, smallest_map=4)
        2
    """
    side, count = min(input_shape[:2]), 0
    while count < most and side >= 2 * smallest_map:
        side, count = side // 2, count + 1
    return count
