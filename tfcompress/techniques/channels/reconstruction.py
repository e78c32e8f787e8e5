"""Kernels of a network that has just lost channels, fitted anew to what the whole network computes: least squares in
the place of training.

Each kernel is the solution of a linear regression: from what its layer is given in the smaller network, the sums that
the layer makes in the whole one. Layers are fitted in the order in which they run, so that each makes up for what those
before it left, too. Neither labels nor gradients are needed.

Invariant: only kernels and biases of dense and convolutional layers change, and moving statistics of
BatchNormalization; none that is not trainable. A kernel with zeros or of few values, which other techniques made, stays
as it is. Left out: layers with a kernel for each channel or group of channels, transposed, causal and recurrent ones,
attention, and layers that are used more than once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfcompress.errors import DataError
from tfcompress.graph.channels import ChannelGraph
from tfcompress.graph.layer_kinds import CONVOLUTIONS, has_plain_weights
from tfcompress.graph.shrink import shrink
from tfcompress.graph.trace import Call, Ref, Trace, trace
from tfcompress.techniques.channels.forward import in_inference, values_of_inputs
from tfcompress.techniques.channels.statistics import set_statistics
from tfcompress.techniques.constraints import constraint_of_layer
from tfcompress.techniques.shared_values import holds_few_values

# Bytes of what is between the layers of both networks, at most: 224 x 224 pixels of 64 channels are 13 MB a sample.
_MOST_BYTES = 2e9
# Rows of a regression: more of them change little. Where a system of all unknowns would take minutes, there are so few
# rows that one of these is solved.
_ROWS_PER_UNKNOWN, _LEAST_ROWS = 20, 20_000
_MOST_UNKNOWNS, _ROWS_FOR_MORE = 8192, 4096
# How much a kernel is held to what it was, as a share of the mean square of what it is multiplied with.
_HOLD = 1e-3


def fit_kernels(
    graph: ChannelGraph, removed: np.ndarray, small: keras.Model, inputs: Sequence[Any], *, seed: int = 0
) -> list[str]:
    """Fits the kernels of a smaller model to what the whole one computes, in place.

    Args:
        graph: The channels of the whole model.
        removed: A boolean for each unit: whether it is gone.
        small: What `shrink` made of both.
        inputs: Batches of real inputs, in the model's own structure. Of more samples than 2 GB of what is between the
            layers hold, the first are used.
        seed: Which positions of large maps are looked at.

    Returns:
        The names of the layers that were fitted.

    Raises:
        DataError: If there is no batch, or what a model makes of them is not finite.

    Example:
        >>> from tfcompress.graph.channels import channel_graph
        >>> model = keras.Sequential([keras.Input((4,)), layers.Dense(8, name="x"), layers.Dense(2, name="y")])
        >>> graph, x = channel_graph(model), np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> removed = np.arange(8) < 4
        >>> small = shrink(graph, removed)
        >>> before = np.mean(np.square(small(x) - model(x)))
        >>> fit_kernels(graph, removed, small, [x])
        ['y']
        >>> bool(np.mean(np.square(small(x) - model(x))) < before / 2)
        True

    Reference:
        He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", 2017, section 3,
        https://arxiv.org/abs/1707.06168
    """
    # A copy that has lost nothing has the same calls as `small`, in the same order.
    whole, fewer = trace(shrink(graph, np.zeros(graph.num_units, bool))), trace(small)
    chosen = _within_memory(whole, inputs)
    stays = np.append(~removed, True)
    made = {id(one.variable): stays[one.units] for one in graph.members if one.makes}
    kept = {call.operation.name: made.get(id(getattr(call.operation, "kernel", None))) for call in graph.traced.calls}
    uses = Counter(call.operation.name for call in fewer.calls)
    rng = np.random.default_rng(seed)
    fitted: list[str] = []
    changed: set[int] = set()
    for (at, call, values), (_, of_small, small_values) in zip(_walk(whole, chosen), _walk(fewer, chosen), strict=True):
        layer = of_small.operation
        is_given_others = any(ref.call in changed for ref in of_small.sources)
        if is_given_others or _sizes(layer) != _sizes(call.operation):
            changed.add(at)
        if not is_given_others or uses[layer.name] > 1:
            continue
        if _can_be_fitted(layer):
            before, after = values[call.sources[0]], small_values[of_small.sources[0]]
            _fit(layer, call.operation, kept[layer.name], before, after, rng)
            fitted.append(layer.name)
        elif isinstance(layer, layers.BatchNormalization) and layer.trainable:
            set_statistics(layer, small_values[of_small.sources[0]])
    return fitted


def _walk(traced: Trace, inputs: Sequence[Any]) -> Iterator[tuple[int, Call, dict[Ref, list[tf.Tensor]]]]:
    """Each call just before it runs, with what is there then: a tensor for each batch, as long as a call will take it.

    The next call runs, with the weights that it has by then, when the caller asks for the one after it.
    """
    last = {ref: at for at, call in enumerate(traced.calls) for ref in call.sources}
    given = [values_of_inputs(traced, batch) for batch in inputs]
    values = {ref: [batch[ref] for batch in given] for ref in given[0]}
    for at, call in enumerate(traced.calls):
        if Ref(at) in values:
            continue
        yield at, call, values
        batches = [
            in_inference(call, {ref: each[number] for ref, each in values.items()}.__getitem__)
            for number in range(len(inputs))
        ]
        values |= {Ref(at, position): list(each) for position, each in enumerate(zip(*batches, strict=True))}
        values = {ref: each for ref, each in values.items() if last.get(ref, -1) > at}


def _within_memory(traced: Trace, inputs: Sequence[Any]) -> list[Any]:
    """As many samples, batch by batch, as the largest moment of two walks has room for; at least one."""
    if not inputs:
        raise DataError("Kernels are fitted on data. Pass `data`. Received: no batch.")
    one = keras.tree.map_structure(lambda array: array[:1], inputs[0])
    each = max((_bytes(values) for _, _, values in _walk(traced, [one])), default=1)
    left, chosen = max(1, int(_MOST_BYTES / 2 / each)), []
    for batch in inputs:
        if left > 0:
            chosen.append(keras.tree.map_structure(lambda array, most=left: array[:most], batch))
            left -= int(keras.tree.flatten(batch)[0].shape[0])
    return chosen


def _bytes(values: dict[Ref, list[tf.Tensor]]) -> int:
    return sum(math.prod(tensor.shape) * tensor.dtype.size for each in values.values() for tensor in each)


def _sizes(operation: Any) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in getattr(operation, "weights", ())]


def _can_be_fitted(layer: Any) -> bool:
    """Whether a layer is a plain product with a kernel that may change."""
    is_plain = type(layer) is layers.Dense or (
        type(layer) in CONVOLUTIONS
        and layer.groups == 1
        and layer.padding in ("same", "valid")
        and layer.data_format == "channels_last"
    )
    if not is_plain or not layer.trainable or not has_plain_weights(layer):
        return False
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    return constraint_of_layer(layer.kernel) is None and kernel.all() and not holds_few_values(kernel)


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


def _fit(
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
