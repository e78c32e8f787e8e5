"""How a range is chosen from the values seen: all of them, all but the rarest, or where rounding errs least.

Invariant: what is kept of the values is their smallest, their largest, and counts in bins whose width is a power of
two. Bins that become too narrow are merged in pairs, which gives the very counts that wider ones would have had: no
order of the data, and no size of its batches, changes a range. Left out: where the values come from (`calibrate.py`).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tfcompress.errors import InvalidArgumentError

METHODS = ("min_max", "percentile", "mse")
PERCENTILE = 99.99
# Bins on each side of zero: at least 8 for each of 256 steps.
BINS = 4096
# How many parts of the observed range are tried as a new end, in the first and in each closer search.
CANDIDATES = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class RangeMethod:
    """How to choose ranges.

    Args:
        name: `"min_max"` takes the smallest and largest value, `"percentile"` leaves the rarest out, and `"mse"` takes
            the range whose rounding and clipping have the least squared error.
        percentile: For `"percentile"`: the share of values, in percent, in (50, 100], that are not above the range, and
            also of those that are not below.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
    """

    name: str = "min_max"
    percentile: float = PERCENTILE

    def __post_init__(self):
        if self.name not in METHODS:
            raise InvalidArgumentError("calibration_method", f"one of {METHODS}", self.name)
        if not 50 < self.percentile <= 100:
            raise InvalidArgumentError("percentile", "a number in (50, 100]", self.percentile)


class ValueCounts:
    """Values seen: smallest, largest, and counts in bins on both sides of zero.

    Args:
        binned: Whether to count; smallest and largest alone take a tenth of the time.

    Example:
        >>> counts = ValueCounts()
        >>> counts.add(np.array([0.0, 0.5, 1.0])), counts.add(np.array([-2.0]))
        (None, None)
        >>> float(counts.low), float(counts.high), int(counts.counts.sum()), counts.zeros
        (-2.0, 1.0, 3, 1)
    """

    def __init__(self, *, binned: bool = True):
        self._binned = binned
        self.low, self.high = np.inf, -np.inf
        self.zeros = 0
        # Of values that are not zero, which no rounding moves.
        self.counts = np.zeros(2 * BINS, np.int64)
        self._exponent: int | None = None

    @property
    def edges(self) -> np.ndarray:
        """The limits of the bins, ascending, float64 of shape `(bins + 1,)`."""
        return np.arange(-BINS, BINS + 1) * 2.0 ** (self._exponent or 0)

    def add(self, values: np.ndarray) -> None:
        """Counts values of any shape; NaN and infinity make `low` or `high` such, and are not counted."""
        values = np.asarray(values, np.float32).ravel()
        # Unlike the built-in `min`, these keep a NaN.
        self.low, self.high = np.minimum(self.low, values.min()), np.maximum(self.high, values.max())
        largest = float(max(abs(self.low), abs(self.high)))
        if not self._binned or not np.isfinite(largest):
            return
        self.zeros += int(np.count_nonzero(values == 0))
        if largest == 0:
            return
        # frexp gives largest < 2 ** exponent.
        exponent = self._widen(int(np.frexp(largest)[1]) - int(np.log2(BINS)))
        at = np.floor(values[values != 0] * np.float64(2.0) ** -exponent).astype(np.int64) + BINS
        self.counts += np.bincount(at, minlength=2 * BINS)

    def _widen(self, exponent: int) -> int:
        """Merges bins until their width is at least `2 ** exponent`; the exponent of their width."""
        if self._exponent is None:
            self._exponent = exponent
        while self._exponent < exponent:
            # BINS is even, so that no pair holds values of both signs.
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros_like(self.counts)
            self.counts[BINS // 2 : BINS // 2 + BINS] = pairs
            self._exponent += 1
        return self._exponent


def choose_range(counts: ValueCounts, method: RangeMethod, bits: int) -> tuple[float, float]:
    """The range for a tensor of `bits` bits: low at most zero, high at least zero.

    Args:
        counts: The values seen, all finite, at least one.
        method: How to choose.
        bits: Bits of the integers, which `"mse"` looks at.

    Returns:
        `(low, high)`.
    """
    low, high = min(float(counts.low), 0.0), max(float(counts.high), 0.0)
    if method.name == "min_max" or low == high:
        return low, high
    if method.name == "percentile":
        return max(low, -_tail(counts, -1, method.percentile)), min(high, _tail(counts, 1, method.percentile))
    if bits > 8:
        # The zero point is 0, so that one end says all.
        largest = max(-low, high)
        low, high = -largest, largest
    return _least_error(counts, low, high, bits)


def _tail(counts: ValueCounts, side: int, percentile: float) -> float:
    """The magnitude on one side of zero that only `100 - percentile` percent of all values exceed."""
    # From the outermost bin inwards.
    outward = counts.counts[BINS:] if side > 0 else counts.counts[BINS - 1 :: -1]
    width = counts.edges[BINS + 1]
    allowed = (counts.counts.sum() + counts.zeros) * (1 - percentile / 100)
    beyond = np.cumsum(outward[::-1])[::-1]
    bins = np.flatnonzero(beyond > allowed)
    if not len(bins):
        return 0.0
    outermost = int(bins[-1])
    # Within a bin the values are taken for evenly spread.
    return width * (outermost + (beyond[outermost] - allowed) / outward[outermost])


def _least_error(counts: ValueCounts, low: float, high: float, bits: int) -> tuple[float, float]:
    """The range of least squared error: both ends together first, then each by itself, closer each time."""
    used = np.flatnonzero(counts.counts)
    left, right, weights = counts.edges[used], counts.edges[used + 1], counts.counts[used].astype(np.float64)

    def error(a: float, b: float) -> float:
        return _squared_error(left, right, weights, a, b, 2**bits - 1)

    parts = np.arange(1, CANDIDATES + 1) / CANDIDATES
    best = min(((low * part, high * part) for part in parts), key=lambda ends: error(*ends))
    reach = 0.5
    for _ in range(3):
        around = 1 + reach * np.linspace(-1, 1, CANDIDATES + 1)
        if bits > 8:
            both = ((max(low, best[0] * part), min(high, best[1] * part)) for part in around)
            best = min(both, key=lambda ends: error(*ends))
            reach /= 8
            continue
        best = min(((max(low, best[0] * part), best[1]) for part in around), key=lambda ends: error(*ends))
        best = min(((best[0], min(high, best[1] * part)) for part in around), key=lambda ends: error(*ends))
        reach /= 8
    return best


def _squared_error(
    left: np.ndarray, right: np.ndarray, weights: np.ndarray, low: float, high: float, steps: int
) -> float:
    """Sum of the squared errors of values that are spread evenly over their bins `[left, right)`."""
    scale = (high - low) / steps
    # As the kernels do it: zero is an integer, and the range moves by less than a step for it.
    lowest = np.round(low / scale)
    bottom, top = lowest * scale, (lowest + steps) * scale

    def integral(x: np.ndarray) -> np.ndarray:
        """Of the squared rounding error from 0 to x, for x within the range."""
        nearest = np.round(x / scale)
        rest = x / scale - nearest
        return scale**3 * (nearest / 12 + rest**3 / 3)

    inside = integral(np.clip(right, bottom, top)) - integral(np.clip(left, bottom, top))
    above = np.maximum(right - top, 0) ** 3 - np.maximum(left - top, 0) ** 3
    below = np.maximum(bottom - left, 0) ** 3 - np.maximum(bottom - right, 0) ** 3
    return float((weights / (right - left) * (inside + (above + below) / 3)).sum())
