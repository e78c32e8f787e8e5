"""A `keras.ops` operation of a Keras 3 graph as a layer of tf_keras.

Invariant: it runs the very operation that Keras 3 runs, since both compute with TensorFlow; its configuration is JSON,
and nothing but an operation is built from it (`operation_names.py`). Left out: sums and products of two equal tensors,
for which tf_keras has layers of its own (`to_tf_keras.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import keras
import tf_keras

from tfcompress.bridge.operation_names import PLACE, read_operation
from tfcompress.errors import ModelError
from tfcompress.graph.trace import Call, Ref


@tf_keras.saving.register_keras_serializable("tfcompress")
class Keras3Operation(tf_keras.layers.Layer):
    """Computes one `keras.ops` operation.

    Args:
        operation: The operation as JSON, as `keras.saving.serialize_keras_object` gives it.
        arguments: `[args, kwargs]` as JSON, with `{"__tensor_at__": n}` in the place of input n.

    Raises:
        ModelError: If it is anything else than an operation of `keras.ops`, such as a function.

    Input: a tensor or a list of them. Output: what the operation gives.
    """

    def __init__(self, operation: str, arguments: str, **kwargs: Any):
        # Operations compute in the type that comes in.
        super().__init__(**{**kwargs, "autocast": False})
        self._operation_json, self._arguments_json = operation, arguments
        try:
            described, given = read_operation(operation, arguments)
        except ValueError as error:
            raise ModelError(f"A Keras3Operation must hold an operation of Keras: {error}.") from error
        self._operation = keras.saving.deserialize_keras_object(described)
        if not isinstance(self._operation, keras.Operation) or isinstance(self._operation, keras.layers.Layer):
            raise ModelError(f"A Keras3Operation must hold an operation of Keras, and no layer. Received: {described}.")
        self._arguments = (keras.saving.deserialize_keras_object(given),)

    def fill(self, tensors: Any) -> tuple[tuple, dict]:
        """The arguments of the operation, with the tensors in their places."""
        flat = keras.tree.flatten(tensors)

        def place(value: Any) -> Any:
            if isinstance(value, Mapping):
                if set(value) == {PLACE}:
                    return flat[value[PLACE]]
                return {key: place(inner) for key, inner in value.items()}
            if isinstance(value, list | tuple):
                return [place(inner) for inner in value]
            return value

        args, kwargs = place(self._arguments[0])
        if type(self._operation).__name__ == "GetItem":
            # An index comes back from JSON as a list, which TensorFlow takes for something else.
            args = [args[0], *(tuple(key) if isinstance(key, list) else key for key in args[1:])]
        return tuple(args), kwargs

    @property
    def operation(self) -> Any:
        return self._operation

    def call(self, inputs):
        args, kwargs = self.fill(inputs)
        return self._operation(*args, **kwargs)

    def compute_mask(self, inputs, mask=None):
        # Operations of Keras 3 don't pass masks on either.
        return None

    def get_config(self):
        return {**super().get_config(), "operation": self._operation_json, "arguments": self._arguments_json}


def operation_layer(call: Call, name: str) -> Keras3Operation:
    """The layer for a call of an operation; it is called on the list of `call.sources`.

    Raises:
        ModelError: If the operation or its arguments cannot be written down.
    """
    at = iter(range(len(call.sources)))
    args, kwargs = keras.tree.map_structure(
        lambda leaf: {PLACE: next(at)} if isinstance(leaf, Ref) else leaf, (call.args, dict(call.kwargs))
    )
    try:
        operation = json.dumps(keras.saving.serialize_keras_object(call.operation))
        arguments = json.dumps(keras.saving.serialize_keras_object([list(args), kwargs]))
        return Keras3Operation(operation, arguments, name=name)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ModelError(
            f"The operation {name!r} ({type(call.operation).__name__}) cannot be written down, so it cannot cross to "
            f"tf_keras: {error}"
        ) from error
