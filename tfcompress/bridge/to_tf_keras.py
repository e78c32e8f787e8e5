"""A Keras 3 model as a tf_keras model: for TFMOT, and for whatever else needs the Keras that TensorFlow had before.

Invariant: same function, same weights, same training step, all checked layer by layer; the layers keep their names.
Nested models are opened, since most of what lives in tf_keras refuses them. Left out: subclassed models without a graph
(`graph/functional.py` makes one where that is possible), losses and optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tf_keras

from tfcompress.bridge.layer_twins import LayerMapping, check_layers, to_tf_keras_layer
from tfcompress.bridge.operation_layer import operation_layer
from tfcompress.bridge.parity import Twin, call_layer, check_parity
from tfcompress.bridge.weights import copy_layer_weights
from tfcompress.errors import ModelError
from tfcompress.graph.flatten import unique_names, unused_name
from tfcompress.graph.trace import Call, Ref, replay, trace

# Operations on two tensors of one shape that tf_keras has as layers, and TFMOT knows.
MERGES = {"Add", "Maximum", "Minimum", "Multiply", "Subtract"}


def to_tf_keras(model: keras.Model, *, layers: LayerMapping | None = None, check: bool = True) -> Any:
    """Carries a Keras 3 model over to tf_keras.

    Args:
        model: A functional or Sequential Keras 3 model, built. It is not changed.
        layers: How to make layers of your own in tf_keras: Keras 3 class to `function(layer) -> tf_keras layer`.
            Weights are copied after.
        check: Whether outputs, gradients and BatchNorm statistics are compared on random inputs. Only a model that was
            checked before should go without.

    Returns:
        A functional tf_keras model, not compiled. Its layers have the names of the Keras 3 ones; where two layers of
        nested models share a name, the later ones get a number.

    Raises:
        ModelError: If a layer has no twin in tf_keras, or computes something else there; the message names the first.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="hard_silu", name="y")])
        >>> to_tf_keras(model).get_layer("y").activation.__name__
        'keras3_hard_silu'
    """
    if not isinstance(model, keras.Model):
        raise ModelError(f"`to_tf_keras` takes a Keras 3 model. Received: {type(model)}.")
    traced = trace(model, allow_equal_names=True)
    crossing = _Crossing(unique_names(traced), check_layers(layers))
    legacy = replay(traced, crossing.call, new_input=crossing.new_input, new_model=tf_keras.Model)
    if check:
        check_parity(traced, crossing.twins, keras_model=model, legacy_model=legacy)
    return legacy


class _Crossing:
    """Makes the twin of each layer at its first call."""

    def __init__(self, names: dict[int, str], layers: LayerMapping):
        self._names, self._layers = names, layers
        self._made: dict[int, Any] = {}
        self._taken = set(names.values())
        self.twins: dict[int, Twin] = {}

    def new_input(self, layer: Any) -> Any:
        if getattr(layer, "sparse", False) or getattr(layer, "ragged", False):
            raise ModelError(f"Input {layer.name!r} is sparse or ragged; the bridge carries dense tensors only.")
        batch, *shape = layer.batch_shape
        return tf_keras.Input(shape, batch_size=batch, dtype=layer.dtype, name=self._names[id(layer)])

    def call(self, index: int, call: Call, args: tuple, kwargs: dict) -> Any:
        if isinstance(call.operation, keras.layers.Layer):
            twin = self._layer(call.operation)
        else:
            twin = self._operation(call, args, kwargs)
        self.twins[index] = twin
        try:
            result = twin.run_legacy(args, kwargs, None)
        except ModelError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"Layer {twin.name!r} ({type(call.operation).__name__}) cannot be called in tf_keras as it is here: "
                f"{error}"
            ) from error
        if id(twin) not in self._made:
            self._made[id(twin)] = twin
            if isinstance(call.operation, keras.layers.Layer):
                copy_layer_weights(twin.keras_layer, twin.legacy_layer)
        return result

    def _layer(self, layer: keras.layers.Layer) -> Twin:
        if id(layer) not in self._made:
            name = self._names[id(layer)]
            legacy = to_tf_keras_layer(layer, name, self._layers)
            self._made[id(layer)] = Twin(
                name,
                layer,
                legacy,
                lambda args, kwargs, training: call_layer(layer, args, kwargs, training),
                lambda args, kwargs, training: call_layer(legacy, args, kwargs, training),
            )
        return self._made[id(layer)]

    def _operation(self, call: Call, args: tuple, kwargs: dict) -> Twin:
        operation, name = call.operation, self._name_of_use(call.operation)
        if type(operation).__name__ in MERGES and not kwargs and _can_be_merged(call.args, args):
            legacy = getattr(tf_keras.layers, type(operation).__name__)(name=name, dtype=args[0].dtype.name)
        else:
            legacy = operation_layer(call, name)

        def run_legacy(args: tuple, kwargs: Mapping, training: bool | None) -> Any:
            refs, leaves = (keras.tree.flatten(side) for side in ((call.args, dict(call.kwargs)), (args, kwargs)))
            tensors = [leaf for ref, leaf in zip(refs, leaves, strict=True) if isinstance(ref, Ref)]
            return legacy(tensors[0] if len(tensors) == 1 else tensors)

        return Twin(name, operation, legacy, lambda args, kwargs, training: operation(*args, **kwargs), run_legacy)

    def _name_of_use(self, operation: Any) -> str:
        """Each use of an operation is a layer of its own there."""
        name = self._names[id(operation)]
        if id(operation) in self._made:
            name = unused_name(name, self._taken)
        self._made[id(operation)] = operation
        return name


def _can_be_merged(traced: tuple, args: tuple) -> bool:
    if not all(isinstance(arg, Ref) for arg in traced):
        return False
    if any(getattr(arg, "_keras_mask", None) is not None for arg in args):
        return False  # A layer would pass the mask on, and operations of Keras 3 don't.
    one = args[0]
    return one.dtype.is_floating and all(arg.shape == one.shape and arg.dtype == one.dtype for arg in args)
