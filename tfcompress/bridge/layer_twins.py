"""The same layer in the other Keras: what differs between the two generations' classes, arguments and activations.

Invariant: an argument that the other class doesn't know is left out only if it has its default value, or cannot alter
what the layer computes (`WITHOUT_EFFECT`); anything else is an error that names it. Left out: weights (`weights.py`)
and what connects layers (`to_tf_keras.py`, `from_tf_keras.py`).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tf_keras

from tfcompress.bridge.activations import from_tf_keras_activation, to_tf_keras_activation
from tfcompress.bridge.application_layers import APPLICATION_LAYERS, is_application_layer
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.copy_layer import adapted_state

# A function from a layer of a user's own to the same layer in the other Keras.
LayerMapping = Mapping[type, Callable[[Any], Any]]

# Arguments that only say how, or from which seed, a layer computes; or that shapes say again.
WITHOUT_EFFECT = {
    "autocast",
    "fused",
    "batch_input_shape",
    "build_config",
    "data_format",  # dropped only where the other class has none, and only if it is channels_last
    "flash_attention",
    "implementation",
    "input_length",
    "rng_type",
    "seed",
    "use_cudnn",
}
# Arguments of single classes, for the same reason.
UNUSED = {
    # What Conv has and a separable convolution does not use, having two kernels of other names.
    "SeparableConv1D": {"kernel_initializer", "kernel_regularizer", "kernel_constraint"},
    "SeparableConv2D": {"kernel_initializer", "kernel_regularizer", "kernel_constraint"},
    # Its input shapes, which building it says again.
    "MultiHeadAttention": {"query_shape", "key_shape", "value_shape"},
}
# Arguments that a class, and what derives from it, takes without naming them.
UNNAMED = {"RNN": {"zero_output_for_mask": False}}
# Keras 3 name of an argument, and tf_keras's.
RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
# tf_keras insists on integer or string types here, where Keras 3 has its default policy.
OWN_DTYPE = {"Discretization", "Hashing", "IntegerLookup", "StringLookup", "TextVectorization"}


def to_tf_keras_layer(layer: keras.layers.Layer, name: str, layers: LayerMapping) -> Any:
    """A tf_keras layer, without weights yet, that computes what `layer` does.

    Args:
        layer: A Keras 3 layer.
        name: What the new layer is called.
        layers: Functions for layers of the user's own, by class.

    Raises:
        ModelError: If tf_keras has no such layer, or not all of its arguments.
    """
    return _Translation(keras, tf_keras, RENAMED, to_tf_keras_activation, layers).layer(layer, name)


def from_tf_keras_layer(layer: Any, name: str, layers: LayerMapping) -> keras.layers.Layer:
    """A Keras 3 layer, without weights yet, that computes what the tf_keras `layer` does.

    Args and Raises: As `to_tf_keras_layer`.
    """
    renamed = {kind: {old: new for new, old in names.items()} for kind, names in RENAMED.items()}
    return _Translation(tf_keras, keras, renamed, from_tf_keras_activation, layers).layer(layer, name)


class _Translation:
    """One direction: from the layers of `source` to those of `target`."""

    def __init__(
        self,
        source: Any,
        target: Any,
        renamed: Mapping[str, Mapping[str, str]],
        activation: Callable[[Any], Any],
        layers: LayerMapping,
    ):
        self._source, self._target = source, target
        self._renamed, self._activation, self._layers = renamed, activation, layers

    def layer(self, layer: Any, name: str) -> Any:
        mapped = next((self._layers[kind] for kind in type(layer).__mro__ if kind in self._layers), None)
        if mapped is not None:
            return self._mapped(mapped, layer, name)
        if type(layer).__name__ == "Lambda":
            return self._lambda(layer, name)
        return self._make(type(layer), {**layer.get_config(), **adapted_state(layer), "name": name}, name, layer)

    def _mapped(self, function: Callable[[Any], Any], layer: Any, name: str) -> Any:
        try:
            made = function(layer)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"The function in `layers` for {type(layer).__name__} fails on layer {name!r}: {error}"
            ) from error
        if not isinstance(made, self._target.layers.Layer):
            raise ModelError(
                f"The function in `layers` for {type(layer).__name__} must give a layer of {self._target.__name__}. "
                f"Received: {type(made)}."
            )
        if layer.name == name and made.name != name:
            raise ModelError(
                f"The function in `layers` for {type(layer).__name__} must give a layer of the same name, "
                f"`name=layer.name`. Received: {made.name!r} for {name!r}."
            )
        return made

    def _lambda(self, layer: Any, name: str) -> Any:
        # Its function is in memory already; whether a file may bring one is decided where files are read.
        given = {"arguments": layer.arguments, "mask": layer.mask, "dtype": _policy_name(layer.get_config()["dtype"])}
        return self._target.layers.Lambda(layer.function, name=name, **given)

    def _make(self, kind: type, config: dict, name: str, layer: Any = None) -> Any:
        """A layer of the target from the class and configuration of one of the source."""
        target = self._target_class(kind, name)
        config = dict(config)
        if getattr(layer, "synchronized", False):
            config["synchronized"] = True  # tf_keras leaves it out of its configuration.
        _refuse_activity_losses(kind, config, name)
        if kind.__name__ in OWN_DTYPE:
            for key in ("dtype", "vocabulary_size"):
                config.pop(key, None)
        inner = getattr(layer, "layer", None)
        if "layer" in config and isinstance(inner, self._source.Model):
            config["layer"] = self._model(inner)
        arguments = self._arguments(kind, target, config, name)
        if kind.__name__ == "BatchNormalization" and self._target is tf_keras:
            # The fused kernel moves the variance with n - 1 samples in the denominator, and Keras 3 does it with n.
            arguments["fused"] = False
        if kind.__name__ == "BatchNormalization" and isinstance(arguments.get("axis"), list):
            # tf_keras writes one axis as a list of it.
            (arguments["axis"],) = arguments["axis"] if len(arguments["axis"]) == 1 else [arguments["axis"]]
        try:
            return target(**arguments)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"Layer {name!r} ({kind.__name__}) cannot be made in {self._target.__name__}: {error}"
            ) from error

    def _model(self, model: Any) -> Any:
        """A model within a wrapper such as TimeDistributed."""
        direction = "to_tf_keras" if self._source is keras else "from_tf_keras"
        crossing = importlib.import_module(f"tfcompress.bridge.{direction}")
        return getattr(crossing, direction)(model, layers=self._layers, check=False)

    def _target_class(self, kind: type, name: str) -> type:
        module = self._target.layers
        if is_application_layer(kind.__name__, kind.__module__):
            module = importlib.import_module(f"{self._target.__name__}.src.{APPLICATION_LAYERS[kind.__name__]}")
        elif not kind.__module__.startswith(f"{self._source.__name__}."):
            raise ModelError(
                f"Layer {name!r} is a {kind.__name__} of your own ({kind.__module__}), and the bridge does not know it "
                f"in {self._target.__name__}. Pass `layers={{{kind.__name__}: function}}` with a function that makes "
                "the other layer from it."
            )
        found = getattr(module, kind.__name__, None)
        if found is None:
            raise ModelError(
                f"Layer {name!r} cannot cross: {self._target.__name__} has no layer {kind.__name__}. Pass "
                f"`layers={{{kind.__name__}: function}}` with a function that makes one of your own from it."
            )
        return found

    def _arguments(self, kind: type, target: type, config: Mapping[str, Any], name: str) -> dict[str, Any]:
        known, defaults = _parameters(target), _parameters(kind)
        arguments = {}
        for key, value in config.items():
            renamed = self._renamed.get(kind.__name__, {}).get(key, key)
            if renamed in known:
                arguments[renamed] = self._value(key, value, name)
            elif key not in UNUSED.get(kind.__name__, ()) and not _droppable(key, value, defaults):
                raise ModelError(
                    f"Layer {name!r} ({kind.__name__}) cannot cross: in {self._target.__name__} it has no argument "
                    f"{key!r}. Received: {key}={value!r}."
                )
        return arguments

    def _value(self, key: str, value: Any, name: str) -> Any:
        if key == "dtype":
            return _policy_name(value)
        if key.endswith("activation"):
            if isinstance(value, Mapping) and hasattr(self._source.layers, str(value.get("class_name"))):
                return self._object(value, name)
            return self._activation(value)
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Mapping) and "class_name" in value and "config" in value:
            return self._object(value, name)
        if isinstance(value, list | tuple):
            items = [self._value("", item, name) for item in value]
            return tuple(items) if type(value) is tuple else items
        return value

    def _object(self, described: Mapping[str, Any], name: str) -> Any:
        """An initializer, regularizer, constraint or inner layer from its serialized form."""
        for group in ("initializers", "regularizers", "constraints"):
            source = getattr(getattr(self._source, group), described["class_name"], None)
            if source is None:
                continue
            target = getattr(getattr(self._target, group), described["class_name"], None)
            if target is None:
                break
            return target(**self._arguments(source, target, described["config"], name))
        kind = getattr(self._source.layers, described["class_name"], None)
        if kind is None:
            raise ModelError(
                f"Layer {name!r} cannot cross: {self._target.__name__} does not know its {described['class_name']}. "
                "Pass `layers={the layer's class: function}` to make the other layer yourself."
            )
        return self._make(kind, self._without_prefix(described["config"]), name)

    @staticmethod
    def _without_prefix(config: Mapping[str, Any]) -> dict[str, Any]:
        """Bidirectional puts the prefix in front of its inner layer's name again."""
        own = str(config.get("name", ""))
        return {**config, "name": own.removeprefix("forward_")} if own else dict(config)


def check_layers(layers: Any) -> LayerMapping:
    """Returns what the user maps.

    Raises:
        InvalidArgumentError: If it is no mapping from classes to functions.
    """
    layers = {} if layers is None else layers
    if not isinstance(layers, Mapping) or not all(isinstance(k, type) and callable(v) for k, v in layers.items()):
        raise InvalidArgumentError("layers", "a dict from layer classes to functions", layers)
    return layers


def _refuse_activity_losses(kind: type, config: Mapping[str, Any], name: str) -> None:
    """Two layers count the losses on their activations otherwise in the other Keras."""
    inner = config.get("layer") if kind.__name__ == "TimeDistributed" else config
    inner = inner.get("config", inner) if isinstance(inner, Mapping) else {}
    if kind.__name__ in ("MultiHeadAttention", "TimeDistributed") and inner.get("activity_regularizer") is not None:
        raise ModelError(
            f"Layer {name!r} ({kind.__name__}) cannot cross: the two Keras count its `activity_regularizer` apart. "
            "Regularize the layer after it."
        )


def _parameters(kind: type) -> dict[str, Any]:
    """Names and defaults of what a class can be made with, also of what it passes on to its bases."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        found |= UNNAMED.get(base.__name__, {})
        if "__init__" not in vars(base) or base is object:
            continue
        signature = inspect.signature(base.__init__)  # type: ignore[misc]
        for parameter in list(signature.parameters.values())[1:]:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, parameter.default)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
            break
    return found


def _droppable(key: str, value: Any, defaults: Mapping[str, Any]) -> bool:
    if key == "data_format":
        return value in (None, "channels_last")
    if key in defaults:
        return key in WITHOUT_EFFECT or bool(np.all(defaults[key] == value))
    # What a class takes among its **kwargs has no default to compare with; there, off is off.
    return key in WITHOUT_EFFECT or value is None or value is False or (key == "trainable" and value is True)


def _policy_name(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = value["config"].get("name")
    if value is not None and str(value).startswith(("int8_from", "int4_from", "float8_from", "gptq", "awq")):
        raise ModelError(f"A layer that Keras has quantized cannot cross. Received: the dtype policy {value!r}.")
    return value
