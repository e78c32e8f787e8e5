"""A model run call by call on real numbers, to see what is between its layers.

Invariant: layers are called on values, not on symbols, so the user's graph gets no new call; they run in inference.
Left out: gradients.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import keras
import tensorflow as tf

from tfcompress.graph.trace import Ref, Trace


def run_calls(traced: Trace, inputs: Any, wanted: Collection[Ref]) -> dict[Ref, tf.Tensor]:
    """The values of some results.

    Args:
        traced: The calls of a model.
        inputs: A batch of its inputs, in its own structure.
        wanted: The results to return.

    Returns:
        Their values, `(batch, ...)`.
    """
    refs = keras.tree.flatten(traced.inputs)
    given = keras.tree.flatten(inputs)
    values = {
        ref: tf.cast(value, traced.calls[ref.call].operation.dtype) for ref, value in zip(refs, given, strict=True)
    }
    last = max((ref.call for ref in wanted), default=-1)

    for index, call in enumerate(traced.calls[: last + 1]):
        if Ref(index) in values:
            continue
        args, kwargs = call.arguments(values.__getitem__)
        if isinstance(call.operation, keras.layers.Layer) and _takes_training(call.operation):
            kwargs["training"] = False
        results = keras.tree.flatten(call.operation(*args, **kwargs))
        values |= {Ref(index, at): result for at, result in enumerate(results)}
    return {ref: values[ref] for ref in wanted}


def _takes_training(layer: keras.layers.Layer) -> bool:
    return "training" in inspect.signature(layer.call).parameters
