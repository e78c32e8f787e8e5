"""How many bits each number between two layers has, and what 16 of them rule out.

Invariant: an operation computes in one width, so what belongs to one operation of the file has one: a layer that is
fused into the one before it has the bits of that one, and one that only moves values those of what comes in. Left out:
where the conversions between two widths go (`rewrite.py`).
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any

from keras import layers

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.quantize import integer_support as support

# Activations whose kernel in the runtime (LiteRT 2.3) has no 16 bits.
EIGHT_BITS_ONLY = ("hard_silu", "hard_swish")
# The runtime adds up what it averages in 32 bits.
MOST_AVERAGED = 2**16


def bits_of(activation_bits: int | Mapping[str, int], name: str) -> int:
    """Bits of the results of a layer: of the first pattern that fits its name, else 8.

    Example:
        >>> bits_of({"head_*": 16}, "head_1"), bits_of({"head_*": 16}, "stem"), bits_of(16, "stem")
        (16, 8, 16)
    """
    if isinstance(activation_bits, int):
        return activation_bits
    return next((bits for pattern, bits in activation_bits.items() if fnmatch.fnmatch(name, pattern)), 8)


def check_activation_bits(
    owner: str,
    activation_bits: int | Mapping[str, int],
    weight_bits: int | Mapping[str, int],
    allow_float: Sequence[str],
) -> None:
    """Raises an `InvalidArgumentError` for bits that are out of range, or that no file has together."""
    widths = _widths(activation_bits)
    if not widths or any(bits not in (8, 16) for bits in widths):
        raise InvalidArgumentError(
            f"{owner}.activation_bits", "8 or 16, or patterns of names with 8 or 16 each", activation_bits
        )
    if 16 not in widths:
        return
    if 4 in _widths(weight_bits):
        raise InvalidArgumentError(
            f"{owner}.weight_bits", "8 where activations have 16 bits, whose kernels take none of 4", weight_bits
        )
    if allow_float:
        raise InvalidArgumentError(
            f"{owner}.allow_float",
            "empty where activations have 16 bits, whose file is of integers alone; give these layers 16 bits too",
            allow_float,
        )


def reason_against_16_bits(operation: Any) -> str | None:
    """Why a layer or operation cannot have results of 16 bits, or None."""
    name = support.activation_name(operation)
    if name in EIGHT_BITS_ONLY:
        return f"the runtime has no 16-bit kernel of {name!r}; use activation_bits={{'{operation.name}': 8, '*': 16}}"
    if isinstance(operation, layers.GlobalAveragePooling1D | layers.GlobalAveragePooling2D):
        numbers = math.prod(size or 1 for size in operation.input.shape[1:-1])
        if numbers > MOST_AVERAGED:
            return (
                f"a mean over {numbers:,} numbers, which the runtime adds up in 32 bits, and more than "
                f"{MOST_AVERAGED:,} of 16 bits overflow; use activation_bits={{'{operation.name}': 8, '*': 16}}"
            )
    return None


def _widths(bits: int | Mapping[str, int]) -> list[int]:
    return list(bits.values()) if isinstance(bits, Mapping) else [bits]
