"""MobileNet (the first): depthwise-separable convolutions, thin enough for a microcontroller at small `alpha`."""

from __future__ import annotations

import math

import keras

from tfcompress.models.arguments import check_factor, check_image
from tfcompress.models.blocks import conv_bn_relu, depthwise_bn_relu, halvings, pooled_logits

_STEM = 32
# (channels, blocks) of each stage; every stage but the first starts with a halving, and so does the stem.
_STAGES = ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2))


def mobilenet(
    input_shape: tuple[int, ...], num_classes: int, *, alpha: float = 0.25, depth: float = 1.0
) -> keras.Model:
    """MobileNet; of its five halvings, small images take only the last ones.

    Args:
        input_shape: `(height, width, channels)`, at least 3 pixels a side.
        num_classes: Number of logits.
        alpha: Share of the original channels, above 0.
        depth: Share of the original number of blocks in each stage, above 0, rounded up.

    Returns:
        A functional model of `stem_...`, `block1_depthwise_...`, `block1_pointwise_...`, ..., `global_pool`, `logits`.

    Raises:
        InvalidArgumentError: If an argument is out of its range or the image is too small.

    Example:
        >>> mobilenet((96, 96, 3), 2, alpha=0.25).count_params()
        219058

    Reference:
        Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017,
        https://arxiv.org/abs/1704.04861
    """
    check_image("mobilenet", input_shape, 3)
    check_factor("mobilenet.alpha", alpha)
    check_factor("mobilenet.depth", depth)
    kept = halvings(input_shape, most=len(_STAGES), smallest_map=3)
    steps = [1] * (len(_STAGES) - kept) + [2] * kept  # Of the stem and of each stage after the first.
    inputs = keras.Input(input_shape, name="image")
    x = conv_bn_relu(inputs, max(1, int(_STEM * alpha)), strides=steps[0], name="stem")
    number = 0
    for stage, (channels, blocks) in enumerate(_STAGES):
        for block in range(math.ceil(blocks * depth)):
            number += 1
            strides = steps[stage] if stage > 0 and block == 0 else 1
            x = depthwise_bn_relu(x, strides=strides, name=f"block{number}_depthwise")
            x = conv_bn_relu(x, max(1, int(channels * alpha)), 1, name=f"block{number}_pointwise")
    return keras.Model(inputs, pooled_logits(x, num_classes), name="mobilenet")
