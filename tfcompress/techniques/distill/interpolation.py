"""Interpolation of positions in a row, as a matrix: what each old one gives to each new one.

Invariant: each row sums to 1. A product with a matrix is what XLA can compile, as it cannot a resizing with averages.
Left out: two axes at once, which are two products.
"""

from __future__ import annotations

import functools

import numpy as np


@functools.cache
def triangle_weights(old: int, new: int) -> np.ndarray:
    """Linear interpolation, and where there are fewer new positions a triangle around each, as wide as it must be.

    Args:
        old: Number of positions that there are.
        new: Number of positions that there shall be.

    Returns:
        float32 of shape `(new, old)`.

    Example:
        >>> triangle_weights(2, 4).tolist()
        [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    scale = old / new
    centres = (np.arange(new)[:, None] + 0.5) * scale
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(old) + 0.5 - centres) / max(scale, 1.0))
    return (weights / weights.sum(1, keepdims=True)).astype("float32")


@functools.cache
def area_weights(old: int, new: int) -> np.ndarray:
    """The mean over the old positions that a new one covers, wholly or in part, of which there are at most as many.

    Args:
        old: Number of positions that there are.
        new: Number of positions that there shall be, at most `old`.

    Returns:
        float32 of shape `(new, old)`.

    Example:
        >>> area_weights(4, 2).tolist()
        [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    edges = np.arange(new + 1) * old / new
    starts = np.arange(old)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return (np.maximum(overlap, 0) * new / old).astype("float32")
