"""Kernels of a network that has just lost channels, fitted anew to what the whole network computes: least squares in
the place of training.

Each kernel is the solution of a linear regression: from what its layer is given in the smaller network, the sums that
the layer makes in the whole one. Layers are fitted in the order in which they run, so that each makes up for what those
before it left, too. Neither labels nor gradients are needed.

Invariant: only kernels and biases of dense and convolutional layers change, and moving statistics of
BatchNormalization; none that is not trainable. A kernel with zeros or of few values, which other techniques made, stays
as it is. Left out: layers with a kernel for each channel or group of channels, transposed, causal and recurrent ones,
attention, layers that are used more than once, and the regression itself (`layer_regression.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfcompress.errors import DataError
from tfcompress.graph.channels import ChannelGraph
from tfcompress.graph.layer_kinds import CONVOLUTIONS, has_plain_weights
from tfcompress.graph.shrink import shrink
from tfcompress.graph.trace import Ref, Trace, trace
from tfcompress.techniques.channels.forward import walk
from tfcompress.techniques.channels.layer_regression import fit_layer
from tfcompress.techniques.channels.statistics import set_statistics
from tfcompress.techniques.constraints import constraint_of_layer
from tfcompress.techniques.shared_values import holds_few_values

# Bytes of what is between the layers of both networks, at most: 224 x 224 pixels of 64 channels are 13 MB a sample.
_MOST_BYTES = 2e9


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
    for (at, call, values), (_, of_small, small_values) in zip(walk(whole, chosen), walk(fewer, chosen), strict=True):
        layer = of_small.operation
        is_given_others = any(ref.call in changed for ref in of_small.sources)
        if is_given_others or _sizes(layer) != _sizes(call.operation):
            changed.add(at)
        if not is_given_others or uses[layer.name] > 1:
            continue
        if _can_be_fitted(layer):
            before, after = values[call.sources[0]], small_values[of_small.sources[0]]
            fit_layer(layer, call.operation, kept[layer.name], before, after, rng)
            fitted.append(layer.name)
        elif isinstance(layer, layers.BatchNormalization) and layer.trainable:
            set_statistics(layer, small_values[of_small.sources[0]])
    return fitted


def _within_memory(traced: Trace, inputs: Sequence[Any]) -> list[Any]:
    """As many samples, batch by batch, as the largest moment of two walks has room for; at least one."""
    if not inputs:
        raise DataError("Kernels are fitted on data. Pass `data`. Received: no batch.")
    one = keras.tree.map_structure(lambda array: array[:1], inputs[0])
    each = max((_bytes(values) for _, _, values in walk(traced, [one])), default=1)
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
