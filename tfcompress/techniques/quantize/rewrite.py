"""Where fake quantization goes: a Keras graph rewritten so that every integer tensor of the exported file has its twin.

Rounded are: each model input, each kernel, and each result that the TFLite runtime stores. Not rounded is what it fuses
away: between a convolution (or an addition), its BatchNormalization and its ReLU there is no tensor, and pooling,
reshaping and padding hand on the numbers they get with the scale they came with. Layers that the runtime computes in
several operations become twins that round inside (`tfcompress.layers`).

Invariant: with ranges wide enough and bits enough the rewritten model computes what the original does; weights keep
their names and shapes. Left out: which layers have integer kernels (`integer_support.py`).
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import layers, ops

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.flatten import flatten, has_equal_names
from tfcompress.graph.trace import Call, Trace, replay, trace
from tfcompress.layers import (
    COMPOSED,
    QUANTIZED_LAYERS,
    FakeQuantize,
    FusedBatchNormalization,
    LeftInFloat,
    QuantizedActivation,
    QuantizedBatchNormalization,
    QuantizedReLU,
    copy_plain_weights,
    fixed_range_of,
)
from tfcompress.techniques.kernels import kernels_of
from tfcompress.techniques.layer_names import fits
from tfcompress.techniques.quantize import integer_support as support
from tfcompress.techniques.quantize.activation_bits import bits_of, reason_against_16_bits
from tfcompress.techniques.quantize.time_distributed import open_time_distributed
from tfcompress.techniques.shared_values import shares_values


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationSpec:
    """What the inserted layers are made with: see `quantize_aware` for the meaning of each field."""

    weight_bits: int | Mapping[str, int] = 8
    activation_bits: int | Mapping[str, int] = 8
    ranges: str = "learned"
    momentum: float = 0.99
    allow_float: Sequence[str] = ()

    def bits_of(self, name: str) -> int:
        """Bits of the kernels of a layer: of the first pattern that fits its name, else 8."""
        if isinstance(self.weight_bits, int):
            return self.weight_bits
        return next((bits for pattern, bits in self.weight_bits.items() if fnmatch.fnmatch(name, pattern)), 8)


def insert_fake_quantization(model: keras.Model, spec: QuantizationSpec) -> keras.Model:
    """A copy of `model` with rounded inputs, kernels and results.

    Args:
        model: A functional or Sequential model; nested models are opened.
        spec: Bits and kind of the ranges.

    Returns:
        A new model with new layers; the ranges of its `FakeQuantize` layers are not calibrated yet.

    Raises:
        InvalidArgumentError: If a pattern fits no layer.
        ModelError: If a layer cannot be computed in integers and may not stay in float; the message names each one.
    """
    traced = quantizable_trace(model, spec.allow_float)
    refuse_unsupported(traced, spec)
    return _Rewriter(traced, spec).build()


def quantizable_trace(model: keras.Model, allow_float: Sequence[str] = ()) -> Trace:
    """The calls of a model; layers of nested models whose names are equal get names of their own.

    `TimeDistributed` layers are opened, but for those that may stay in float.
    """
    traced = trace(model, allow_equal_names=True)
    while (opened := open_time_distributed(traced, keep=allow_float)) is not None:
        model, traced = opened, trace(opened, allow_equal_names=True)
    return trace(flatten(model)) if has_equal_names(traced) else traced


class _Rewriter:
    """One rewriting: new layers by the name of the old, so that a shared layer stays shared."""

    def __init__(self, traced: Trace, spec: QuantizationSpec):
        self._trace = traced
        self._spec = spec
        self._new: dict[str, Any] = {}
        # The layer that gave each call's result its scale.
        self._ranges: dict[int, FakeQuantize] = {}
        # Bits of the results of the layer that is being rewritten, and of each tensor that is rounded.
        self._bits = 8
        self._bits_of_tensor: dict[int, tuple[Any, int]] = {}
        self._names: set[str] = {call.operation.name for call in traced.calls}
        self._absorbed = {
            call.operation.name for index, call in enumerate(traced.calls) if support.is_absorbed(traced, index)
        }

    def build(self) -> keras.Model:
        model = replay(self._trace, self._call, self._round_input)
        for call in self._trace.calls:
            old, new = call.operation, self._new.get(call.operation.name)
            if new is not None and old.weights:
                copy_plain_weights(old, new)
                if not old.trainable:
                    # Ranges inside of a frozen layer are frozen with it.
                    for part in new._flatten_layers():
                        part.trainable = False
        return model

    def _call(self, index: int, call: Call, args: tuple, kwargs: dict) -> Any:
        self._bits = self._bits_of_call(index)
        if isinstance(self._spec.activation_bits, Mapping) and not support.hands_on(call.operation):
            args, kwargs = keras.tree.map_structure(
                lambda value: self._in_bits(value, call.operation.name), (args, kwargs)
            )
        result = self._rounded_call(index, call, args, kwargs)
        if index in self._ranges or isinstance(call.operation, support.ROUNDED_INSIDE):
            for tensor in keras.tree.flatten(result):
                # The tensor is kept, so that no other gets its id.
                self._bits_of_tensor[id(tensor)] = tensor, self._bits
        return result

    def _bits_of_call(self, index: int) -> int:
        """Bits of the results of a call: of its own name, unless its operation is one with that before it."""
        call = self._trace.calls[index]
        operation = call.operation
        if call.sources and not isinstance(operation, support.ROUNDED_INSIDE):
            source = call.sources[0].call
            follows = support.hands_on(operation) or isinstance(operation, support.ABSENT + support.AVERAGED)
            if follows or not self._is_rounded(source):
                return self._bits_of_call(source)
        return bits_of(self._spec.activation_bits, operation.name)

    def _is_rounded(self, index: int) -> bool:
        operation = self._trace.calls[index].operation
        return index in self._ranges or isinstance(operation, support.ROUNDED_INSIDE)

    def _in_bits(self, value: Any, name: str) -> Any:
        """What a layer reads, in the bits that it computes with."""
        if self._bits_of_tensor.get(id(value), (value, self._bits))[1] == self._bits:
            return value
        return self._range(f"{name}_{self._bits}_bit_range")(value)

    def _rounded_call(self, index: int, call: Call, args: tuple, kwargs: dict) -> Any:
        operation = call.operation
        if self._is_float(operation):
            result = self._float_call(operation, args, kwargs)
            if not self._feeds_integers(index):
                return result
            return self._rounded(index, result, None)
        result = self._integer_call(operation, args, kwargs)
        activation = support.unfused_activation(operation)
        if activation is not None:
            # The sum is a tensor of its own before a function that is no clipping.
            name = operation.name
            result = self._range(f"{name}_sum_range")(result)
            result = self._activation(f"{name}_{activation}", operation.activation, activation)(result)
        if isinstance(operation, support.AVERAGED) and not support.averages_all(operation):
            return self._averaged(index, call, result)
        if self._is_rounded_after(index) or not needs_range(self._trace, index, self._is_float):
            return self._hand_on(index, call, result)
        return self._rounded(index, result, support.fixed_range(operation))

    def _is_rounded_after(self, index: int) -> bool:
        """Whether the file stores the result with the scale of the operation after it, and rounds only to that."""
        follower = support.only_follower(self._trace, index)
        # Where layers have bits of their own, those of both may differ.
        if follower is None or self._is_float(follower) or isinstance(self._spec.activation_bits, Mapping):
            return False
        return support.takes_one_scale(follower) and support.fixed_range(self._trace.calls[index].operation) is None

    def _rounded(self, index: int, result: Any, fixed: tuple[float, float] | None) -> Any:
        if not any(_is_float_tensor(tensor) for tensor in keras.tree.flatten(result)):
            return result
        name = self._trace.calls[index].operation.name
        self._ranges[index] = self._range(f"{name}_range", fixed)
        return keras.tree.map_structure(self._ranges[index], result)

    def _averaged(self, index: int, call: Call, result: Any) -> Any:
        source = self._ranges.get(call.sources[0].call)
        if source is None:
            return self._rounded(index, result, None)
        # The runtime rounds a mean to the scale of what came in: the same layer once more does just that.
        self._ranges[index] = source
        return source(result)

    def _hand_on(self, index: int, call: Call, result: Any) -> Any:
        """Notes whose scale the result of a call has, if it has one."""
        # Dropout between a convolution and its ReLU hands on what has no range yet.
        source = call.sources[0].call if call.sources else None
        if source in self._ranges and (support.hands_on(call.operation) or isinstance(call.operation, support.ABSENT)):
            self._ranges[index] = self._ranges[source]
            if support.hands_on(call.operation) and len(self._trace.consumers(index)) > 1:
                # The converter (TensorFlow 2.21) loses the scale on its way to several operations. Saying it again
                # changes nothing, since these numbers are rounded to it already.
                return keras.tree.map_structure(self._ranges[index], result)
        return result

    def _round_input(self, index: int, tensor: Any) -> Any:
        if not _is_float_tensor(tensor) or not self._feeds_integers(index):
            return tensor
        self._bits = self._bits_of_call(index)
        self._ranges[index] = self._range(f"{self._trace.calls[index].operation.name}_range")
        # The range of the data is known. Learning it would need gradients of the first layer by the data, which cost
        # more than all other ranges together.
        self._ranges[index].trainable = False
        rounded = self._ranges[index](tensor)
        self._bits_of_tensor[id(rounded)] = rounded, self._bits
        return rounded

    def _range(self, name: str, fixed_range: tuple[float, float] | None = None) -> FakeQuantize:
        bits = self._bits
        if fixed_range is not None:
            initial = fixed_range_of(fixed_range, bits)
            return FakeQuantize(name=self._free(name), bits=bits, ranges="fixed", initial_range=initial)
        return FakeQuantize(name=self._free(name), bits=bits, ranges=self._spec.ranges, momentum=self._spec.momentum)

    def _integer_call(self, operation: Any, args: tuple, kwargs: dict) -> Any:
        kind = type(operation).__name__
        if support.is_layer(operation):
            return self._layer(operation)(*args, **kwargs)
        if kind == "Negative" and _is_float_tensor(args[0]):
            return ops.subtract(0.0, args[0])
        if kind == "Square":
            return ops.multiply(args[0], args[0])
        name = support.activation_name(operation)
        if name is not None and name in COMPOSED:
            return self._activation(operation.name, getattr(keras.activations, name), name)(args[0])
        return operation(*args, **kwargs)

    def _float_call(self, operation: Any, args: tuple, kwargs: dict) -> Any:
        # So that an export knows it for a purpose.
        mark = LeftInFloat(name=self._free(f"{operation.name}_in_float"))
        args, kwargs = keras.tree.map_structure(
            lambda value: mark(value) if isinstance(value, keras.KerasTensor) else value, (args, kwargs)
        )
        if not support.is_layer(operation):
            return operation(*args, **kwargs)
        if operation.name not in self._new:
            self._new[operation.name] = type(operation).from_config(operation.get_config())
        return self._new[operation.name](*args, **kwargs)

    def _activation(self, name: str, function: Any, serialized: str) -> keras.layers.Layer:
        if serialized in COMPOSED:
            return QuantizedActivation(
                function,
                name=self._free(name),
                activation_bits=self._bits,
                ranges=self._spec.ranges,
                momentum=self._spec.momentum,
            )
        return layers.Activation(function, name=self._free(name))

    def _layer(self, operation: Any) -> Any:
        if operation.name not in self._new:
            self._new[operation.name] = self._twin(operation)
        return self._new[operation.name]

    def _twin(self, operation: Any) -> Any:
        if support.averages_all(operation):
            # The mean of a whole map gets a scale of its own, finer than that of the map.
            return layers.GlobalAveragePooling2D(keepdims=True, name=operation.name)
        config = operation.get_config()
        twin = QUANTIZED_LAYERS.get(type(operation), type(operation))
        if isinstance(operation, layers.BatchNormalization):
            is_absorbed = operation.name in self._absorbed
            twin = FusedBatchNormalization if is_absorbed else QuantizedBatchNormalization
        if isinstance(operation, layers.ReLU) and not support.is_clipping(operation):
            twin = QuantizedReLU
        name = support.activation_name(operation)
        if type(operation) not in support.SUMS and name in COMPOSED:
            twin = QuantizedActivation
            config = {"name": operation.name, "dtype": config["dtype"], "activation": name}
        values = {
            "weight_bits": self._spec.bits_of(operation.name),
            "activation_bits": self._bits,
            "ranges": self._spec.ranges,
            "momentum": self._spec.momentum,
            "per_channel": self._precedes_batch_norm(operation),
        }
        keys = getattr(twin, "rounding_keys", ())
        if "one_scale" in keys:
            values["one_scale"] = any(
                shares_values(keras.ops.convert_to_numpy(kernel)) for kernel in kernels_of(operation)
            )
        config |= {key: values[key] for key in keys}
        if support.unfused_activation(operation) is not None:
            config["activation"] = "linear"
        return twin.from_config(config)

    def _precedes_batch_norm(self, operation: Any) -> bool:
        """Whether the scales of a layer have to absorb a BatchNormalization, wherever it is used."""
        return any(
            type(support.only_follower(self._trace, index)) is layers.BatchNormalization and support.is_sum(operation)
            for index, call in enumerate(self._trace.calls)
            if call.operation is operation
        )

    def _is_float(self, operation: Any) -> bool:
        return fits(operation.name, self._spec.allow_float)

    def _feeds_integers(self, index: int) -> bool:
        """Whether an operation in integers takes the result of a call."""
        return any(not self._is_float(self._trace.calls[at].operation) for at in self._trace.consumers(index))

    def _free(self, name: str) -> str:
        """`name`, numbered if it is taken, as for the later calls of a shared layer."""
        free = name
        number = 1
        while free in self._names:
            number += 1
            free = f"{name}_{number}"
        self._names.add(free)
        return free


def needs_range(traced: Trace, index: int, is_float: Any = lambda operation: False) -> bool:
    """Whether the result of call `index` is a tensor with a scale of its own in the exported file."""
    operation = traced.calls[index].operation
    if support.hands_on(operation) or isinstance(operation, support.ABSENT + support.ROUNDED_INSIDE):
        return False
    if isinstance(operation, support.AVERAGED) and not support.averages_all(operation):
        return False
    follower = support.only_follower(traced, index)
    if follower is None or is_float(follower):
        return True
    if support.is_sum(operation) and isinstance(follower, layers.BatchNormalization):
        return type(operation) not in support.ABSORBING
    is_fused = (
        support.is_sum(operation)
        or isinstance(operation, layers.BatchNormalization | layers.Add | layers.Subtract | layers.Multiply)
        or type(operation).__name__ in ("CustomScaleLayer", "Add", "Subtract", "Multiply")
    )
    return not (is_fused and support.is_clipping(follower))


def refuse_unsupported(traced: Trace, spec: QuantizationSpec) -> None:
    """Raises a `ModelError` that names each layer which cannot be computed in integers and may not stay in float.

    A pattern that fits no layer is an `InvalidArgumentError`.
    """
    _refuse_idle_patterns(traced, spec)
    reasons = {}
    for index, call in enumerate(traced.calls):
        name = call.operation.name
        reason = support.unsupported_reason(traced, index, spec.bits_of(name))
        if reason is None and bits_of(spec.activation_bits, name) == 16:
            reason = reason_against_16_bits(call.operation)
        if reason is not None and not fits(name, spec.allow_float):
            reasons[name] = reason
    if reasons:
        listing = "\n  - ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ModelError(
            f"Model {traced.name!r} has layers that quantization-aware training cannot round. Replace them, leave them "
            "in float by `allow_float`, or use post-training quantization "
            f"(`export_tflite(model, path, calibration=...)`):\n  - {listing}"
        )


def _refuse_idle_patterns(traced: Trace, spec: QuantizationSpec) -> None:
    names = [call.operation.name for call in traced.calls]
    by_name = [bits for bits in (spec.weight_bits, spec.activation_bits) if isinstance(bits, Mapping)]
    for pattern in [*spec.allow_float, *(pattern for bits in by_name for pattern in bits)]:
        if not fnmatch.filter(names, pattern):
            raise InvalidArgumentError("pattern of layer names", f"one that fits a layer of {traced.name!r}", pattern)


def _is_float_tensor(tensor: Any) -> bool:
    return "float" in keras.backend.standardize_dtype(tensor.dtype)
