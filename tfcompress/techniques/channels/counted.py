"""Channels removed until a figure that is *counted* on the model is within a budget.

Invariant: the model that comes out was counted itself, and is within the limit. Left out: what is counted
(`budget.py`), and which units go first (`selection.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np

from tfcompress.techniques.channels.budget import ChannelBudget
from tfcompress.techniques.channels.selection import Removals


def prune_until_counted(
    model: keras.Model, removals: Removals, make: Callable[[np.ndarray], keras.Model], budget: ChannelBudget
) -> tuple[np.ndarray, keras.Model]:
    """The largest model within a counted budget.

    Args:
        model: The whole model.
        removals: What may go of it, in order.
        make: A model without some units, from a boolean for each.
        budget: The budget, of a kind that is counted.

    Returns:
        What is removed, and the model that `make` made of it, within the budget.

    Raises:
        ModelError: If none is.
    """
    cost, limit = budget.cost_and_limit(model, removals.graph)
    allowed = limit
    while True:
        count = removals.first_within(cost, allowed)
        removed = removals.of(len(removals) if count is None else count)
        small = make(removed)
        left = budget.count(small)
        if left <= limit:
            return removed, small
        if count is None:
            raise removals.refusal(left, budget.count(model), limit)
        # It costs more than was predicted, so what is missing goes on top.
        allowed = cost(removed) - (left - limit)
