"""A small VGG: pairs of 3x3 convolutions, each pair before a pooling; heavy for its accuracy, so easy to compress."""

from __future__ import annotations

import keras
from keras import layers

from tfcompress.errors import InvalidArgumentError
from tfcompress.models.arguments import check_image, check_whole
from tfcompress.models.blocks import conv_bn_relu, pooled_logits

_WIDEST = 8


def vgg(input_shape: tuple[int, ...], num_classes: int, *, depth: int = 6, width: int = 32) -> keras.Model:
    """VGG with batch normalization, and a global mean in the place of its large dense layers.

    Args:
        input_shape: `(height, width, channels)`, at least `2 ** (depth / 2)` pixels a side.
        num_classes: Number of logits.
        depth: Number of convolutions, even; every two are followed by a halving.
        width: Channels of the first pair; they double with each pair, up to 8 times `width`.

    Returns:
        A functional model of `stage1_1_...`, `stage1_2_...`, `stage1_pool`, `stage2_...`, `global_pool`, `logits`.

    Raises:
        InvalidArgumentError: If an argument is out of its range or the image is too small.

    Example:
        >>> vgg((8, 8, 1), 10, depth=4, width=8).count_params()
        4466

    Reference:
        Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014,
        https://arxiv.org/abs/1409.1556
    """
    check_whole("vgg.width", width)
    check_whole("vgg.depth", depth, least=2)
    if depth % 2:
        raise InvalidArgumentError("vgg.depth", "an even number", depth)
    check_image("vgg", input_shape, 2 ** (depth // 2))
    inputs = x = keras.Input(input_shape, name="image")
    for stage in range(depth // 2):
        filters = width * min(2**stage, _WIDEST)
        for number in (1, 2):
            x = conv_bn_relu(x, filters, name=f"stage{stage + 1}_{number}")
        x = layers.MaxPooling2D(2, name=f"stage{stage + 1}_pool")(x)
    return keras.Model(inputs, pooled_logits(x, num_classes), name="vgg")
