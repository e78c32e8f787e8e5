"""LeNet-5 as Caffe ships it: the network that the pruning literature measures itself on."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers

from tfcompress.models.arguments import check_image, check_whole, check_wholes

# Two 5x5 convolutions without padding, each followed by a halving, leave nothing of a smaller image.
_LEAST_SIDE = 16


def lenet(
    input_shape: tuple[int, ...], num_classes: int, *, filters: Sequence[int] = (20, 50), units: int = 500
) -> keras.Model:
    """LeNet-5 of Caffe: 431,080 parameters on 28x28x1 with 10 classes.

    Args:
        input_shape: `(height, width, channels)`, at least 16 pixels a side.
        num_classes: Number of logits.
        filters: Channels of the two 5x5 convolutions; neither has an activation.
        units: Units of the hidden dense layer, which has a ReLU.

    Returns:
        A functional model of `conv1`, `pool1`, `conv2`, `pool2`, `flatten`, `dense`, `logits`.

    Raises:
        InvalidArgumentError: If an argument is out of its range or the image is too small.

    Example:
        >>> lenet((28, 28, 1), 10).count_params()
        431080

    Reference:
        LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998,
        http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf; the sizes are those of Caffe's `examples/mnist`.
    """
    check_image("lenet", input_shape, _LEAST_SIDE)
    first, second = check_wholes("lenet.filters", filters, length=2)
    check_whole("lenet.units", units)
    inputs = keras.Input(input_shape, name="image")
    x = layers.Conv2D(first, 5, name="conv1")(inputs)
    x = layers.MaxPooling2D(2, name="pool1")(x)
    x = layers.Conv2D(second, 5, name="conv2")(x)
    x = layers.MaxPooling2D(2, name="pool2")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(units, activation="relu", name="dense")(x)
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="lenet")
