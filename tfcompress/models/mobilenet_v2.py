"""MobileNetV2: inverted residual blocks, thin between and wide inside."""

from __future__ import annotations

import math

import keras
from keras import layers

from tfcompress.models.arguments import check_factor, check_image
from tfcompress.models.blocks import conv_bn_relu, depthwise_bn_relu, halvings, pooled_logits

_STEM, _HEAD = 32, 1280
# (expansion, channels, blocks, whether the stage starts with a halving)
_STAGES = (
    (1, 16, 1, False),
    (6, 24, 2, True),
    (6, 32, 3, True),
    (6, 64, 4, True),
    (6, 96, 3, False),
    (6, 160, 3, True),
    (6, 320, 1, False),
)
_MOST_HALVINGS = 5  # Four stages and the stem.


def mobilenet_v2(
    input_shape: tuple[int, ...], num_classes: int, *, alpha: float = 0.35, depth: float = 1.0
) -> keras.Model:
    """MobileNetV2; of its five halvings, small images take only the last ones.

    Args:
        input_shape: `(height, width, channels)`, at least 3 pixels a side.
        num_classes: Number of logits.
        alpha: Share of the original channels, above 0, rounded to a multiple of 8; the last convolution keeps its 1280
            channels where `alpha` is below 1.
        depth: Share of the original number of blocks in each stage, above 0, rounded up.

    Returns:
        A functional model of `stem_...`, `block1_depthwise_...`, `block1_project_...`, `block2_expand_...`, ...,
        `head_...`, `global_pool`, `logits`.

    Raises:
        InvalidArgumentError: If an argument is out of its range or the image is too small.

    Example:
        >>> mobilenet_v2((32, 32, 3), 10, alpha=0.35).count_params()
        423018

    Reference:
        Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018,
        https://arxiv.org/abs/1801.04381
    """
    check_image("mobilenet_v2", input_shape, 3)
    check_factor("mobilenet_v2.alpha", alpha)
    check_factor("mobilenet_v2.depth", depth)
    left_out = _MOST_HALVINGS - halvings(input_shape, most=_MOST_HALVINGS, smallest_map=3)
    inputs = keras.Input(input_shape, name="image")
    x = conv_bn_relu(inputs, _multiple_of_8(_STEM * alpha), strides=1 if left_out else 2, name="stem")
    number, halving = 0, 1
    for expansion, channels, blocks, halves in _STAGES:
        for block in range(math.ceil(blocks * depth)):
            number += 1
            strides = 1
            if halves and block == 0:
                strides = 1 if halving < left_out else 2
                halving += 1
            x = _block(x, _multiple_of_8(channels * alpha), expansion=expansion, strides=strides, name=f"block{number}")
    x = conv_bn_relu(x, _multiple_of_8(_HEAD * max(1.0, alpha)), 1, name="head")
    return keras.Model(inputs, pooled_logits(x, num_classes), name="mobilenet_v2")


def _block(x: keras.KerasTensor, filters: int, *, expansion: int, strides: int, name: str) -> keras.KerasTensor:
    """Widens, filters each channel, and projects back without an activation; adds its input where shapes agree."""
    channels, y = x.shape[-1], x
    if expansion > 1:
        y = conv_bn_relu(y, channels * expansion, 1, name=f"{name}_expand")
    y = depthwise_bn_relu(y, strides=strides, name=f"{name}_depthwise")
    y = layers.Conv2D(filters, 1, use_bias=False, kernel_initializer="he_normal", name=f"{name}_project_conv")(y)
    y = layers.BatchNormalization(name=f"{name}_project_bn")(y)
    return layers.Add(name=f"{name}_add")([x, y]) if strides == 1 and channels == filters else y


def _multiple_of_8(value: float) -> int:
    """The nearest multiple of 8, at least 8 and at most a tenth below `value`, as in the authors' code."""
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded
