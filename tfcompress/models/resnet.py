"""Residual networks for small images; depth 8 is the image classification reference of MLPerf Tiny.

Invariant: with depth 8 and width 16 the layers, their order and their weights' shapes are those of the reference, so
its weights can be set as they are. That is why these convolutions have biases, unlike the other families'. Left out:
the reference's L2 penalty, which belongs to training, and its softmax.
"""

from __future__ import annotations

import keras
from keras import layers

from tfcompress.errors import InvalidArgumentError
from tfcompress.models.arguments import check_image, check_whole
from tfcompress.models.blocks import bn_relu, pooled_logits

_STAGES = 3


def resnet(input_shape: tuple[int, ...], num_classes: int, *, depth: int = 8, width: int = 16) -> keras.Model:
    """A residual network of three stages of `(depth - 2) / 6` blocks each.

    Args:
        input_shape: `(height, width, channels)`, at least 4 pixels a side.
        num_classes: Number of logits.
        depth: Layers with weights, shortcuts aside: 8, 14, 20, 32, 44, 56, ... (6n + 2).
        width: Channels of the first stage; the second and third have 2 and 4 times as many.

    Returns:
        A functional model of `stem_...`, `stage1_block1_...`, ..., `global_pool`, `logits`; 78,666 parameters with
        depth 8 and width 16 on 32x32x3 with 10 classes.

    Raises:
        InvalidArgumentError: If an argument is out of its range or the image is too small.

    Example:
        >>> resnet((32, 32, 3), 10, depth=8).count_params()
        78666

    Reference:
        He et al., "Deep Residual Learning for Image Recognition", 2015, https://arxiv.org/abs/1512.03385;
        Banbury et al., "MLPerf Tiny Benchmark", 2021, https://arxiv.org/abs/2106.07597
    """
    check_image("resnet", input_shape, 4)
    check_whole("resnet.width", width)
    check_whole("resnet.depth", depth, least=8)
    if depth % 6 != 2:
        raise InvalidArgumentError("resnet.depth", "8, 14, 20, 32, 44, 56, or another 6n + 2", depth)
    inputs = keras.Input(input_shape, name="image")
    x = bn_relu(_conv(inputs, width, name="stem_conv"), name="stem")
    for stage in range(_STAGES):
        for block in range((depth - 2) // 6):
            shrinks = stage > 0 and block == 0
            x = _block(x, width * 2**stage, strides=2 if shrinks else 1, name=f"stage{stage + 1}_block{block + 1}")
    return keras.Model(inputs, pooled_logits(x, num_classes), name=f"resnet{depth}")


def _block(x: keras.KerasTensor, filters: int, *, strides: int, name: str) -> keras.KerasTensor:
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""
    y = bn_relu(_conv(x, filters, strides=strides, name=f"{name}_1_conv"), name=f"{name}_1")
    y = _conv(y, filters, name=f"{name}_2_conv")
    if strides > 1:
        x = _conv(x, filters, 1, strides=strides, name=f"{name}_shortcut_conv")
    y = layers.BatchNormalization(name=f"{name}_2_bn")(y)
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))


def _conv(x: keras.KerasTensor, filters: int, size: int = 3, *, strides: int = 1, name: str) -> keras.KerasTensor:
    return layers.Conv2D(filters, size, strides=strides, padding="same", kernel_initializer="he_normal", name=name)(x)
