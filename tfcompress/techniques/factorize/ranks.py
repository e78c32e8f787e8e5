"""Which rank each layer gets: from an error bound or a ratio layer by layer, or from a budget over all layers.

Invariant: what is chosen meets the bound or budget by the numbers that stand in `Choices`; among all that do, one layer
alone gets the best. Left out: what the choices of a layer are (`svd.py`, `convolution.py`, `tucker.py`).
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Choices:
    """What one layer may become, over all ways of factorizing it and all their ranks.

    Args:
        num_params: Values of its kernels, shape `(choices,)`.
        macs: Multiply-adds, shape `(choices,)`; of the same unknown size each where they are not known.
        errors: Squared relative error of the kernel, shape `(choices,)`.
    """

    num_params: np.ndarray
    macs: np.ndarray
    errors: np.ndarray

    def only(self, which: np.ndarray) -> Choices:
        """Some of the choices, by a boolean for each."""
        return Choices(self.num_params[which], self.macs[which], self.errors[which])

    def within_error(self, bound: float) -> int | None:
        """The choice with fewest parameters, then multiply-adds, then error, of those with a squared error in `bound`.

        Example:
            >>> three = Choices(np.array([4, 8, 12]), np.array([4, 8, 12]), np.array([0.5, 0.1, 0.0]))
            >>> three.within_error(0.2)
            1
        """
        return _first(self.errors <= bound, self.num_params, self.macs, self.errors)

    def within_params(self, limit: float) -> int | None:
        """The choice with least error, then fewest parameters, of those with at most `limit` parameters.

        Example:
            >>> Choices(np.array([4, 8, 12]), np.array([4, 8, 12]), np.array([0.5, 0.1, 0.0])).within_params(9)
            1
        """
        return _first(self.num_params <= limit, self.errors, self.num_params, self.macs)


def _first(allowed: np.ndarray, *keys: np.ndarray) -> int | None:
    """The allowed index with the least key, ties decided by the next key."""
    indices = np.flatnonzero(allowed)
    if not len(indices):
        return None
    return int(indices[np.lexsort([key[indices] for key in reversed(keys)])[0]])


def within_budget(
    costs: Sequence[np.ndarray], errors: Sequence[np.ndarray], whole: Sequence[float], budget: float
) -> list[int | None]:
    """One choice for each layer, so that their costs together are within a budget and their errors small.

    Every layer begins with its cheapest choice. Then, over and over, the step is taken that lowers a layer's squared
    error most for its cost, among those that still fit: for a truncated SVD, the next largest squared singular value,
    relative to the kernel's own square, per cost.

    Args:
        costs: For each layer the cost of each of its choices, shape `(choices,)`; a layer may have none.
        errors: For each layer the squared relative errors, likewise.
        whole: For each layer its cost if it is left as it is.
        budget: What all of them may cost together, at least the sum of the cheapest.

    Returns:
        For each layer the index of a choice, or None if it is left as it is.

    Example:
        >>> within_budget([np.array([2, 4]), np.array([2, 4])], [np.array([0.5, 0.1]), np.array([0.3, 0.2])], [6, 6], 7)
        [1, 0]
    """
    menus = [_Menu(*each) for each in zip(costs, errors, whole, strict=True)]
    left = budget - sum(menu.cost for menu in menus)
    queue = [(-step[0], at) for at, menu in enumerate(menus) if (step := menu.best_step(left)) is not None]
    heapq.heapify(queue)
    while queue:
        _, at = heapq.heappop(queue)
        # What is left may have become less since this step came into the queue, and its best one a smaller one.
        step = menus[at].best_step(left)
        if step is not None and queue and step[0] < -queue[0][0]:
            heapq.heappush(queue, (-step[0], at))
            continue
        if step is not None:
            left -= menus[at].take(step[1])
            following = menus[at].best_step(left)
            if following is not None:
                heapq.heappush(queue, (-following[0], at))
    return [menu.chosen for menu in menus]


class _Menu:
    """One layer's choices that are worth their cost, the cheapest first, with the one to leave it as it is."""

    def __init__(self, costs: np.ndarray, errors: np.ndarray, whole: float):
        costs, errors = np.append(costs, whole), np.append(errors, 0.0)
        order = np.lexsort([errors, costs])
        least_before = np.minimum.accumulate(np.append(np.inf, errors[order]))[:-1]
        self._choices = order[errors[order] < least_before]
        self._costs, self._errors = costs[self._choices], errors[self._choices]
        self._whole = len(costs) - 1
        self._at = 0

    @property
    def cost(self) -> float:
        return float(self._costs[self._at])

    @property
    def chosen(self) -> int | None:
        index = int(self._choices[self._at])
        return None if index == self._whole else index

    def best_step(self, left: float) -> tuple[float, int] | None:
        """The largest gain per cost within what is left, and where it leads."""
        more = self._costs[self._at + 1 :] - self.cost
        fitting = int(np.searchsorted(more, left, side="right"))
        if not fitting:
            return None
        gains = (self._errors[self._at] - self._errors[self._at + 1 :][:fitting]) / more[:fitting]
        best = int(np.argmax(gains))
        return float(gains[best]), self._at + 1 + best

    def take(self, index: int) -> float:
        """Takes a step, and returns what it costs."""
        more = float(self._costs[index]) - self.cost
        self._at = index
        return more
