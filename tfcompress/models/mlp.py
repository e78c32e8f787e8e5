"""Dense layers with ReLU over the flattened sample: the smallest thing that learns, and the fastest to test with."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers

from tfcompress.models.arguments import check_whole, check_wholes


def mlp(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    widths: Sequence[int] | None = None,
    width: int = 128,
    depth: int = 2,
) -> keras.Model:
    """A multi-layer perceptron.

    Args:
        input_shape: Shape of one sample, of any rank.
        num_classes: Number of logits.
        widths: Units of each hidden layer; instead of `width` and `depth`.
        width: Units of every hidden layer, at least 1.
        depth: Number of hidden layers, at least 1.

    Returns:
        A functional model of `hidden1`, `hidden2`, ... and `logits`.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> mlp((8, 8, 1), 10, widths=(32, 16)).count_params()
        2778
    """
    check_whole("mlp.width", width)
    check_whole("mlp.depth", depth)
    units = (width,) * depth if widths is None else check_wholes("mlp.widths", widths)
    inputs = keras.Input(input_shape, name="sample")
    x = layers.Flatten(name="flatten")(inputs) if len(input_shape) > 1 else inputs
    for number, size in enumerate(units, 1):
        x = layers.Dense(size, activation="relu", kernel_initializer="he_normal", name=f"hidden{number}")(x)
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="mlp")
