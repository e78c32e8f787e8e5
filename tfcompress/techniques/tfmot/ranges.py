"""The ranges of TFMOT's fake quantization: where they start, and how they go to Keras 3.

TFMOT starts each at -6 to 6 and moves it by a thousandth at each step; that of an input only ever widens. Here they
start from data instead, and the weights' ranges, which TFMOT leaves a step behind, end at the weights.

Invariant: the Keras 3 model rounds at the tensors where TFMOT rounds, with TFMOT's ranges for activations. Three things
differ, all of them as the file has it. A depthwise kernel gets a range for each channel, where TFMOT has one for all. A
kernel right before a ReLU layer is rounded too, which TFMOT leaves to the converter, as it does the results of a
softmax, with the one range that TFLite gives them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from unittest import mock

import keras
import numpy as np

from tfcompress.errors import DataError
from tfcompress.graph.flatten import flatten
from tfcompress.graph.trace import Call, replay, trace
from tfcompress.layers import QUANTIZED_LAYERS, FakeQuantize
from tfcompress.techniques.schedules import load_tfmot
from tfcompress.techniques.tfmot.callbacks import KERNELS, weight_name

# TFLite's integer softmax has this one range, whatever came in.
SOFTMAX_RANGE = (0.0, 255.0 / 256.0)
# What TFMOT's moving average keeps at each step.
MOMENTUM = 0.999


def wrappers(aware: Any) -> list[Any]:
    """The `QuantizeWrapper`s of a model from `quantize_apply`."""
    return [layer for layer in aware.layers if hasattr(layer, "quantize_config")]


def follow_weights(aware: Any) -> None:
    """Sets the ranges of the weights to the weights as they are now, as TFMOT will in its next training step."""
    for wrapper in wrappers(aware):
        own = {weight_name(weight): weight for weight in wrapper.weights}
        for name in KERNELS:
            if f"{name}_min" in own:
                magnitude = np.abs(own[name].numpy())
                # One range for each index of the last axis, or one for all.
                rows = magnitude.reshape(-1, magnitude.shape[-1])
                limit = rows.max(0) if len(own[f"{name}_min"].shape) else rows.max()
                own[f"{name}_min"].assign(-limit)
                own[f"{name}_max"].assign(limit)


def calibrate(aware: Any, batches: Iterable[Any]) -> None:
    """Sets the ranges of inputs and activations to the smallest and largest value that passes there.

    Args:
        aware: A model from `quantize_apply`; its ranges are changed in place.
        batches: Inputs, or `(inputs, ...)` tuples.

    Raises:
        DataError: If there is no batch, or a value is NaN or infinite.
    """
    follow_weights(aware)
    seen: dict[int, tuple[Any, Any, np.ndarray]] = {}
    any_batch = False
    with _observed(seen):
        for batch in batches:
            any_batch = True
            aware(batch[0] if isinstance(batch, tuple | list) else batch, training=False)
    if not any_batch:
        raise DataError("`calibration` must hold at least one batch. Received: nothing.")
    for low, high, edges in seen.values():
        if not np.isfinite(edges).all():
            raise DataError(f"`calibration` must give finite activations. Received: NaN or infinity at {low.name!r}.")
        low.assign(edges[0])
        high.assign(edges[1])


@contextlib.contextmanager
def _observed(seen: dict[int, tuple[Any, Any, np.ndarray]]) -> Iterator[None]:
    """Within it, TFMOT's activation quantizers note what passes instead of rounding it."""

    def observe(self: Any, inputs: Any, training: Any, weights: Mapping[str, Any], **kwargs: Any) -> Any:
        low, high = weights["min_var"], weights["max_var"]
        # Zero must stay inside, or padding would have no exact integer. Unlike `min`, this keeps a NaN.
        edges = np.array([np.minimum(0.0, np.min(inputs)), np.maximum(0.0, np.max(inputs))])
        _, _, before = seen.get(id(low), (low, high, np.zeros(2)))
        merged = np.array([np.minimum(before[0], edges[0]), np.maximum(before[1], edges[1])])
        seen[id(low)] = (low, high, merged)
        return inputs

    quantizers = load_tfmot().quantization.keras.quantizers
    # The quantizers are out of reach in their wrappers; their classes are public.
    with (
        mock.patch.object(quantizers.MovingAverageQuantizer, "__call__", observe),
        mock.patch.object(quantizers.AllValuesQuantizer, "__call__", observe),
    ):
        yield


def read_ranges(aware: Any) -> dict[str, dict[str, tuple[float, float]]]:
    """The ranges of a model from `quantize_apply`.

    Returns:
        For each wrapped layer, by the name it has without TFMOT, `pre_activation`, `post_activation` or `output` with
        `(minimum, maximum)`; for input n, under the name `input n`, `output` likewise.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for layer in aware.layers:
        own = {weight_name(weight): weight for weight in layer.weights}
        if hasattr(layer, "quantize_config"):
            name, places = layer.layer.name, {place: place for place in ("pre_activation", "post_activation", "output")}
        elif getattr(layer, "quantizer", None) is not None:
            # Of the nodes of a layer that TFMOT's clones share, the last is that of the last clone.
            source = layer.inbound_nodes[-1].inbound_layers.name
            name, places = f"input {aware.input_names.index(source)}", {"output": layer.name}
        else:
            continue
        for place, prefix in places.items():
            if f"{prefix}_min" in own:
                edges = tuple(float(own[f"{prefix}_{edge}"].numpy()) for edge in ("min", "max"))
                found.setdefault(name, {})[place] = edges  # type: ignore[assignment]
    return found


def unrounded(aware: Any) -> list[str]:
    """Names of the wrapped layers of which TFMOT rounds no weight."""
    own = {wrapper.layer.name: {weight_name(weight) for weight in wrapper.weights} for wrapper in wrappers(aware)}
    return [name for name, names in own.items() if not any(f"{kernel}_min" in names for kernel in KERNELS)]


def copy_trained(aware: Any, legacy: Any) -> None:
    """Copies the weights of a model from `quantize_apply` to the tf_keras model that it was made of."""
    wrapped = {wrapper.layer.name: wrapper for wrapper in wrappers(aware)}
    plain = {layer.name: layer for layer in aware.layers}
    for layer in legacy.layers:
        # The layer within a wrapper has tensors in the place of its kernels; the wrapper has the variables.
        source = wrapped.get(layer.name) or plain.get(layer.name)
        own = {weight.name: weight for weight in (source.weights if source is not None else ())}
        for weight in layer.weights:
            weight.assign(own[weight.name])


def with_ranges(
    model: keras.Model, ranges: Mapping[str, Mapping[str, tuple[float, float]]], rounded: set[str]
) -> keras.Model:
    """A Keras 3 model with TFMOT's ranges as `FakeQuantize` layers, and its rounded kernels as `Quantized` ones.

    Args:
        model: The Keras 3 model with the trained weights.
        ranges: What `read_ranges` gives.
        rounded: Names of the layers whose kernel is to be rounded.

    Returns:
        A new functional model; nested models are opened.
    """
    return _Carrier(flatten(model), ranges, rounded).build()


class _Carrier:
    def __init__(self, model: keras.Model, ranges: Mapping[str, Mapping[str, tuple[float, float]]], rounded: set[str]):
        self._trace = trace(model)
        self._ranges, self._rounded = ranges, rounded
        self._new: dict[str, Any] = {}
        self._names = {call.operation.name for call in self._trace.calls}

    def build(self) -> keras.Model:
        model = replay(self._trace, self._call, self._input)
        for call in self._trace.calls:
            new = self._new.get(call.operation.name)
            if new is not None and call.operation.weights:
                new.set_weights(call.operation.get_weights())
                new.trainable = call.operation.trainable
        for name, edges in self._edges.items():
            model.get_layer(name).set_range(*edges)
        return model

    @property
    def _edges(self) -> dict[str, tuple[float, float]]:
        return {
            self._new[f"{name} {place}"].name: edges
            for name, places in self._ranges.items()
            for place, edges in places.items()
        }

    def _input(self, index: int, tensor: Any) -> Any:
        # An input's name is not always that of its layer; its place is the same in both Keras.
        return self._round(f"input {index}", "output", tensor, self._trace.calls[index].operation.name)

    def _call(self, index: int, call: Call, args: tuple, kwargs: dict) -> Any:
        operation = call.operation
        if not isinstance(operation, keras.layers.Layer):
            return operation(*args, **kwargs)
        name = operation.name
        result = self._layer(operation)(*args, **kwargs)
        if "pre_activation" in self._ranges.get(name, {}):
            result = self._activation(operation)(self._round(name, "pre_activation", result))
        result = self._round(name, "post_activation", self._round(name, "output", result))
        activation = getattr(operation, "activation", None)
        if isinstance(operation, keras.layers.Softmax) or activation is keras.activations.softmax:
            softmax = FakeQuantize(name=self._free(f"{name}_range"), ranges="fixed", initial_range=SOFTMAX_RANGE)
            result = softmax(result)
        return result

    def _layer(self, operation: Any) -> Any:
        if operation.name not in self._new:
            config = operation.get_config()
            layer_class = type(operation)
            if operation.name in self._rounded and layer_class in QUANTIZED_LAYERS:
                layer_class = QUANTIZED_LAYERS[layer_class]
            if "pre_activation" in self._ranges.get(operation.name, {}):
                config["activation"] = "linear"
            self._new[operation.name] = layer_class.from_config(config)
        return self._new[operation.name]

    def _activation(self, operation: Any) -> Any:
        key = f"{operation.name} activation"
        if key not in self._new:
            name = self._free(f"{operation.name}_{operation.activation.__name__}")
            self._new[key] = keras.layers.Activation(operation.activation, name=name)
        return self._new[key]

    def _round(self, name: str, place: str, tensor: Any, called: str | None = None) -> Any:
        if place not in self._ranges.get(name, {}):
            return tensor
        key = f"{name} {place}"
        if key not in self._new:
            suffix = "_sum_range" if place == "pre_activation" else "_range"
            self._new[key] = FakeQuantize(
                name=self._free((called or name) + suffix), ranges="moving_average", momentum=MOMENTUM
            )
        return self._new[key](tensor)

    def _free(self, name: str) -> str:
        """`name`, numbered if it is taken."""
        free, number = name, 1
        while free in self._names:
            number += 1
            free = f"{name}_{number}"
        self._names.add(free)
        return free
