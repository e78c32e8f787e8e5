"""One graph out of many: nested models opened, every layer with a name of its own.

Invariant: the flat model computes the same function with equal weights; the model it was made of is not changed. Left
out: subclassed models, which have no graph (`functional.py`).
"""

from __future__ import annotations

import keras

from tfcompress.graph.copy_layer import LayerCopies, copy_layer
from tfcompress.graph.trace import Trace, replay, trace


def unique_names(traced: Trace) -> dict[int, str]:
    """A name for each layer and operation, by its identity: its own, or with a number where another one has it.

    The same model always gives the same names.
    """
    names: dict[int, str] = {}
    taken: set[str] = set()
    for call in traced.calls:
        if id(call.operation) in names:
            continue
        names[id(call.operation)] = unused_name(call.operation.name, taken)
    return names


def has_equal_names(traced: Trace) -> bool:
    """Whether layers of a model and of the models in it share a name, so that they cannot be known by their names."""
    names = {id(call.operation): call.operation.name for call in traced.calls}
    return len(set(names.values())) < len(names)


def unused_name(name: str, taken: set[str]) -> str:
    """`name`, or with the first number that makes it none of `taken`, to which it is added.

    Example:
        >>> unused_name("dense", {"dense", "dense_1"})
        'dense_2'
    """
    unused, number = name, 1
    while unused in taken:
        unused, number = f"{name}_{number}", number + 1
    taken.add(unused)
    return unused


def flatten(model: keras.Model) -> keras.Model:
    """A copy of a model with nested models opened and layers of equal names told apart by a number.

    Args:
        model: A functional or Sequential model, built.

    Returns:
        A new functional model with copies of the layers and their weights.

    Raises:
        ModelError: If the model has no graph.

    Example:
        >>> inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="dense")])
        >>> model = keras.Sequential([keras.Input((2,)), inner, keras.layers.Dense(2, name="dense")])
        >>> [layer.name for layer in flatten(model).layers[1:]]
        ['dense', 'dense_1']
    """
    traced = trace(model, allow_equal_names=True)
    names = unique_names(traced)
    return replay(traced, LayerCopies(lambda layer: copy_layer(layer, name=names[id(layer)])))
