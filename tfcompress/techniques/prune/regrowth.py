"""Regrowth: weights that were pruned come back where the loss asks for them, and as many others go.

Invariant: the number of weights that stay is not changed. Left out: patterns of zeros.
"""

from __future__ import annotations

import math

import numpy as np


def regrowth_share(regrow: float, step: int, last_step: int) -> float:
    """The share of the weights that are exchanged at `step`: `regrow` at first, falling along a cosine to 0.

    Example:
        >>> regrowth_share(0.3, 50, 100)
        0.15
    """
    return 0.5 * regrow * (1 + math.cos(math.pi * min(step / max(last_step, 1), 1.0)))


def regrow(
    keep: np.ndarray, scores: np.ndarray, gradient: np.ndarray, was_kept: np.ndarray, share: float
) -> np.ndarray:
    """Exchanges the lowest of the weights that stay for those that were pruned and have the largest gradients.

    Args:
        keep: Which weights stay, boolean.
        scores: What they are worth, same shape.
        gradient: The gradient of the loss, same shape.
        was_kept: Which weights there were before, boolean, same shape; none that went just now comes back.
        share: Share of the weights in `keep` to exchange, in [0, 1).

    Returns:
        A new boolean array with as many weights as `keep`.

    Example:
        >>> keep = np.array([True, True, False, False])
        >>> regrow(keep, np.array([2.0, 1.0, 0.0, 0.0]), np.array([0.0, 0.0, 0.1, -3.0]), keep, 0.5).tolist()
        [True, False, False, True]

    Reference:
        Evci et al., "Rigging the Lottery: Making All Tickets Winners", 2020, https://arxiv.org/abs/1911.11134; with a
        rising schedule, Liu et al., "Sparse Training via Boosting Pruning Plasticity", 2021,
        https://arxiv.org/abs/2106.10404
    """
    candidates = np.flatnonzero(~keep & ~was_kept)
    count = min(int(share * np.count_nonzero(keep)), candidates.size)
    if count <= 0:
        return keep
    kept = np.flatnonzero(keep)
    out = kept[np.argsort(scores.ravel()[kept], kind="stable")[:count]]
    back = candidates[np.argsort(-np.abs(gradient.ravel()[candidates]), kind="stable")[:count]]
    exchanged = keep.copy()
    exchanged.ravel()[out] = False
    exchanged.ravel()[back] = True
    return exchanged
