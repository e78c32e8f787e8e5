"""How far two results are apart, as a share of the largest value.

Invariant: memory for no more than a piece of each tensor; the gradients of a large kernel are as large as the kernel.
Left out: what may differ by how much, which `parity.py` decides.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

# Values that are compared at once, in float64.
PIECE = 1 << 16


def difference(expected: Any, actual: Any, floor: float = 0.0) -> float:
    """Largest difference as a share of the largest value, or of `floor` if that is larger.

    Infinite where shapes, types, strings or NaNs differ.
    """
    expected, actual = keras.tree.flatten(expected), keras.tree.flatten(actual)
    if len(expected) != len(actual):
        return float("inf")
    pairs = zip(expected, actual, strict=True)
    return max((_of_arrays(as_array(one), as_array(other), floor) for one, other in pairs), default=0.0)


def as_array(value: Any) -> np.ndarray:
    """A copy of a tensor or variable of either Keras; bfloat16 as float32, since NumPy has no such type."""
    if isinstance(value, keras.Variable):
        value = value.value
    tensor = tf.convert_to_tensor(value)
    if tensor.dtype == tf.bfloat16:
        tensor = tf.cast(tensor, tf.float32)
    # A copy: what `numpy()` gives may be the memory of a variable that changes.
    return np.array(tensor.numpy())


def _of_arrays(expected: np.ndarray, actual: np.ndarray, floor: float) -> float:
    if expected.shape != actual.shape or (expected.dtype.kind == "f" and expected.dtype != actual.dtype):
        return float("inf")
    if np.array_equal(expected, actual):
        return 0.0
    if not (np.issubdtype(expected.dtype, np.number) and np.issubdtype(actual.dtype, np.number)):
        return float("inf")
    gap, largest = 0.0, max(floor, float(np.finfo(np.float32).tiny))
    expected, actual = expected.reshape(-1), actual.reshape(-1)
    for start in range(0, expected.size, PIECE):
        one, other = (side[start : start + PIECE].astype(np.float64) for side in (expected, actual))
        finite = np.isfinite(one)
        if not np.array_equal(finite, np.isfinite(other)):
            return float("inf")
        one, other = one[finite], other[finite]
        gap, largest = max(gap, np.abs(one - other).max(initial=0.0)), max(largest, np.abs(one).max(initial=0.0))
    return float(gap / largest)
