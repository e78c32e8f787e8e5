"""Random inputs that a model can take: of its shapes and types, and whole numbers that its tables hold.

Invariant: the same trace gives the same inputs. Left out: inputs that mean something, which only the user has.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfcompress.graph.trace import Trace

# What stands for a size that a model leaves open; the larger one for networks that make too little of the first.
OPEN_SIZE = 64
LARGE_OPEN_SIZE = 256
# Layers whose inputs are rows of a table, and the attribute that says how many it has.
TABLES = {"Embedding": "input_dim", "ReversibleEmbedding": "input_dim", "CategoryEncoding": "num_tokens"}


def random_inputs(traced: Trace, batch: int, *, open_size: int = OPEN_SIZE, signed: bool = True) -> list[np.ndarray]:
    """One array for each input, in the order of the trace's calls.

    The last steps of the first sample are what layers mask: zeros among whole numbers, and the value of a Masking.

    Args:
        traced: A trace of a model of either Keras.
        batch: Samples in each array, unless the model says how many.
        open_size: What stands for a size that the model leaves open.
        signed: Whether half of the floats are negative, which square roots and logarithms cannot take.
    """
    rng = np.random.default_rng(0)
    kinds = [(type(call.operation).__name__, call.operation) for call in traced.calls]
    largest = min((getattr(one, TABLES[kind]) for kind, one in kinds if kind in TABLES), default=8)
    masked = next((one.mask_value for kind, one in kinds if kind == "Masking"), None)
    arrays = []
    for at in range(len(keras.tree.flatten(traced.inputs))):
        layer: Any = traced.calls[at].operation
        first, *shape = layer.batch_shape
        full = (first or batch, *(open_size if size is None else size for size in shape))
        array = _random(rng, full, layer.dtype, largest, signed)
        value = masked if array.dtype.kind == "f" else 0 if "int" in layer.dtype else None
        if value is not None and array.ndim > 1:
            array[0, -(-2 * array.shape[1] // 3) :] = value
        arrays.append(array)
    return arrays


def random_floats(rng: np.random.Generator, shape: tuple[int, ...], *, signed: bool) -> np.ndarray:
    """Magnitudes from 0.1 to 1: away from zero, where roots, logarithms and kinks of neighbours differ most."""
    values = rng.uniform(0.1, 1.0, size=shape)
    return values * rng.choice([-1.0, 1.0], size=shape) if signed else values


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, largest: int, signed: bool) -> np.ndarray:
    if dtype == "string":
        return rng.choice(np.array(["one", "two", "three"], dtype=object), size=shape)
    if dtype == "bool":
        return rng.integers(0, 2, size=shape).astype(bool)
    if "int" in dtype:
        return rng.integers(0, largest, size=shape).astype(dtype)
    return random_floats(rng, shape, signed=signed).astype("float32" if dtype == "bfloat16" else dtype)
