"""What stateful recurrent layers carry from one batch to the next.

Invariant: after `without_states` every layer carries what it did before. Left out: the states that a call is given, or
gives back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np


def states_of(layer: Any) -> list[Any]:
    """The variables in which a layer, of either Keras, carries its states; none where it is not stateful."""
    carried = keras.tree.flatten(getattr(layer, "states", None)) if getattr(layer, "stateful", False) else []
    return [state for state in carried if state is not None]


@contextlib.contextmanager
def without_states(*models: keras.Model) -> Iterator[None]:
    """Lets models begin anew, from states of zero, and gives them back what they carried.

    Args:
        models: The models, built.

    Example:
        >>> model = keras.Sequential([keras.Input(batch_shape=(1, 3, 2)), keras.layers.GRU(4, stateful=True)])
        >>> before = model(np.ones((1, 3, 2)))
        >>> with without_states(model):
        ...     anew = model(np.ones((1, 3, 2)))
        >>> bool((before == anew).numpy().all())
        True
    """
    states = [state for model in models for layer in model._flatten_layers() for state in states_of(layer)]
    carried = [keras.ops.convert_to_numpy(state) for state in states]
    try:
        for state, value in zip(states, carried, strict=True):
            state.assign(np.zeros_like(value))
        yield
    finally:
        for state, value in zip(states, carried, strict=True):
            state.assign(value)
