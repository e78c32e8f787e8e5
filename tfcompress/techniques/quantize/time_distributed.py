"""`TimeDistributed` opened: its layer in the graph, between two reshapings that take the steps into the batch and back.

Around a `Dense` layer, which takes any rank, it becomes that layer. The layer has the wrapper's name, so that patterns
of names go on to fit it; a model within keeps the names of its layers.

Invariant: the opened model computes the same function when it is used, and its weights come in the same order unless
it has branches of several lengths, which Keras lists by their depth. Left out: the training of a BatchNormalization
within, which has statistics of one step after the other in Keras, and of all steps at once when opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers
from keras.src.ops import numpy as operations

from tfcompress.graph.copy_layer import LayerCopies, copy_layer
from tfcompress.graph.flatten import unique_names, unused_name
from tfcompress.graph.trace import Call, Trace, replay
from tfcompress.techniques.layer_names import fits

# The layers that compute the same on `(batch, steps, features)` as on each step, and cost no reshaping so.
_OF_ANY_RANK = (layers.Dense,)


def time_distributed_reason(call: Call) -> str | None:
    """Why the `TimeDistributed` layer of a call cannot be opened, or None."""
    if len(call.sources) != 1:
        return "a mask that comes from the network"
    shape = call.operation.input.shape
    return f"its input has unknown sizes: {shape}" if None in shape[1:] else None


def open_time_distributed(traced: Trace, keep: Sequence[str] = ()) -> keras.Model | None:
    """A copy of a model with its `TimeDistributed` layers opened.

    Args:
        traced: The calls of the model.
        keep: Patterns of names of layers to leave as they are.

    Returns:
        A new functional model with copies of the layers and their weights, or None where there is nothing to open. A
        `TimeDistributed` layer within another is opened by another call.

    Example:
        >>> inputs = keras.Input((5, 8, 8, 3))
        >>> model = keras.Model(inputs, layers.TimeDistributed(layers.Conv2D(4, 3), name="frames")(inputs))
        >>> from tfcompress.graph.trace import trace
        >>> opened = trace(open_time_distributed(trace(model)))
        >>> [call.operation.name for call in opened.calls[1:]]
        ['frames_steps', 'frames', 'frames_sequence']
    """
    to_open = {
        id(call.operation): call.operation
        for call in traced.calls
        if type(call.operation) is layers.TimeDistributed
        and time_distributed_reason(call) is None
        and not fits(call.operation.name, keep)
    }
    return replay(traced, _Opener(traced, to_open)) if to_open else None


class _Opener:
    """One opening: copies of layers, and of those in the wrappers that are opened."""

    def __init__(self, traced: Trace, to_open: dict[int, Any]):
        self._to_open = to_open
        self._names = unique_names(traced)
        taken = set(self._names.values())
        self._copies = LayerCopies(lambda layer: copy_layer(layer, name=self._names[id(layer)]))
        # The reshapings before and after the layer of each wrapper.
        self._reshapings: dict[int, tuple[str, str]] = {}
        for wrapper in to_open.values():
            inner, name = wrapper.layer, self._names[id(wrapper)]
            is_model = isinstance(inner, keras.Model)
            self._names.setdefault(id(inner), unused_name(inner.name, taken) if is_model else name)
            self._reshapings[id(wrapper)] = unused_name(f"{name}_steps", taken), unused_name(f"{name}_sequence", taken)

    def __call__(self, index: int, call: Call, args: tuple, kwargs: dict) -> Any:
        operation = call.operation
        if id(operation) not in self._to_open:
            return self._copies.apply(operation, *args, **kwargs)
        (inputs,) = (leaf for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, keras.KerasTensor))
        if isinstance(operation.layer, _OF_ANY_RANK):
            return self._copies.apply(operation.layer, inputs)
        return self._each_step(operation, inputs)

    def _each_step(self, wrapper: Any, inputs: Any) -> Any:
        steps, *sizes = inputs.shape[1:]
        # Two operations for each use: a shared wrapper may get sequences of several lengths.
        before, after = self._reshapings.pop(id(wrapper), (None, None))
        result = self._copies.apply(wrapper.layer, operations.Reshape((-1, *sizes), name=before)(inputs))
        return operations.Reshape((-1, steps, *result.shape[1:]), name=after)(result)
