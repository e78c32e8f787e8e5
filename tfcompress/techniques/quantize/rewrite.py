"""Where fake quantization goes: a Keras graph rewritten so that every integer tensor of the exported file has its twin.

Rounded are: each model input, each kernel, and each result that the TFLite runtime stores. Not rounded is what it fuses
away: between a convolution (or an addition), its BatchNormalization and its ReLU there is no tensor, and pooling,
reshaping and padding hand on the numbers they get with the scale they came with.

Invariant: with ranges wide enough and bits enough the rewritten model computes what the original does; weights keep
their names and shapes. Left out: layers with no integer kernel, which are refused by name before anything is trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
from keras import layers

from tfcompress.errors import ModelError
from tfcompress.graph.trace import Call, Trace, replay, trace
from tfcompress.layers import QUANTIZED_LAYERS, FakeQuantize

# Their results have the scale of what came in.
HANDED_ON = (
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.Flatten,
    layers.Reshape,
    layers.Permute,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.Cropping1D,
    layers.Cropping2D,
)
# Their results have that scale too, and are rounded to it.
AVERAGED = (layers.AveragePooling1D, layers.AveragePooling2D)
# They do nothing when a model is used, so they stand between no two tensors.
ABSENT = (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.GaussianNoise,
    layers.GaussianDropout,
    layers.ActivityRegularization,
    layers.Identity,
)
# Their results are new numbers, with a scale of their own.
COMPUTED = (
    layers.Add,
    layers.Concatenate,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
)
# Functions with an integer kernel of their own; ReLU and ReLU6 are fused into what comes before.
SUPPORTED_ACTIVATIONS = (keras.activations.sigmoid, keras.activations.tanh, keras.activations.softmax)
# TFLite's integer softmax has this one range, whatever came in.
SOFTMAX_RANGE = (0.0, 255.0 / 256.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationSpec:
    """What the inserted layers are made with: see `quantize_aware` for the meaning of each field."""

    weight_bits: int = 8
    ranges: str = "learned"
    momentum: float = 0.99


def insert_fake_quantization(model: keras.Model, spec: QuantizationSpec) -> keras.Model:
    """A copy of `model` with rounded inputs, kernels and results.

    Args:
        model: A functional or Sequential model; nested models are opened.
        spec: Bits and kind of the ranges.

    Returns:
        A new model with new layers; the ranges of its `FakeQuantize` layers are not calibrated yet.

    Raises:
        ModelError: If a layer cannot be computed in integers; the message names each one.
    """
    traced = trace(model)
    refuse_unsupported(traced)
    return _Rewriter(traced, spec).build()


def remove_fake_quantization(model: keras.Model) -> keras.Model:
    """The float model under a quantization-aware one: the same weights, nothing rounded.

    Args:
        model: A model with or without fake quantization.

    Returns:
        A new model of plain Keras layers.
    """
    traced = trace(model)
    new: dict[str, Any] = {}

    def call_plain(index: int, call: Call, args: tuple, kwargs: dict) -> Any:
        operation = call.operation
        if isinstance(operation, FakeQuantize):
            return args[0]
        if not isinstance(operation, keras.layers.Layer):
            return operation(*args, **kwargs)
        if operation.name not in new:
            config = operation.get_config()
            config.pop("weight_bits", None)
            new[operation.name] = getattr(operation, "base_class", type(operation)).from_config(config)
        return new[operation.name](*args, **kwargs)

    plain = replay(traced, call_plain)
    for call in traced.calls:
        if call.operation.name in new and call.operation.weights:
            new[call.operation.name].set_weights(call.operation.get_weights())
    return plain


class _Rewriter:
    """One rewriting: new layers by the name of the old, so that a shared layer stays shared."""

    def __init__(self, traced: Trace, spec: QuantizationSpec):
        self._trace = traced
        self._spec = spec
        self._new: dict[str, Any] = {}
        # The layer that gave each call's result its scale.
        self._ranges: dict[int, FakeQuantize] = {}
        self._names: set[str] = {call.operation.name for call in traced.calls}

    def build(self) -> keras.Model:
        model = replay(self._trace, self._call, self._round_input)
        for call in self._trace.calls:
            new = self._new.get(call.operation.name)
            if new is not None and call.operation.weights:
                new.set_weights(call.operation.get_weights())
                new.trainable = call.operation.trainable
        return model

    def _call(self, index: int, call: Call, args: tuple, kwargs: dict) -> Any:
        result = self._layer(call.operation)(*args, **kwargs)
        activation = unfused_activation(call.operation)
        if activation is not None:
            # The sum is a tensor of its own before a function that is no clipping.
            name = call.operation.name
            result = self._range(f"{name}_sum_range")(result)
            result = layers.Activation(activation, name=self._free(f"{name}_{activation.__name__}"))(result)
        if isinstance(call.operation, AVERAGED) and not averages_all(call.operation):
            # The runtime rounds a mean to the scale of what came in: the same layer once more does just that.
            self._ranges[index] = self._ranges[call.sources[0].call]
            return self._ranges[index](result)
        if not needs_range(self._trace, index):
            source = call.sources[0].call
            # Dropout between a convolution and its ReLU hands on what has no range yet.
            if isinstance(call.operation, HANDED_ON + ABSENT) and source in self._ranges:
                self._ranges[index] = self._ranges[source]
            return result
        is_softmax = activation is keras.activations.softmax or _is_softmax(call.operation)
        self._ranges[index] = self._range(f"{call.operation.name}_range", SOFTMAX_RANGE if is_softmax else None)
        return self._ranges[index](result)

    def _round_input(self, index: int, tensor: Any) -> Any:
        self._ranges[index] = self._range(f"{self._trace.calls[index].operation.name}_range")
        return self._ranges[index](tensor)

    def _range(self, name: str, fixed_range: tuple[float, float] | None = None) -> FakeQuantize:
        if fixed_range is not None:
            return FakeQuantize(name=self._free(name), ranges="fixed", initial_range=fixed_range)
        return FakeQuantize(name=self._free(name), ranges=self._spec.ranges, momentum=self._spec.momentum)

    def _layer(self, operation: Any) -> Any:
        if not isinstance(operation, keras.layers.Layer):
            return operation
        if operation.name not in self._new:
            if averages_all(operation):
                # The mean of a whole map gets a scale of its own, finer than that of the map.
                new = layers.GlobalAveragePooling2D(keepdims=True, name=operation.name)
                return self._new.setdefault(operation.name, new)
            config = operation.get_config()
            layer_class = QUANTIZED_LAYERS.get(type(operation), type(operation))
            if layer_class is not type(operation):
                config["weight_bits"] = self._spec.weight_bits
            if unfused_activation(operation) is not None:
                config["activation"] = "linear"
            self._new[operation.name] = layer_class.from_config(config)
        return self._new[operation.name]

    def _free(self, name: str) -> str:
        """`name`, numbered if it is taken, as for the later calls of a shared layer."""
        free = name
        number = 1
        while free in self._names:
            number += 1
            free = f"{name}_{number}"
        self._names.add(free)
        return free


def needs_range(traced: Trace, index: int) -> bool:
    """Whether the result of call `index` is a tensor with a scale of its own in the exported file."""
    operation = traced.calls[index].operation
    if isinstance(operation, HANDED_ON + ABSENT + AVERAGED) and not averages_all(operation):
        return False
    if _is_sum(operation) or isinstance(operation, layers.BatchNormalization | layers.Add):
        follower = only_follower(traced, index)
        fused = (layers.BatchNormalization,) if _is_sum(operation) else ()
        return not (follower is not None and (isinstance(follower, fused) or is_clipping(follower)))
    return True


def averages_all(operation: Any) -> bool:
    """Whether a pooling takes the mean of its whole input."""
    return (
        isinstance(operation, layers.AveragePooling2D)
        and operation.data_format == "channels_last"
        and tuple(operation.pool_size) == tuple(operation.input.shape[1:3])
    )


def is_clipping(operation: Any) -> bool:
    """Whether an activation is a clipping that TFLite fuses into the operation before: ReLU or ReLU6."""
    if isinstance(operation, layers.ReLU):
        return operation.max_value in (None, 6) and not operation.negative_slope and not operation.threshold
    activation = getattr(operation, "activation", None)
    return isinstance(operation, layers.Activation) and activation in (keras.activations.relu, keras.activations.relu6)


def only_follower(traced: Trace, index: int) -> Any | None:
    """The operation that alone takes the result of call `index`, looking through what is absent in use."""
    outputs = {ref.call for ref in keras.tree.flatten(traced.outputs)}
    while index not in outputs:
        consumers = traced.consumers(index)
        if len(consumers) != 1:
            return None
        (index,) = consumers
        if not isinstance(traced.calls[index].operation, ABSENT):
            return traced.calls[index].operation
    return None


def unfused_activation(operation: Any) -> Any | None:
    """The activation inside a convolution or dense layer that TFLite computes as an operation of its own."""
    if type(operation) not in QUANTIZED_LAYERS:
        return None
    fused = (keras.activations.linear, keras.activations.relu, keras.activations.relu6)
    return None if operation.activation in fused else operation.activation


def _is_sum(operation: Any) -> bool:
    """Whether the operation is a convolution or dense layer with nothing after its sum."""
    return type(operation) in QUANTIZED_LAYERS and operation.activation is keras.activations.linear


def _is_softmax(operation: Any) -> bool:
    return isinstance(operation, layers.Softmax) or (
        isinstance(operation, layers.Activation) and operation.activation is keras.activations.softmax
    )


def refuse_unsupported(traced: Trace) -> None:
    """Raises a `ModelError` that names each layer which cannot be computed in integers."""
    reasons = list(_unsupported(traced))
    if reasons:
        listing = "\n  - ".join(reasons)
        raise ModelError(
            f"Model {traced.name!r} has layers that quantization-aware training cannot round; replace them, or use "
            f"post-training quantization (`export_tflite(model, path, calibration=...)`):\n  - {listing}"
        )


def _unsupported(traced: Trace) -> Iterator[str]:
    inputs = {ref.call for ref in keras.tree.flatten(traced.inputs)}
    for index, call in enumerate(traced.calls):
        operation = call.operation
        if index in inputs or type(operation) in QUANTIZED_LAYERS or is_clipping(operation) or _is_softmax(operation):
            activation = unfused_activation(operation)
            if activation is not None and activation not in SUPPORTED_ACTIVATIONS:
                yield f"{operation.name}: activation {activation.__name__!r}"
            if getattr(operation, "data_format", "channels_last") == "channels_first":
                yield f"{operation.name}: data_format 'channels_first' has no integer kernel"
        elif isinstance(operation, layers.BatchNormalization):
            (before,) = (ref.call for ref in call.sources)
            fused = _is_sum(traced.calls[before].operation) and only_follower(traced, before) is operation
            if not fused:
                yield f"{operation.name}: a BatchNormalization that is not the only follower of a convolution"
            elif isinstance(traced.calls[before].operation, layers.Dense):
                # One scale for the whole kernel cannot absorb a factor for each output.
                yield f"{operation.name}: a BatchNormalization after a dense layer"
        elif isinstance(operation, layers.Activation):
            if operation.activation not in SUPPORTED_ACTIVATIONS:
                yield f"{operation.name}: activation {operation.activation.__name__!r}"
        elif not isinstance(operation, HANDED_ON + ABSENT + AVERAGED + COMPUTED):
            yield f"{operation.name}: {type(operation).__name__}"
