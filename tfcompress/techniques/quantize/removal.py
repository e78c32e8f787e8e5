"""The float model under a quantization-aware one.

Invariant: its layers are plain Keras layers with the same names and weights. Left out: how rounding was put in
(`rewrite.py`).
"""

from __future__ import annotations

from typing import Any

import keras

from tfcompress.graph.trace import Call, replay, trace
from tfcompress.layers import FakeQuantize, LeftInFloat, copy_plain_weights


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
        if isinstance(operation, FakeQuantize | LeftInFloat):
            return args[0]
        if not isinstance(operation, keras.layers.Layer):
            return operation(*args, **kwargs)
        if operation.name not in new:
            config = operation.get_config()
            for key in getattr(operation, "rounding_keys", ()):
                config.pop(key)
            new[operation.name] = getattr(operation, "base_class", type(operation)).from_config(config)
        return new[operation.name](*args, **kwargs)

    plain = replay(traced, call_plain)
    for call in traced.calls:
        if call.operation.name in new and call.operation.weights:
            copy_plain_weights(call.operation, new[call.operation.name])
    return plain
