"""The losses that a recipe can name.

Invariant: each is made from a `temperature`, if it has one, and a `weight`. Left out: losses with more to say, which a
script passes to `Distiller`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.decoupled import Decoupled
from tfcompress.techniques.distill.losses import (
    HardLabels,
    LabelSmoothing,
    LogitMatching,
    SoftCrossEntropy,
    SoftTargets,
)
from tfcompress.techniques.distill.weighting import Standardized


def standardized_soft_targets(*, temperature: float = 2.0, weight: float = 0.9) -> Standardized:
    """Soft targets of logits that are standardized first.

    Args:
        temperature: In multiples of each side's standard deviation, in (0, inf).
        weight: Share of this loss beside the student's own, in [0, 1].
    """
    return Standardized(SoftTargets(temperature=temperature, weight=weight))


LOSSES: dict[str, Callable[..., Any]] = {
    "soft_targets": SoftTargets,
    "soft_cross_entropy": SoftCrossEntropy,
    "logit_matching": LogitMatching,
    "hard_labels": HardLabels,
    "decoupled": Decoupled,
    "standardized": standardized_soft_targets,
    "label_smoothing": LabelSmoothing,
}


def distillation_loss(kind: str, temperature: float, weight: float) -> Callable[..., Any]:
    """The loss that a recipe means by `kind`, `temperature` and `weight`.

    Raises:
        InvalidArgumentError: If one of them is out of its range.
    """
    if kind not in LOSSES:
        raise InvalidArgumentError("distill.kind", f"one of {sorted(LOSSES)}", kind)
    names = inspect.signature(LOSSES[kind]).parameters
    arguments = {"temperature": temperature, "weight": weight}
    return LOSSES[kind](**{name: value for name, value in arguments.items() if name in names})
