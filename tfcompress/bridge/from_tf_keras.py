"""A tf_keras model as a Keras 3 model, which every other part of tfcompress takes.

Invariant: same function, same weights, same training step, all checked layer by layer; layers keep their names, `/` in
them replaced. What `to_tf_keras` made comes back as what it was. Left out: subclassed models without a graph, losses
and optimizers, and the variance that fused BatchNormalization moves with n - 1 samples (see `parity.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tf_keras

from tfcompress.bridge.layer_twins import LayerMapping, check_layers, from_tf_keras_layer
from tfcompress.bridge.legacy_trace import trace_tf_keras
from tfcompress.bridge.operation_layer import Keras3Operation
from tfcompress.bridge.parity import Twin, call_layer, check_parity
from tfcompress.bridge.tf_functions import run_tf_function
from tfcompress.bridge.weights import copy_layer_weights
from tfcompress.errors import ModelError
from tfcompress.graph.flatten import unique_names, unused_name
from tfcompress.graph.trace import Call, replay

FUNCTION_LAYERS = ("TFOpLambda", "SlicingOpLambda")


def from_tf_keras(model: Any, *, layers: LayerMapping | None = None, check: bool = True) -> keras.Model:
    """Carries a tf_keras model over to Keras 3.

    Args:
        model: A functional tf_keras model, or a Sequential one with an input shape. It is not changed.
        layers: How to make layers of your own in Keras 3: tf_keras class to `function(layer) -> Keras 3 layer`.
            Weights are copied after.
        check: Whether outputs, gradients and BatchNorm statistics are compared on random inputs. Only a model that was
            checked before should go without.

    Returns:
        A functional Keras 3 model, not compiled, with nested models opened.

    Raises:
        ModelError: If a layer or function has no twin in Keras 3, or computes something else there; the message names
            the first.

    Example:
        >>> inputs = tf_keras.Input((4,))
        >>> model = tf_keras.Model(inputs, tf_keras.layers.Dense(2, name="y")(inputs) * 2.0)
        >>> [type(operation).__name__ for operation in from_tf_keras(model).operations[1:]]
        ['Dense', 'Multiply']
    """
    if not isinstance(model, tf_keras.Model):
        raise ModelError(f"`from_tf_keras` takes a tf_keras model. Received: {type(model)}.")
    traced = trace_tf_keras(model)
    crossing = _Crossing(unique_names(traced), check_layers(layers))
    made = replay(traced, crossing.call, new_input=crossing.new_input, new_model=keras.Model)
    if check:
        check_parity(traced, crossing.twins, keras_model=made, legacy_model=model)
    return made


class _Crossing:
    """Makes the twin of each layer at its first call."""

    def __init__(self, names: Mapping[int, str], layers: LayerMapping):
        self._names = _without_slashes(names)
        self._layers = layers
        self._made: dict[int, Twin] = {}
        self._silent: set[int] = set()
        self.twins: dict[int, Twin] = {}

    def new_input(self, layer: Any) -> Any:
        return keras.Input(batch_shape=layer.batch_shape, dtype=layer.dtype, name=self._names[id(layer)])

    def call(self, index: int, call: Call, args: tuple, kwargs: dict) -> Any:
        kwargs = dict(kwargs)
        self._refuse_own_mode(call.operation, kwargs.pop("training", None))
        first_use = id(call.operation) not in self._made
        if first_use:
            self._made[id(call.operation)] = self._twin(call.operation)
        twin = self.twins[index] = self._made[id(call.operation)]
        try:
            result = twin.run_keras(args, kwargs, None)
        except ModelError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"Layer {twin.name!r} ({type(call.operation).__name__}) cannot be called in Keras 3 as it is here: "
                f"{error}"
            ) from error
        if first_use and isinstance(twin.keras_layer, keras.layers.Layer):
            copy_layer_weights(twin.legacy_layer, twin.keras_layer)
        return result

    def _refuse_own_mode(self, layer: Any, training: bool | None) -> None:
        """A call with a `training` of its own: in Keras 3 a layer always follows its model."""
        if training is None:
            return
        frozen = not training and (not layer.weights or not layer.trainable)
        if not frozen:
            raise ModelError(
                f"Layer {layer.name!r} is called with training={training}, which in Keras 3 holds only as long as the "
                "model is called without a mode of its own. Set its `trainable` to False (for training=False), or "
                "call it without."
            )
        if not layer.weights:
            self._silent.add(id(layer))

    def _twin(self, layer: Any) -> Twin:
        name = self._names[id(layer)]

        def run_legacy(args: tuple, kwargs: Mapping, training: bool | None) -> Any:
            return call_layer(layer, args, kwargs, False if id(layer) in self._silent else training)

        if type(layer).__name__ in FUNCTION_LAYERS:
            return Twin(
                name, layer, layer, lambda args, kwargs, _: run_tf_function(layer, args, kwargs, name), run_legacy
            )
        if isinstance(layer, Keras3Operation):
            return Twin(name, layer.operation, layer, lambda args, kwargs, _: _run_operation(layer, args), run_legacy)
        if id(layer) in self._silent:
            # A dropout that is never active.
            twin: Any = keras.layers.Identity(name=name)
        else:
            twin = from_tf_keras_layer(layer, name, self._layers)

        def run_keras(args: tuple, kwargs: Mapping, training: bool | None) -> Any:
            return call_layer(twin, *_states_named(layer, args, kwargs), training)

        return Twin(name, twin, layer, run_keras, run_legacy)


def _without_slashes(names: Mapping[int, str]) -> dict[int, str]:
    """Names that Keras 3 allows, still all different."""
    taken = {name for name in names.values() if "/" not in name}
    return {key: unused_name(name.replace("/", "_"), taken) if "/" in name else name for key, name in names.items()}


def _states_named(layer: Any, args: tuple, kwargs: Mapping) -> tuple[tuple, Mapping]:
    """The arguments of a recurrent layer, which tf_keras calls on a list of its input and initial states."""
    recurrent = isinstance(layer, tf_keras.layers.RNN | tf_keras.layers.Bidirectional | tf_keras.layers.ConvLSTM2D)
    if recurrent and isinstance(args[0], list | tuple):
        sequence, *states = args[0]
        return (sequence,), {**kwargs, "initial_state": states}
    return args, kwargs


def _run_operation(layer: Keras3Operation, inputs: tuple) -> Any:
    args, kwargs = layer.fill(list(inputs))
    return layer.operation(*args, **kwargs)
