"""Cross-layer equalization: channels of very different size are made alike, without changing what the network computes.

A channel may be divided by a number where it is made, and multiplied by it where it is used, as long as only functions
with `f(a * x) = a * f(x)` for `a > 0` are between: ReLU, pooling, padding. The number is chosen so that both kernels
have equal ranges in it. Depthwise networks need it most: one wide channel takes all the steps from the others.

Invariant: the model computes the same function, but for float32 rounding. Left out: ReLU6 and other functions that do
not scale (ReLU6 is an error, or replaced on request, as the paper does), branches, layers used at several places,
a BatchNormalization without `scale`, and the absorption of high biases.

Reference: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.1,
https://arxiv.org/abs/1906.04721
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.copy_layer import LayerCopies, copy_layer
from tfcompress.graph.layer_kinds import DEPTHWISE
from tfcompress.graph.trace import Trace, replay, trace
from tfcompress.training.copying import copy_model

RELU6 = ("refuse", "replace")
WEIGHTED = (layers.Conv1D, layers.Conv2D, *DEPTHWISE, layers.Dense)
# They hand on each channel by itself, and scale with it.
HANDED_ON = (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.Identity,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.Flatten,
)
# Pairs share layers, so one pass leaves earlier pairs a little unequal.
PASSES = 20
CONVERGED = 1e-3


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two layers with a channel in common: `first` makes it, `second` alone uses it.

    Args:
        first: The layer before.
        normalization: The BatchNormalization after it, if there is one.
        second: The layer after.
        relu6: Names of the layers whose ReLU6 is between them.
    """

    first: Any
    normalization: keras.layers.BatchNormalization | None
    second: Any
    relu6: tuple[str, ...] = ()


def equalize(model: keras.Model, *, relu6: str = "refuse") -> keras.Model:
    """A copy of `model` whose layers have channels of alike size, and which computes the same.

    Args:
        model: A functional or Sequential model.
        relu6: What becomes of ReLU6 between two layers: `"refuse"` is an error that names them, `"replace"` makes them
            ReLU first. This changes the function where values pass 6.

    Returns:
        A new model with the same layers, names and shapes.

    Raises:
        InvalidArgumentError: If `relu6` is neither.
        ModelError: If there is no pair of layers to equalize, or a ReLU6 between one.

    Example:
        >>> inputs = keras.Input((4,))
        >>> x = layers.Dense(8, activation="relu", name="first")(inputs)
        >>> model = keras.Model(inputs, layers.Dense(2, name="second")(x))
        >>> x = np.ones((1, 4), "float32")
        >>> bool(np.allclose(equalize(model)(x), model(x), atol=1e-5))
        True
    """
    if relu6 not in RELU6:
        raise InvalidArgumentError("equalize.relu6", f"one of {RELU6}", relu6)
    pairs = find_pairs(model)
    names = sorted({name for pair in pairs for name in pair.relu6})
    if names and relu6 == "refuse":
        raise ModelError(
            f"Model {model.name!r} has ReLU6 between layers to equalize, which does not scale: {', '.join(names[:8])}"
            f"{' and more' if len(names) > 8 else ''}. Replace it by ReLU with relu6='replace' (values above 6 then "
            "pass), or leave equalization out."
        )
    if not pairs:
        raise ModelError(
            f"Model {model.name!r} has no two layers to equalize: a convolution or dense layer whose result goes, "
            "through BatchNormalization, ReLU and pooling only, to one other."
        )
    equalized = _without_relu6(model, set(names)) if names else copy_model(model)
    pairs = find_pairs(equalized)
    for _ in range(PASSES):
        if max(_equalize_pair(pair) for pair in pairs) < CONVERGED:
            break
    return equalized


def find_pairs(model: keras.Model) -> list[Pair]:
    """The pairs of layers of a model that can be equalized, those with ReLU6 between them too, in graph order."""
    traced = trace(model)
    uses: dict[str, int] = {}
    for call in traced.calls:
        uses[call.operation.name] = uses.get(call.operation.name, 0) + 1
    starts = (index for index, call in enumerate(traced.calls) if type(call.operation) in WEIGHTED)
    pairs = (_pair_from(traced, index) for index in starts)
    return [pair for pair in pairs if pair is not None and _once(pair, uses)]


def _once(pair: Pair, uses: dict[str, int]) -> bool:
    return all(uses[layer.name] == 1 for layer in (pair.first, pair.normalization, pair.second) if layer is not None)


def _pair_from(traced: Trace, start: int) -> Pair | None:
    """The pair whose first layer is call `start`."""
    outputs = {ref.call for ref in keras.tree.flatten(traced.outputs)}
    first, normalization = traced.calls[start].operation, None
    relu6 = [first.name] if _is_relu6(first.activation) else []
    if _is_channels_first(first) or not (relu6 or _scales(first.activation)):
        return None
    index, is_fresh = start, True
    while index not in outputs and len(traced.consumers(index)) == 1:
        (index,) = traced.consumers(index)
        operation = traced.calls[index].operation
        if _is_channels_first(operation):
            return None
        if type(operation) in WEIGHTED:
            # Behind a Flatten and a Reshape the channels of a convolution are others than those that were made.
            if not isinstance(operation, layers.Dense) and operation.input.shape[-1] != first.output.shape[-1]:
                return None
            # Dense works on the last axis, which is that of the channels, also of a map.
            return Pair(first, normalization, operation, tuple(relu6))
        if isinstance(operation, layers.BatchNormalization) and is_fresh and _is_of_channels(operation):
            normalization = operation
            is_fresh = False
        elif _is_relu6_layer(operation):
            relu6.append(operation.name)
        elif not _hands_on(operation):
            return None
        # Only the very result of the first layer is what a normalization can be scaled with.
        is_fresh = is_fresh and isinstance(operation, layers.Dropout | layers.Identity)
    return None


def _hands_on(operation: Any) -> bool:
    """Whether an operation scales with its input, channel by channel."""
    if isinstance(operation, layers.ReLU):
        return operation.max_value is None and not operation.threshold
    if isinstance(operation, layers.Activation):
        return _scales(operation.activation)
    if isinstance(operation, layers.Reshape):
        return operation.output.shape[-1] == operation.input.shape[-1]
    return isinstance(operation, (*HANDED_ON, layers.LeakyReLU))


def _is_of_channels(operation: Any) -> bool:
    """Whether a normalization multiplies each channel, so that it can be scaled."""
    return operation.scale and operation.axis in (-1, len(operation.input.shape) - 1)


def _scales(activation: Any) -> bool:
    return activation in (keras.activations.linear, keras.activations.relu, keras.activations.leaky_relu)


def _is_relu6(activation: Any) -> bool:
    return activation is keras.activations.relu6


def _is_relu6_layer(operation: Any) -> bool:
    if isinstance(operation, layers.ReLU):
        return operation.max_value == 6 and not operation.threshold
    return isinstance(operation, layers.Activation) and _is_relu6(operation.activation)


def _is_channels_first(operation: Any) -> bool:
    return getattr(operation, "data_format", "channels_last") == "channels_first"


def _without_relu6(model: keras.Model, names: set[str]) -> keras.Model:
    """A copy with ReLU in the place of the ReLU6 of some layers."""

    def copy(layer: Any) -> Any:
        if layer.name not in names:
            return copy_layer(layer)
        return copy_layer(layer, **({"max_value": None} if isinstance(layer, layers.ReLU) else {"activation": "relu"}))

    return replay(trace(model), LayerCopies(copy))


def _equalize_pair(pair: Pair) -> float:
    """Makes both ranges of each channel equal, in place; how far the numbers were from 1, as a logarithm."""
    first, second = _made_ranges(pair), _used_ranges(pair.second, pair.first)
    # A channel that is not made, or not used, stays as it is.
    is_used = (first > 0) & (second > 0)
    factor = np.ones_like(first)
    factor[is_used] = np.sqrt(first[is_used] / second[is_used])
    _divide_made(pair, factor)
    _multiply_used(pair.second, factor)
    return float(np.abs(np.log(factor)).max())


def _made_ranges(pair: Pair) -> np.ndarray:
    """The largest weight of each channel that the first layer makes, its normalization folded in."""
    kernel = np.abs(_numpy(pair.first.kernel))
    if isinstance(pair.first, DEPTHWISE):
        kernel = kernel.reshape(*kernel.shape[:-2], -1)
    largest = kernel.reshape(-1, kernel.shape[-1]).max(0)
    if pair.normalization is not None:
        deviation = np.sqrt(_numpy(pair.normalization.moving_variance) + pair.normalization.epsilon)
        largest = largest * np.abs(_numpy(pair.normalization.gamma)) / deviation
    return largest


def _divide_made(pair: Pair, factor: np.ndarray) -> None:
    normalization = pair.normalization
    if normalization is not None:
        # Not the kernel, whose size the statistics of a later training would normalize away.
        normalization.gamma.assign(_numpy(normalization.gamma) / factor)
        if normalization.center:
            normalization.beta.assign(_numpy(normalization.beta) / factor)
        return
    kernel = _numpy(pair.first.kernel)
    # A depthwise kernel has its channels on two axes.
    by_channel = factor.reshape(kernel.shape[-2:]) if isinstance(pair.first, DEPTHWISE) else factor
    pair.first.kernel.assign(kernel / by_channel)
    if pair.first.use_bias:
        pair.first.bias.assign(_numpy(pair.first.bias) / factor)


def _used_ranges(second: Any, first: Any) -> np.ndarray:
    """The largest weight that the second layer gives each channel."""
    channels = _channels(first)
    return np.abs(_by_input_channel(second, channels)).reshape(channels, -1).max(1)


def _multiply_used(second: Any, factor: np.ndarray) -> None:
    kernel = _numpy(second.kernel)
    positions = _by_input_channel(second, len(factor), np.arange(kernel.size).reshape(kernel.shape))
    flat = kernel.ravel().copy()
    flat[positions.reshape(len(factor), -1)] *= factor[:, None]
    second.kernel.assign(flat.reshape(kernel.shape))


def _channels(layer: Any) -> int:
    shape = layer.kernel.shape
    return int(shape[-1] * shape[-2]) if isinstance(layer, DEPTHWISE) else int(shape[-1])


def _by_input_channel(layer: Any, channels: int, kernel: np.ndarray | None = None) -> np.ndarray:
    """A kernel with the channels that come in on its first axis."""
    kernel = _numpy(layer.kernel) if kernel is None else kernel
    if isinstance(layer, layers.Dense):
        # After flattening, the channels repeat for each place.
        return np.moveaxis(kernel.reshape(-1, channels, kernel.shape[-1]), 1, 0)
    if isinstance(layer, DEPTHWISE):
        return np.moveaxis(kernel, -2, 0)
    groups = layer.groups
    grouped = kernel.reshape(*kernel.shape[:-1], groups, -1)
    return np.moveaxis(grouped, (-2, -3), (0, 1)).reshape(channels, -1)


def _numpy(variable: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable)
