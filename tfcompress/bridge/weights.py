"""Weights from the layers of one Keras to those of the other.

Invariant: every weight of a layer moves, or the layer is named in an error; shapes must be equal. Left out: which layer
is the twin of which, which `to_tf_keras` and `from_tf_keras` know; and the optimizer's slots.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tf_keras

from tfcompress.bridge.legacy_trace import trace_tf_keras
from tfcompress.errors import ModelError
from tfcompress.graph.copy_layer import copy_layer
from tfcompress.graph.flatten import unique_names
from tfcompress.graph.trace import has_graph, trace


def paired_weights(source: Any, target: Any) -> list[tuple[Any, Any]]:
    """Each weight of a layer with that of its twin in the other Keras (or in the same one).

    Args:
        source: A built layer of either Keras.
        target: A built layer of either Keras.

    Raises:
        ModelError: If the twins do not have weights of the same shapes.
    """
    inner = [getattr(layer, "layer", None) for layer in (source, target)]
    if any(isinstance(model, keras.Model | tf_keras.Model) for model in inner):
        return _paired_in_models(*inner)
    given, wanted = _as_created(source), _as_created(target)
    if [_last(weight) for weight in given] != [_last(weight) for weight in wanted]:
        given = _in_order_of(given, wanted)
    if [tuple(weight.shape) for weight in given] != [tuple(weight.shape) for weight in wanted]:
        raise ModelError(
            f"Layer {source.name!r} has other weights in the other Keras: "
            f"{_described(source.weights)} here, {_described(wanted)} there."
        )
    return list(zip(given, wanted, strict=True))


def copy_layer_weights(source: Any, target: Any) -> None:
    """Copies the weights of a layer to its twin in the other Keras (or in the same one).

    Args:
        source: A built layer of either Keras.
        target: A built layer of either Keras, with weights of the same shapes.

    Raises:
        ModelError: If the twins do not have the same weights.
    """
    for one, other in paired_weights(source, target):
        other.assign(_value(one))
    if type(target).__name__ == "Normalization":
        target.finalize_state()  # It computes with constants that it makes of its weights.


def copy_weights_back(legacy: Any, model: keras.Model) -> keras.Model:
    """A copy of a Keras 3 model with the weights that its tf_keras twin has now.

    Args:
        legacy: What `to_tf_keras(model)` made, trained since; or any tf_keras model with layers of those names.
        model: The Keras 3 model that crossed. It is not changed.

    Returns:
        A new model of the same structure, nested models and all.

    Raises:
        ModelError: If a layer with weights is missing in `legacy`, or has others.
    """
    copy = keras.models.clone_model(model, clone_function=copy_layer, recursive=has_graph(model))
    copy.set_weights(model.get_weights())
    traced, copied = (trace(one, allow_equal_names=True) for one in (model, copy))
    names = unique_names(traced)
    twins = {layer.name: layer for layer in legacy.layers}
    for call, own in zip(traced.calls, copied.calls, strict=True):
        if not getattr(call.operation, "weights", None):
            continue
        name = names[id(call.operation)]
        if name not in twins:
            raise ModelError(
                f"The tf_keras model {legacy.name!r} has no layer {name!r}. Received: layers {sorted(twins)}."
            )
        copy_layer_weights(twins[name], own.operation)
    return copy


def _as_created(layer: Any) -> list[Any]:
    """A layer's weights, whatever part of it is frozen: tf_keras puts the frozen ones of all parts last."""
    if not isinstance(layer, tf_keras.layers.Layer):
        return list(layer.weights)
    parts = [part for part in (layer, *layer.submodules) if isinstance(part, tf_keras.layers.Layer)]
    flags = [part.trainable for part in parts]
    layer.trainable = True
    try:
        return list(layer.weights)
    finally:
        # A layer's flag is set in its parts too, so the outermost comes first.
        for part, flag in zip(parts, flags, strict=True):
            part.trainable = flag


def _paired_in_models(source: Any, target: Any) -> list[tuple[Any, Any]]:
    """The weights of models within a wrapper such as TimeDistributed: layer by layer, since models order them apart."""
    there = _layers_by_name(target)
    return [
        pair
        for name, layer in _layers_by_name(source).items()
        if getattr(layer, "weights", None)
        for pair in paired_weights(layer, there[name])
    ]


def _layers_by_name(model: Any) -> dict[str, Any]:
    traced = trace(model, allow_equal_names=True) if isinstance(model, keras.Model) else trace_tf_keras(model)
    names = unique_names(traced)
    return {names[id(call.operation)].replace("/", "_"): call.operation for call in traced.calls}


def _in_order_of(given: list, wanted: list) -> list:
    """`given` sorted like `wanted` by what each is called, as much of it as tells them apart; else as it is."""
    for parts in range(1, 5):
        names, there = ([_last(weight, parts) for weight in side] for side in (given, wanted))
        if len(set(names)) == len(names) and set(names) == set(there):
            by_name = dict(zip(names, given, strict=True))
            return [by_name[name] for name in there]
    return given


def _last(weight: Any, parts: int = 1) -> str:
    """What a weight is called within its layer, such as `kernel`, or with more parts `query/kernel`."""
    return "/".join(getattr(weight, "path", weight.name).partition(":")[0].split("/")[-parts:])


def _value(weight: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(weight.value) if isinstance(weight, keras.Variable) else weight.numpy()


def _described(weights: Any) -> list[str]:
    return [f"{_last(weight)} {tuple(weight.shape)}" for weight in weights]
