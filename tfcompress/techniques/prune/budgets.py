"""Budgets: how a sparsity of the whole is shared out among the layers.

A budget is a callable `(shapes, sparsity) -> sparsities`, one for each kernel. Invariant: the zeros add up to
`sparsity` of all weights. Left out: `global`, where the weights themselves decide (`ranking.py`), and the budget that
measures (`sensitivity.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfcompress.errors import InvalidArgumentError

Budget = Callable[[Sequence[tuple[int, ...]], float], Sequence[float]]


def uniform(shapes: Sequence[tuple[int, ...]], sparsity: float) -> list[float]:
    """The same share of every kernel."""
    return [sparsity] * len(shapes)


def erk(shapes: Sequence[tuple[int, ...]], sparsity: float) -> list[float]:
    """Erdős-Rényi-Kernel: the share that stays goes with the sum of a kernel's dimensions over their product, so that
    large kernels lose more. A kernel that would keep more than all of its weights keeps all.

    Args:
        shapes: Shapes of the kernels.
        sparsity: Share of zeros among all of their weights.

    Example:
        >>> [round(share, 3) for share in erk([(10, 10), (100, 100)], 0.5)]
        [0.0, 0.505]

    Reference:
        Evci et al., "Rigging the Lottery: Making All Tickets Winners", 2020, https://arxiv.org/abs/1911.11134
    """
    sizes = np.array([np.prod(shape) for shape in shapes], float)
    raw = np.array([sum(shape) for shape in shapes]) / sizes
    left = (1 - sparsity) * sizes.sum()
    dense = np.zeros(len(shapes), bool)
    while not dense.all():
        scale = (left - sizes[dense].sum()) / (raw * sizes)[~dense].sum()
        full = ~dense & (scale * raw > 1)
        if not full.any():
            break
        dense |= full
    density = np.where(dense, 1.0, scale * raw)
    return [float(share) for share in 1 - density]


# Those that can be named; `global` has no function of its own.
BUDGETS: dict[str, Budget | None] = {"uniform": uniform, "global": None, "erk": erk}


def as_budget(owner: str, budget: Any) -> Budget | None:
    """A budget from its name or as it is; None stands for `global`.

    Raises:
        InvalidArgumentError: If it is neither a name nor a callable.
    """
    if isinstance(budget, str) and budget in BUDGETS:
        return BUDGETS[budget]
    if callable(budget):
        return budget
    allowed = f"one of {', '.join(BUDGETS)}, or a callable `(shapes, sparsity) -> sparsities`"
    raise InvalidArgumentError(f"{owner}.budget", allowed, budget)
