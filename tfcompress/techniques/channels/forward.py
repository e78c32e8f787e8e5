"""A model run call by call on real numbers, to see what is between its layers.

Invariant: layers are called on values, not on symbols, so the user's graph gets no new call; they run in inference.
Left out: gradients.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
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
    values = _values_of_inputs(traced, inputs)
    last = max((ref.call for ref in wanted), default=-1)

    for index, call in enumerate(traced.calls[: last + 1]):
        if Ref(index) in values:
            continue
        values |= {Ref(index, at): result for at, result in enumerate(_in_inference(call, values.__getitem__))}
    return {ref: values[ref] for ref in wanted}


def walk(traced: Trace, inputs: Sequence[Any]) -> Iterator[tuple[int, Call, dict[Ref, list[tf.Tensor]]]]:
    """Each call just before it runs, with what is there then: a tensor for each batch, as long as a call will take it.

    The next call runs, with the weights that it has by then, when the caller asks for the one after it.
    """
    last = {ref: at for at, call in enumerate(traced.calls) for ref in call.sources}
    given = [_values_of_inputs(traced, batch) for batch in inputs]
    values = {ref: [batch[ref] for batch in given] for ref in given[0]}
    for at, call in enumerate(traced.calls):
        if Ref(at) in values:
            continue
        yield at, call, values
        batches = [
            _in_inference(call, {ref: each[number] for ref, each in values.items()}.__getitem__)
            for number in range(len(inputs))
        ]
        values |= {Ref(at, position): list(each) for position, each in enumerate(zip(*batches, strict=True))}
        values = {ref: each for ref, each in values.items() if last.get(ref, -1) > at}


def _values_of_inputs(traced: Trace, inputs: Any) -> dict[Ref, tf.Tensor]:
    """A batch of a model's inputs, in its own structure, as the tensors that its calls take."""
    refs, given = keras.tree.flatten(traced.inputs), keras.tree.flatten(inputs)
    return {ref: tf.cast(value, traced.calls[ref.call].operation.dtype) for ref, value in zip(refs, given, strict=True)}


def _in_inference(call: Call, value_of: Callable[[Ref], tf.Tensor]) -> list[tf.Tensor]:
    """The results of one call, in inference."""
    args, kwargs = call.arguments(value_of)
    if isinstance(call.operation, keras.layers.Layer) and _takes_training(call.operation):
        kwargs["training"] = False
    return keras.tree.flatten(call.operation(*args, **kwargs))


def _takes_training(layer: keras.layers.Layer) -> bool:
    return "training" in inspect.signature(layer.call).parameters
