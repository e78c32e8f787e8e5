"""Patterns of layer names, by which users say what a technique is for: `include=["conv*"]`.

Invariant: a pattern that fits no layer is an error; it would be a slip of the pen. Left out: what is chosen where no
pattern is given, which each technique knows.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

from tfcompress.errors import InvalidArgumentError


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether a layer's name fits one of the patterns (`fnmatch`).

    Example:
        >>> fits("conv2", ["dense", "conv*"])
        True
    """
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def check_patterns(names: Iterable[str], arguments: Mapping[str, Iterable[str] | None]) -> None:
    """Refuses patterns that fit no layer, and a string in the place of a list of them.

    Args:
        names: Names of the layers that may be meant.
        arguments: Patterns by the name of their argument, or None where it was not given.

    Raises:
        InvalidArgumentError: For the first argument that is a string, or pattern that fits none of the names.

    Example:
        >>> check_patterns(["conv", "dense"], {"include": None, "exclude": ["den*"]})
    """
    names = list(dict.fromkeys(names))
    for argument, patterns in arguments.items():
        # Its letters would be taken for patterns.
        if isinstance(patterns, str):
            raise InvalidArgumentError(argument, "a list of patterns of layer names", patterns)
        for pattern in patterns or ():
            if not fnmatch.filter(names, pattern):
                raise InvalidArgumentError(argument, f"patterns of the layer names {names}", pattern)
