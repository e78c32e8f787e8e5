"""Activation functions from one Keras to the other.

Invariant: a name crosses as a name only if both Keras compute the same under it; any other function crosses as itself,
registered, so that a saved model finds it again. Left out: activation layers, which are layers like others.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import keras
import tf_keras

from tfcompress.errors import ModelError
from tfcompress.layers.activations import legacy_hard_sigmoid

# Keras 3 name, and tf_keras's.
EQUAL = {
    name: name
    for name in (
        [
            "elu",
            "exponential",
            "gelu",
            "linear",
            "mish",
            "relu",
            "selu",
            "sigmoid",
            "softmax",
            "softplus",
            "softsign",
            "swish",
            "tanh",
        ]
    )
} | {"silu": "swish"}
PACKAGE = "tfcompress"
PREFIX = "keras3_"


def to_tf_keras_activation(activation: Any) -> Any:
    """What stands for a Keras 3 activation, as it is in a configuration, in tf_keras: a name or a function."""
    name = _name(activation)
    if name is None or name in EQUAL:
        return None if name is None else EQUAL[name]
    if name == f"{PACKAGE}>{legacy_hard_sigmoid.__name__}":
        return "hard_sigmoid"
    return _keras3_function(name)


def from_tf_keras_activation(activation: Any) -> Any:
    """What stands for a tf_keras activation in Keras 3: a name or a function."""
    name = _name(activation)
    if name in EQUAL.values() or name is None:
        return name
    if name.startswith(f"{PACKAGE}>{PREFIX}"):
        return name.removeprefix(f"{PACKAGE}>{PREFIX}")
    if name == "hard_sigmoid":
        return legacy_hard_sigmoid
    raise _unknown(name, "Keras 3")


def register_named_in(text: str) -> None:
    """Registers the Keras 3 activations that a configuration names, so that tf_keras finds them.

    Args:
        text: The JSON of a model that `to_tf_keras` may have made; other names in it are left alone.
    """
    for name in set(re.findall(rf'"{PACKAGE}>{PREFIX}([a-z]\w*)"', text)):
        if name not in ("get", "serialize", "deserialize") and inspect.isfunction(getattr(keras.activations, name, 0)):
            _keras3_function(name)


def as_names(text: str) -> str:
    """The same configuration with the Keras 3 activations in it as names.

    tf_keras writes a function as an object with a module, which its own reader of `.h5` files does not take.
    """
    return re.sub(rf'\{{[^{{}}]*"config": ("{PACKAGE}>{PREFIX}[a-z]\w*")[^{{}}]*\}}', r"\1", text)


@functools.cache
def _keras3_function(name: str) -> Callable[[Any], Any]:
    """A Keras 3 activation as tf_keras can call, save and find it."""
    try:
        function = keras.activations.get(name)
    except ValueError as error:
        raise _unknown(name, "tf_keras") from error

    def activation(x: Any) -> Any:
        return function(x)

    activation.__name__ = activation.__qualname__ = PREFIX + name
    return tf_keras.saving.register_keras_serializable(PACKAGE)(activation)


def _name(activation: Any) -> str | None:
    """The name of an activation in a configuration: a string, a serialized function, or a function."""
    if isinstance(activation, dict):
        registered = activation.get("registered_name")
        return registered if registered and ">" in registered else str(activation.get("config"))
    if callable(activation):
        return getattr(activation, "__name__", repr(activation))
    return activation


def _unknown(name: str | None, where: str) -> ModelError:
    return ModelError(
        f"The activation {name!r} is not known in {where}. Put it in a layer of your own and pass "
        "`layers={your class: function that makes the other layer}`."
    )
