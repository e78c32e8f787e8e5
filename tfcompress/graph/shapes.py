"""The shape and type of every tensor in a Keras graph.

Invariant: shapes are asked for, no layer is called, so that the user's graph gets no new call. Left out: values.
"""

from __future__ import annotations

import keras

from tfcompress.graph.trace import Ref, Trace, trace


def tensors_of(traced: Trace, *, batch: int | None = None) -> dict[Ref, keras.KerasTensor]:
    """Shape and type of each result of a trace.

    Args:
        traced: The calls of a model.
        batch: Samples in a batch of inputs; by default what the model's inputs say, most often an unknown number.

    Example:
        >>> traced = trace(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
        >>> tensors_of(traced)[Ref(1)].shape, tensors_of(traced, batch=1)[Ref(1)].shape
        ((None, 2), (1, 2))
    """
    tensors: dict[Ref, keras.KerasTensor] = {}
    for index, call in enumerate(traced.calls):
        if isinstance(call.operation, keras.layers.InputLayer):
            shape = call.operation.batch_shape
            outputs = keras.KerasTensor(shape if batch is None else (batch, *shape[1:]), call.operation.dtype)
        else:
            args, kwargs = call.arguments(tensors.__getitem__)
            outputs = call.operation.compute_output_spec(*args, **kwargs)
        tensors.update({Ref(index, at): result for at, result in enumerate(keras.tree.flatten(outputs))})
    return tensors


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
    return traced, {ref: tuple(tensor.shape) for ref, tensor in tensors_of(traced, batch=1).items()}
