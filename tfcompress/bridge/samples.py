"""Random inputs that a model can take: of its shapes and types, and whole numbers that its tables hold.

Invariant: the same trace gives the same inputs. Left out: inputs that mean something, which only the user has.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfcompress.graph.trace import Trace

# What stands for a size that a model leaves open.
OPEN_SIZE = 32
# Layers whose inputs are rows of a table, and the attribute that says how many it has.
TABLES = {"Embedding": "input_dim", "ReversibleEmbedding": "input_dim", "CategoryEncoding": "num_tokens"}


def random_inputs(traced: Trace, batch: int) -> list[np.ndarray]:
    """One array for each input, in the order of the trace's calls.

    Args:
        traced: A trace of a model of either Keras.
        batch: Samples in each array, unless the model says how many.
    """
    rng = np.random.default_rng(0)
    sizes = [
        getattr(call.operation, TABLES[type(call.operation).__name__])
        for call in traced.calls
        if type(call.operation).__name__ in TABLES
    ]
    largest = min(sizes, default=8)
    arrays = []
    for at in range(len(keras.tree.flatten(traced.inputs))):
        layer: Any = traced.calls[at].operation
        first, *shape = layer.batch_shape
        full = (first or batch, *(OPEN_SIZE if size is None else size for size in shape))
        arrays.append(_random(rng, full, layer.dtype, largest))
    return arrays


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, largest: int) -> np.ndarray:
    if dtype == "string":
        return rng.choice(np.array(["one", "two", "three"], dtype=object), size=shape)
    if dtype == "bool":
        return rng.integers(0, 2, size=shape).astype(bool)
    if "int" in dtype:
        return rng.integers(0, largest, size=shape).astype(dtype)
    # Away from zero, where square roots and logarithms of neighbours differ most.
    return rng.uniform(0.1, 1.0, size=shape).astype("float32" if dtype == "bfloat16" else dtype)
