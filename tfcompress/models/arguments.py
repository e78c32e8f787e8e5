"""Checks that the families share: each names its argument, what it may be, and what came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfcompress.errors import InvalidArgumentError


def is_whole(value: Any, least: int) -> bool:
    """True for an int of at least `least` (a bool is none)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Raises an `InvalidArgumentError` unless `value` is an int of at least `least`."""
    if not is_whole(value, least):
        raise InvalidArgumentError(name, f"a whole number, at least {least}", value)


def check_wholes(name: str, values: Any, *, length: int | None = None, least: int = 1) -> tuple[int, ...]:
    """Returns `values` as a tuple of ints of at least `least`, `length` of them if that is given.

    Raises:
        InvalidArgumentError: If `values` is something else.
    """
    count = "a sequence" if length is None else f"{length}"
    valid = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
    if not valid or (length is not None and len(values) != length) or not all(is_whole(v, least) for v in values):
        raise InvalidArgumentError(name, f"{count} of whole numbers, each at least {least}", values)
    return tuple(values)


def check_factor(name: str, value: Any) -> None:
    """Raises an `InvalidArgumentError` unless `value` is a number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise InvalidArgumentError(name, "a number above 0", value)


def check_image(family: str, input_shape: tuple[int, ...], least: int) -> None:
    """Raises an `InvalidArgumentError` unless samples are images whose sides are at least `least` pixels long."""
    if len(input_shape) != 3:
        raise InvalidArgumentError("input_shape", f"(height, width, channels) for {family}", input_shape)
    if min(input_shape[:2]) < least:
        raise InvalidArgumentError("input_shape", f"at least {least} x {least} pixels for this {family}", input_shape)
