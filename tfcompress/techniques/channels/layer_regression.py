"""One dense or convolutional layer fitted to the sums that another one makes: a ridge regression.

Invariant: only the kernel and the bias of the layer change; with what the other is given and all of its channels, they
stay as they are. Left out: which layers are fitted, and what they are given (`reconstruction.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfcompress.errors import DataError

# Rows of a regression: more of them change little. Where a system of all unknowns would take minutes, there are so few
# rows that one of these is solved.
_ROWS_PER_UNKNOWN, _LEAST_ROWS = 20, 20_000
_MOST_UNKNOWNS, _ROWS_FOR_MORE = 8192, 4096
# How much a kernel is held to what it was, as a share of the mean square of what it is multiplied with.
_HOLD = 1e-3


def fit_layer(
    layer: Any,
    whole: Any,
    kept: np.ndarray | None,
    before: Sequence[tf.Tensor],
    after: Sequence[tf.Tensor],
    rng: np.random.Generator,
) -> None:
    """Sets kernel and bias to the solution that is nearest to the sums of the whole and, less so, to what they were.

    Args:
        layer, whole: The layer in the smaller and in the whole network.
        kept: Which channels that the whole layer makes are there in the smaller one; all by default.
        before, after: What the layer is given in the whole network and in the smaller one, for each batch.
        rng: Chooses positions, where there are more than are needed.

    Raises:
        DataError: If what the layer is given, or makes, is not finite.
    """
    kernel = keras.ops.convert_to_numpy(layer.kernel).astype("float64")
    weights = kernel.reshape(-1, kernel.shape[-1])
    if layer.use_bias:
        weights = np.concatenate([weights, keras.ops.convert_to_numpy(layer.bias).astype("float64")[None]])
    chosen = slice(None) if kept is None else np.flatnonzero(kept)
    places = _places(layer, after, rng)

    def equations() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for given, left, at in zip(before, after, places, strict=True):
            rows = _multiplied(layer, left.numpy(), at).astype("float64")
            if layer.use_bias:
                rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)
            yield rows, _sums(whole, given)[at][:, chosen] - rows @ weights

    weights = weights + _solution(equations(), sum(len(at[0]) for at in places), len(weights), layer.name)
    layer.kernel.assign(weights[: math.prod(kernel.shape[:-1])].reshape(kernel.shape))
    if layer.use_bias:
        layer.bias.assign(weights[-1])


def _places(layer: Any, given: Sequence[tf.Tensor], rng: np.random.Generator) -> list[tuple[np.ndarray, ...]]:
    """For each batch the places that are looked at of what a layer makes, as indices of all axes but the channels."""
    unknowns = math.prod(layer.kernel.shape[:-1])
    rows = max(_LEAST_ROWS, _ROWS_PER_UNKNOWN * unknowns) if unknowns <= _MOST_UNKNOWNS else _ROWS_FOR_MORE
    places = []
    for batch in given:
        shape = layer.compute_output_shape(tuple(batch.shape))[:-1]
        chosen = np.arange(math.prod(shape))
        if len(chosen) > rows / len(given):
            chosen = np.sort(rng.choice(len(chosen), math.ceil(rows / len(given)), replace=False))
        places.append(np.unravel_index(chosen, shape))
    return places


def _sums(layer: Any, given: tf.Tensor) -> np.ndarray:
    """What a layer computes before its activation, float32."""
    given, kernel = tf.cast(given, tf.float32), tf.cast(keras.ops.convert_to_tensor(layer.kernel), tf.float32)
    if isinstance(layer, layers.Dense):
        sums = keras.ops.matmul(given, kernel)
    else:
        options = {"strides": layer.strides, "padding": layer.padding, "dilation_rate": layer.dilation_rate}
        sums = keras.ops.conv(given, kernel, **options, data_format="channels_last")
    return (sums + tf.cast(layer.bias.value, tf.float32) if layer.use_bias else sums).numpy()


def _multiplied(layer: Any, given: np.ndarray, places: Sequence[np.ndarray]) -> np.ndarray:
    """What a layer multiplies with its kernel at some places of what it makes, `(places, unknowns)`."""
    if isinstance(layer, layers.Dense):
        return given[tuple(places)]
    dimensions = len(layer.kernel_size)
    padding, windows = [(0, 0)], [places[0].reshape(-1, *[1] * dimensions)]
    for axis in range(dimensions):
        size, stride, step = (getattr(layer, name)[axis] for name in ("kernel_size", "strides", "dilation_rate"))
        reach, length = (size - 1) * step + 1, given.shape[axis + 1]
        # As TensorFlow has it: zeros so that each position has its window, the odd one at the end.
        zeros = max((math.ceil(length / stride) - 1) * stride + reach - length, 0) if layer.padding == "same" else 0
        padding.append((zeros // 2, zeros - zeros // 2))
        along = [1] * dimensions
        along[axis] = size
        starts = places[axis + 1].reshape(-1, *[1] * dimensions) * stride
        windows.append(starts + np.arange(size).reshape(1, *along) * step)
    return np.pad(given, [*padding, (0, 0)])[tuple(windows)].reshape(len(places[0]), -1)


def _solution(equations: Iterable[tuple[np.ndarray, np.ndarray]], count: int, unknowns: int, name: str) -> np.ndarray:
    """The `x` of least `|rows @ x - missing|^2 + held * |x|^2`, of shape `(unknowns, outputs)`.

    Args:
        equations: Parts of `rows`, `(count, unknowns)`, and of `missing`, `(count, outputs)`.
        count, unknowns: Sizes. The system that is solved has the smaller of them.
        name: The layer, for the error.
    """
    is_wide = count < unknowns
    if is_wide:
        rows, missing = (np.concatenate(parts) for parts in zip(*equations, strict=True))
        products, right = rows @ rows.T, missing
    else:
        products, right = np.zeros((unknowns, unknowns)), np.zeros(())
        for rows, missing in equations:
            products += rows.T @ rows
            right = right + rows.T @ missing
    if not (np.isfinite(products).all() and np.isfinite(right).all()):
        raise DataError(
            f"Layer {name!r} cannot be fitted: what it is given, or makes, is not finite. Received: NaN or infinity in "
            "the data, or in the weights before it."
        )
    products[np.diag_indices(len(products))] += _HOLD * np.trace(products) / unknowns or 1.0
    solved = np.linalg.solve(products, right)
    return rows.T @ solved if is_wide else solved
