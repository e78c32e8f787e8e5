"""DS-CNN: the depthwise-separable network of keyword spotting, made for spectrograms on a microcontroller."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from tfcompress.models.arguments import check_image, check_whole, check_wholes
from tfcompress.models.blocks import conv_bn_relu, depthwise_bn_relu, pooled_logits


def ds_cnn(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: int = 4,
    width: int = 64,
    kernel_size: Sequence[int] = (10, 4),
    strides: Sequence[int] = (2, 2),
) -> keras.Model:
    """One ordinary convolution, then depthwise-separable blocks of equal width.

    Args:
        input_shape: `(time, frequency, channels)` or `(height, width, channels)`, at least 2 a side.
        num_classes: Number of logits.
        depth: Number of separable blocks, at least 1.
        width: Channels of all layers.
        kernel_size: Of the first convolution; the default suits a spectrogram of 49x10, `(3, 3)` an image.
        strides: Of the first convolution.

    Returns:
        A functional model of `stem_...`, `block1_depthwise_...`, `block1_pointwise_...`, ..., `global_pool`, `logits`.

    Raises:
        InvalidArgumentError: If an argument is out of its range or the input is too small.

    Example:
        >>> ds_cnn((49, 10, 1), 12).count_params()
        24332

    Reference:
        Zhang et al., "Hello Edge: Keyword Spotting on Microcontrollers", 2017, https://arxiv.org/abs/1711.07128
    """
    check_image("ds_cnn", input_shape, 2)
    check_whole("ds_cnn.depth", depth)
    check_whole("ds_cnn.width", width)
    height, breadth = check_wholes("ds_cnn.kernel_size", kernel_size, length=2)
    steps = check_wholes("ds_cnn.strides", strides, length=2)
    inputs = keras.Input(input_shape, name="image")
    x = conv_bn_relu(inputs, width, (height, breadth), strides=steps, name="stem")
    for number in range(1, depth + 1):
        x = depthwise_bn_relu(x, name=f"block{number}_depthwise")
        x = conv_bn_relu(x, width, 1, name=f"block{number}_pointwise")
    return keras.Model(inputs, pooled_logits(x, num_classes), name="ds_cnn")
