"""Channels removed until a *measured* figure of the model's file is within a budget.

A file costs seconds to make, so few are made: a figure that is known without one (`ChannelBudget.predictor`) says which
model to try, and a line through what was measured so far corrects it.

Invariant: the model that comes out was measured itself, and was within the limit. Left out: what is measured, and how.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.techniques.channels.budget import ChannelBudget, Measure
from tfcompress.techniques.channels.cost import Cost
from tfcompress.techniques.channels.selection import Removals

# Files made after that of the whole model, at most.
ROUNDS = 5
# A model this near to its limit is near enough: another file would cost more than it gains.
_NEAR = 0.98


@dataclasses.dataclass(frozen=True)
class _Point:
    """A model that was measured: how many units it is without, what was predicted from, and what was measured."""

    count: int
    predicted: float
    measured: float


def prune_until_measured(
    model: keras.Model,
    removals: Removals,
    make: Callable[[np.ndarray], keras.Model],
    budget: ChannelBudget,
    measure: Measure,
) -> tuple[np.ndarray, keras.Model]:
    """The largest model found within a measured budget.

    Args:
        model: The whole model.
        removals: What may go of it, in order.
        make: A model without some units, from a boolean for each.
        budget: The budget, of a kind that is measured.
        measure: The figure of a model. It is called for the whole model and at most `ROUNDS` smaller ones.

    Returns:
        What is removed, and the model that `make` made of it, whose figure is within the budget; near to it, or the
        nearest of `ROUNDS`.

    Raises:
        ModelError: If no model that was measured is within the budget.
        InvalidArgumentError: If `measure` gives no number above 0.
    """
    search = _Search(removals, budget.predictor(model, removals.graph), _checked(measure(model)), budget)
    found = None
    # A model that needs to lose nothing is made and measured nonetheless: its statistics may be others.
    count = 0 if search.whole.measured <= search.limit else search.guess()
    for _ in range(ROUNDS):
        if count is None:
            break
        removed = removals.of(count)
        small = make(removed)
        if search.add(count, _checked(measure(small))):
            found = removed, small
        count = search.guess()
    if found is None:
        raise ModelError(search.failure(model.name, budget))
    return found


class _Search:
    """What was measured so far, and what to try next."""

    def __init__(self, removals: Removals, predict: Cost, whole: float, budget: ChannelBudget):
        self._removals = removals
        self._predict = predict
        self.whole = _Point(0, predict(removals.of(0)), whole)
        self.limit = budget.limit(whole)
        # The last two that were above the limit, and the one within it that lost the fewest units.
        self._over = [self.whole]
        self._within: _Point | None = None

    def guess(self) -> int | None:
        """How many units to remove next; None if there is nothing better to try."""
        over, within = self._over[-1], self._within
        if over.count == len(self._removals) or (within is not None and within.measured >= _NEAR * self.limit):
            return None
        # In the middle of what is near enough. Without a second point, the line goes through zero.
        aim = (1 + _NEAR) / 2 * self.limit
        other = within or (self._over[-2] if len(self._over) > 1 else None)
        wanted = over.predicted * aim / over.measured
        if other is not None and (over.predicted - other.predicted) * (over.measured - other.measured) > 0:
            slope = (over.measured - other.measured) / (over.predicted - other.predicted)
            wanted = over.predicted - (over.measured - aim) / slope
        # Fewer than were above the limit in any case.
        count = self._removals.first_within(self._predict, min(wanted, math.nextafter(over.predicted, 0.0)))
        if count is None:
            count = len(self._removals)
        return None if within is not None and count >= within.count else count

    def add(self, count: int, measured: float) -> bool:
        """Takes a measured model. Returns whether it is the best within the limit so far."""
        point = _Point(count, self._predict(self._removals.of(count)), measured)
        if measured > self.limit:
            self._over.append(point)
            return False
        self._within = point
        return True

    def failure(self, name: str, budget: ChannelBudget) -> str:
        """What to say where no model was within the limit."""
        least = min(self._over, key=lambda point: point.measured)
        all_gone = least.count == len(self._removals)
        when = "when all goes that may" if all_gone else f"at best, after {len(self._over) - 1} models were measured"
        share = f", which is {budget.value:g} of the whole" if budget.value < 1 else ""
        return (
            f"Model {name!r} cannot be made that small by removing channels: `{budget.name}` is "
            f"{_number(least.measured)} {when}, and {_number(self.whole.measured)} of the whole model. Allow more "
            f"layers, or a larger budget. Received: {_number(self.limit)}{share}."
        )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _checked(measured: float) -> float:
    value = float(measured)
    if not 0 < value < math.inf:
        raise InvalidArgumentError("measure", "a function that gives a finite number above 0", measured)
    return value
