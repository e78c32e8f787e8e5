"""A plain stack of 3x3 convolutions: what most students are, since nothing in it resists pruning or quantization."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers

from tfcompress.errors import InvalidArgumentError
from tfcompress.models.arguments import check_image, check_whole, check_wholes
from tfcompress.models.blocks import conv_bn_relu, halvings, pooled_logits

# Below this many pixels a side, halving again costs more accuracy than it saves.
_SMALLEST_MAP = 4
_MOST_HALVINGS = 5


def cnn(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    widths: Sequence[int] | None = None,
    width: int = 16,
    depth: int = 4,
    strides: Sequence[int] | None = None,
    downsample: str = "max_pool",
) -> keras.Model:
    """Convolution, batch normalization, ReLU, again and again; then a global mean and a dense layer.

    Args:
        input_shape: `(height, width, channels)`, at least 2 pixels a side.
        num_classes: Number of logits.
        widths: Channels of each convolution; instead of `width` and `depth`.
        width: Channels of the first convolution; they double where the image is halved.
        depth: Number of convolutions, at least 1.
        strides: Step of each convolution, 1 or more. By default the image is halved until its shorter side is below 8
            pixels, at most 5 times and at most `depth - 1` times, at even distances.
        downsample: `"max_pool"` (a pooling layer before a convolution whose step is above 1) or `"stride"` (the
            convolution itself makes the step); both take the same multiply-adds.

    Returns:
        A functional model of `block1_conv`, `block1_bn`, `block1_relu`, `block2_...`, `global_pool`, `logits`.

    Raises:
        InvalidArgumentError: If an argument is out of its range or the image is too small for the strides.

    Example:
        >>> cnn((28, 28, 1), 10, widths=(8, 12, 16, 16, 16)).count_params()
        7714
    """
    check_image("cnn", input_shape, 2)
    check_whole("cnn.width", width)
    check_whole("cnn.depth", depth)
    if downsample not in ("max_pool", "stride"):
        raise InvalidArgumentError("cnn.downsample", "'max_pool' or 'stride'", downsample)
    if widths is not None:
        widths = check_wholes("cnn.widths", widths)
        depth = len(widths)
    steps = _even_strides(input_shape, depth) if strides is None else check_wholes("cnn.strides", strides, length=depth)
    channels = _doubling_widths(width, steps) if widths is None else widths
    inputs = x = keras.Input(input_shape, name="image")
    for number, (filters, step) in enumerate(zip(channels, steps, strict=True), 1):
        if step > 1 and downsample == "max_pool":
            if min(x.shape[1:3]) < step:
                raise InvalidArgumentError("input_shape", f"large enough to be divided by strides {steps}", input_shape)
            x = layers.MaxPooling2D(step, name=f"block{number}_pool")(x)
            step = 1
        x = conv_bn_relu(x, filters, strides=step, name=f"block{number}")
    return keras.Model(inputs, pooled_logits(x, num_classes), name="cnn")


def _even_strides(input_shape: tuple[int, ...], depth: int) -> tuple[int, ...]:
    count = halvings(input_shape, most=min(_MOST_HALVINGS, depth - 1), smallest_map=_SMALLEST_MAP)
    halved = {(number + 1) * depth // (count + 1) for number in range(count)}
    return tuple(2 if index in halved else 1 for index in range(depth))


def _doubling_widths(width: int, strides: Sequence[int]) -> tuple[int, ...]:
    widths = []
    for index, step in enumerate(strides):
        # The first convolution has `width` channels, also where it makes a step itself.
        width *= 2 if step > 1 and index > 0 else 1
        widths.append(width)
    return tuple(widths)
