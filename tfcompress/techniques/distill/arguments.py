"""Arguments that distillation losses have in common, and what they are checked for.

Invariant: an error names the argument as its user writes it. Left out: what only the outputs tell (`outputs.py`).
"""

from __future__ import annotations

import numbers
from typing import Any

from tfcompress.errors import InvalidArgumentError


def check_weight(owner: str, weight: float) -> None:
    """Raises an `InvalidArgumentError` unless the weight of the loss `owner` is in [0, 1]."""
    if not _is_number(weight) or not 0 <= weight <= 1:
        raise InvalidArgumentError(f"{owner}.weight", "a number in [0, 1]", weight)


def check_temperature(owner: str, temperature: float) -> None:
    """Raises an `InvalidArgumentError` unless the temperature of the loss `owner` is above 0 and finite."""
    if not _is_number(temperature) or not 0 < temperature < float("inf"):
        raise InvalidArgumentError(f"{owner}.temperature", "a number above 0", temperature)


def check_not_negative(name: str, value: float) -> None:
    """Raises an `InvalidArgumentError` unless the number is at least 0 and finite."""
    if not _is_number(value) or not 0 <= value < float("inf"):
        raise InvalidArgumentError(name, "a number of at least 0", value)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
