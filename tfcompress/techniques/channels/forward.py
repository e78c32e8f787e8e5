"""A model run call by call on real numbers, to see what is between its layers.

Invariant: layers are called on values, not on symbols, so the user's graph gets no new call; they run in inference.
Left out: gradients.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

import keras
import tensorflow as tf

from tfcompress.graph.trace import Call, Ref, Trace


def run_calls(traced: Trace, inputs: Any, wanted: Collection[Ref]) -> dict[Ref, tf.Tensor]:
    """The values of some results.

    Args:
        traced: The calls of a model.
        inputs: A batch of its inputs, in its own structure.
        wanted: The results to return.

    Returns:
        Their values, `(batch, ...)`.
    """
    values = values_of_inputs(traced, inputs)
    last = max((ref.call for ref in wanted), default=-1)

    for index, call in enumerate(traced.calls[: last + 1]):
        if Ref(index) in values:
            continue
        values |= {Ref(index, at): result for at, result in enumerate(in_inference(call, values.__getitem__))}
    return {ref: values[ref] for ref in wanted}


def values_of_inputs(traced: Trace, inputs: Any) -> dict[Ref, tf.Tensor]:
    """A batch of a model's inputs, in its own structure, as the tensors that its calls take."""
    refs, given = keras.tree.flatten(traced.inputs), keras.tree.flatten(inputs)
    return {ref: tf.cast(value, traced.calls[ref.call].operation.dtype) for ref, value in zip(refs, given, strict=True)}


def in_inference(call: Call, value_of: Callable[[Ref], tf.Tensor]) -> list[tf.Tensor]:
    """The results of one call, in inference."""
    args, kwargs = call.arguments(value_of)
    if isinstance(call.operation, keras.layers.Layer) and _takes_training(call.operation):
        kwargs["training"] = False
    return keras.tree.flatten(call.operation(*args, **kwargs))


def _takes_training(layer: keras.layers.Layer) -> bool:
    return "training" in inspect.signature(layer.call).parameters
