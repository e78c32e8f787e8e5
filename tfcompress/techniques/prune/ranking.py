"""Which weights stay: scores, a pattern and a budget to masks.

Invariant: the number of zeros is exact, whatever ties there are, and without a pattern N:M a kernel keeps at least one
unit. Left out: what the scores are (`criteria.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.prune.budgets import Budget, uniform
from tfcompress.techniques.prune.patterns import Pattern, RowLayout


def choose_masks(
    scores: Sequence[np.ndarray],
    sparsity: float,
    *,
    budget: Budget | None = uniform,
    pattern: Pattern | None = None,
    layouts: Sequence[RowLayout] | None = None,
) -> list[np.ndarray]:
    """Which weights to keep so that a share `sparsity` of them, the lowest scores, is dropped.

    Args:
        scores: For each kernel an array of its shape, of at least 0; `-inf` goes before anything else.
        sparsity: Share to drop, in [0, 1].
        budget: A callable of `budgets.py`; None ranks the weights of all kernels together.
        pattern: What gets zeros together; None is each weight by itself.
        layouts: Where each kernel's inputs are, for patterns; None takes the last axis.

    Returns:
        A boolean array for each kernel. Equal scores are dropped in the order of their index.

    Raises:
        InvalidArgumentError: If the budget gives other than a share in [0, 1] for each kernel.
    """
    pattern = pattern or Pattern()
    layouts = layouts or [RowLayout(score.shape, (max(score.ndim - 1, 0),)) for score in scores]
    rows = [layout.rows(score) for layout, score in zip(layouts, scores, strict=True)]
    costs = [pattern.costs(row) for row in rows]
    # In an N:M kernel all units get zeros, and none dies.
    spared = 1 if pattern.zeros_per_unit == pattern.width else 0
    if budget is None:
        weights = sum(score.size for score in scores)
        dropped = _lowest_of_all(costs, round(sparsity * weights / pattern.zeros_per_unit), spared)
    else:
        shares = [float(share) for share in budget([score.shape for score in scores], sparsity)]
        if len(shares) != len(scores) or not all(-1e-6 <= share <= 1 + 1e-6 for share in shares):
            raise InvalidArgumentError("budget", f"a share in [0, 1] for each of {len(scores)} kernels", shares)
        dropped = [
            _lowest(cost, round(share * score.size / pattern.zeros_per_unit), spared)
            for cost, share, score in zip(costs, shares, scores, strict=True)
        ]
    return [layout.array(pattern.keep(row, drop)) for layout, row, drop in zip(layouts, rows, dropped, strict=True)]


def ranked(scores: Sequence[np.ndarray], alive: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Scores of any sign as `choose_masks` takes them: at least 0, and what is pruned already goes first.

    Args:
        scores: For each kernel an array of its shape.
        alive: For each kernel a boolean array: the weights that are not pruned.

    Example:
        >>> ranked([np.array([3.0, -1.0, 0.0])], [np.array([True, True, False])])[0].tolist()
        [4.0, 0.0, -inf]
    """
    lowest = min(0.0, *(float(score.min()) for score in scores))
    return [np.where(kept, score - lowest, -np.inf) for score, kept in zip(scores, alive, strict=True)]


def _lowest_of_all(costs: Sequence[np.ndarray], drop: int, spared: int) -> list[np.ndarray]:
    flat = np.concatenate(costs).astype(float)
    starts = np.cumsum([0, *(cost.size for cost in costs)])
    if spared:
        # The best unit of each kernel is worth more than any other, or a layer could go dead.
        for start, end in itertools.pairwise(starts):
            flat[start + np.argmax(flat[start:end])] = np.inf
    dropped = _lowest(flat, drop, spared * len(costs))
    return [dropped[start:end] for start, end in itertools.pairwise(starts)]


def _lowest(costs: np.ndarray, drop: int, spared: int) -> np.ndarray:
    """The `drop` lowest of `costs`, as a boolean array; `spared` of them stay in any case."""
    drop = min(drop, costs.size - spared)
    if drop <= 0:
        return np.zeros(costs.shape, bool)
    threshold = np.partition(costs, drop - 1)[drop - 1]
    lowest = costs < threshold
    # Some of those at the threshold itself stay: the count is exact, whatever ties there are.
    ties = np.flatnonzero(costs == threshold)
    lowest[ties[: drop - np.count_nonzero(lowest)]] = True
    return lowest
