"""The shape of every tensor in a Keras graph.

Invariant: shapes are asked for, no layer is called, so that the user's graph gets no new call. Left out: values.
"""

from __future__ import annotations

from typing import Any

import keras

from tfcompress.graph.trace import Ref, Trace, trace


def traced_with_shapes(model: keras.Model) -> tuple[Trace, dict[Ref, tuple[int | None, ...]]]:
    """The calls of a model, and the shape of each result, `(1, ...)` for a batch of one.

    Raises:
        ModelError: If the model has no graph, or two of its layers have one name.

    Example:
        >>> traced, shapes = traced_with_shapes(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
        >>> shapes[Ref(1)]
        (1, 2)
    """
    traced = trace(model)
    tensors: dict[Ref, Any] = {}

    def tensor(leaf: Any) -> Any:
        return tensors[leaf] if isinstance(leaf, Ref) else leaf

    for index, call in enumerate(traced.calls):
        if isinstance(call.operation, keras.layers.InputLayer):
            layer = call.operation
            outputs = keras.KerasTensor((1, *layer.batch_shape[1:]), layer.dtype)
        else:
            args, kwargs = keras.tree.map_structure(tensor, (call.args, dict(call.kwargs)))
            outputs = call.operation.compute_output_spec(*args, **kwargs)
        tensors.update({Ref(index, at): result for at, result in enumerate(keras.tree.flatten(outputs))})
    return traced, {ref: tuple(result.shape) for ref, result in tensors.items()}
