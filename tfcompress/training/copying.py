"""Copies of Keras models: the same layers and weights, in the precision and distribution of the scope they are made in.

Invariant: the model that is copied is not changed, and the copy's weights are float32 equals of its own. Left out:
subclassed models without a `get_config`, which Keras cannot copy.
"""

from __future__ import annotations

from typing import Any

import keras

from tfcompress.errors import ModelError
from tfcompress.graph.copy_layer import copy_layer
from tfcompress.graph.trace import trace
from tfcompress.layers import FusedBatchNormalization

# Layers of other policies (integers, quantized weights) keep theirs.
FLOAT_POLICIES = ("float32", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16")


def copy_model(model: keras.Model, precision: str | None = "float32", *, fused: bool = False) -> keras.Model:
    """A copy of `model` with layers that compute in `precision`.

    Args:
        model: A built Keras model.
        precision: What all layers compute in: `"float32"`, `"mixed_float16"` or `"mixed_bfloat16"`. Those that give the
            model's outputs always compute in float32, since losses want it. `None` leaves each layer its own.
        fused: Whether each `BatchNormalization` is a `FusedBatchNormalization`, whose training step computes the same
            in less time: for copies that only train.

    Returns:
        A new model of the same structure.

    Raises:
        ModelError: If Keras cannot copy the model.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> copy_model(model).count_params()
        9
    """
    has_graph = hasattr(model, "operations") or isinstance(model, keras.Sequential)
    last = _output_layers(model) if has_graph else set()

    def clone(layer: keras.Operation) -> keras.Operation:
        if not isinstance(layer, keras.layers.Layer):
            return layer  # An operation, such as `x * 2.0`, has no state.
        changes: dict[str, Any] = {}
        if precision is not None and layer.dtype_policy.name in FLOAT_POLICIES:
            changes["dtype"] = "float32" if id(layer) in last else precision
        if fused and type(layer) is keras.layers.BatchNormalization:
            return FusedBatchNormalization.from_config({**layer.get_config(), **changes})
        return copy_layer(layer, **changes)

    try:
        if has_graph:
            copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
            copy.dtype_policy = model.dtype_policy if precision is None else precision
        else:
            copy = keras.models.clone_model(model)
    except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
        raise ModelError(
            f"Model {model.name!r} cannot be copied, so it cannot be trained without changing it: {error} "
            "Build it as a functional model, or give its class a `get_config`."
        ) from error
    copy.set_weights(model.get_weights())
    for layer in copy._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # It computes with constants that it makes of its weights.
    return copy


def _output_layers(model: keras.Model) -> set[int]:
    """Identities of the layers that give the outputs, those within nested models."""
    traced = trace(model)
    return {id(traced.calls[ref.call].operation) for ref in keras.tree.flatten(traced.outputs)}
