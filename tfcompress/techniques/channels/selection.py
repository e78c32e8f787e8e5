"""Which units go: scores of different groups made comparable, and as many as a budget needs.

Invariant: in every group at least a tenth of the units stays, and one; of a group nothing is removed that scores higher
than what stays. Left out: where scores come from (`importance.py`), and what a model without units costs (`cost.py`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from tfcompress.errors import ModelError
from tfcompress.graph.channels import ChannelGraph
from tfcompress.techniques.channels.cost import Cost

RANKINGS = ("global", "isomorphic", "layer")
# A group that is nearly gone is a bottleneck that training does not widen again.
_LEAST_SHARE = 0.1


def ranked(graph: ChannelGraph, scores: np.ndarray, ranking: str) -> np.ndarray:
    """Scores that can be compared with one another, over all groups.

    Args:
        graph: The units.
        scores: A score for each unit.
        ranking: `"layer"`: each group loses the same share. `"global"`: a score is measured by the mean of its group.
            `"isomorphic"`: groups of the same structure are ranked together, and each structure loses the same share
            (Fang et al., "Isomorphic Pruning for Vision Models", 2024, https://arxiv.org/abs/2407.04616).
    """
    result = np.array(scores, float)
    for units in graph.groups:
        finite = np.isfinite(scores[units])
        mean = scores[units][finite].mean() if finite.any() else 0.0
        result[units] = scores[units] / mean if mean > 0 else scores[units]
    if ranking == "global":
        return result
    together: dict[tuple, list[np.ndarray]] = defaultdict(list)
    for index, units in enumerate(graph.groups):
        together[_structure(graph, index) if ranking == "isomorphic" else (index,)].append(units)
    for parts in together.values():
        units = np.concatenate(parts)
        kept = ~np.isfinite(scores[units])
        result[units[np.argsort(result[units], kind="stable")]] = (np.arange(len(units)) + 0.5) / len(units)
        result[units[kept]] = np.inf
    return result


def _structure(graph: ChannelGraph, group: int) -> tuple:
    """What the weights of a group are, whatever their names and sizes."""
    members = graph.members_of_groups[group]
    return tuple(sorted((one.variable.name, len(one.variable.shape), one.axis, one.makes) for one in members))


class Removals:
    """All removals that a ranking allows, from none to the most: each takes the units of the one before and more.

    Args:
        graph: The units.
        scores: A score for each unit, comparable over all groups.
        round_to: A group that loses units keeps a multiple of it; one that has fewer loses none.
        groups: Indices of the groups that may lose units; by default all.
    """

    def __init__(
        self, graph: ChannelGraph, scores: np.ndarray, *, round_to: int = 1, groups: Sequence[int] | None = None
    ):
        chosen = range(len(graph.groups)) if groups is None else groups
        self.graph = graph
        self._round_to = round_to
        self._ordered = [
            graph.groups[index][np.argsort(scores[graph.groups[index]], kind="stable")] for index in chosen
        ]
        allowed = np.zeros(graph.num_units, bool)
        for units in self._ordered:
            spare = len(units) - max(1, math.ceil(_LEAST_SHARE * len(units)))
            allowed[units[:spare]] = True
        allowed &= np.isfinite(scores)
        candidates = np.flatnonzero(allowed)
        self._candidates = candidates[np.argsort(scores[candidates], kind="stable")]

    def __len__(self) -> int:
        """How many units may go."""
        return len(self._candidates)

    def of(self, count: int) -> np.ndarray:
        """A boolean for each unit: whether it is among the `count` that go first, but for those that rounding keeps."""
        removed = np.zeros(self.graph.num_units, bool)
        removed[self._candidates[:count]] = True
        for units in self._ordered:
            gone = int(removed[units].sum())
            # The most important ones of those that would go stay, until what is left is a multiple: all in
            # a group that has fewer.
            left = len(units) - gone
            gone -= min(gone, -left % self._round_to)
            removed[units] = False
            removed[units[:gone]] = True
        return removed

    def first_within(self, cost: Cost, limit: float) -> int | None:
        """The fewest units without which the cost is within a limit; None if it never is."""
        low, high = 0, len(self)
        if cost(self.of(high)) > limit:
            return None
        while low < high:
            middle = (low + high) // 2
            if cost(self.of(middle)) <= limit:
                high = middle
            else:
                low = middle + 1
        return low

    def refusal(self, least: float, whole: float, limit: float) -> ModelError:
        """What to raise where no removal is within a limit: the least that can be had, and what there is."""
        return ModelError(
            f"Model {self.graph.traced.name!r} cannot be made that small by removing channels: {least:,.0f} are left "
            f"when all goes that may, of {whole:,.0f}. Allow more layers, or a larger budget. Received: {limit:,.0f}."
        )


def select(
    graph: ChannelGraph,
    scores: np.ndarray,
    cost: Cost,
    limit: float,
    *,
    round_to: int = 1,
    groups: Sequence[int] | None = None,
) -> np.ndarray:
    """The fewest units, of the lowest scores, without which the cost is within a limit.

    Args:
        graph, scores, round_to, groups: As `Removals` takes them.
        cost: What is left to pay when units are removed.
        limit: The most that it may be.

    Returns:
        A boolean for each unit: whether it is removed.

    Raises:
        ModelError: If the limit cannot be met.
    """
    removals = Removals(graph, scores, round_to=round_to, groups=groups)
    count = removals.first_within(cost, limit)
    if count is None:
        raise removals.refusal(cost(removals.of(len(removals))), cost(removals.of(0)), limit)
    return removals.of(count)
