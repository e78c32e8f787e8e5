"""How a teacher teaches while a stage trains: the keys of `teach:` and of the stage `distill` in a recipe.

Invariant: settings that exist are valid, as far as that is known without the networks. Left out: what they do, which is
`techniques/distill/`; this module imports no TensorFlow, so that a recipe is checked in milliseconds.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

from tfcompress.errors import InvalidArgumentError

Kind = Literal[
    "soft_targets",
    "soft_cross_entropy",
    "logit_matching",
    "hard_labels",
    "decoupled",
    "standardized",
    "label_smoothing",
]
FeatureKind = Literal[
    "hints",
    "attention_transfer",
    "similarity_preserving",
    "relational_distance",
    "relational_angle",
    "solution_flow",
    "probabilistic_transfer",
    "variational_information",
    "contrastive",
    "attention_maps",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """What a layer of the student learns from one of the teacher.

    Args:
        kind: The loss between them.
        teacher_layer: Name of the teacher's layer, or its path where it is in a network within, `body/conv`;
            `solution_flow` takes a list of two.
        student_layer: Likewise of the student's.
        weight: Weight of the loss, at least 0; null is the loss's own, as its paper has it.

    Raises:
        InvalidArgumentError: If the kind or the weight is none of these.
    """

    kind: FeatureKind
    teacher_layer: str | tuple[str, ...]
    student_layer: str | tuple[str, ...]
    weight: float | None = None

    def __post_init__(self):
        if self.kind not in get_args(FeatureKind):
            raise InvalidArgumentError("FeatureSettings.kind", f"one of {', '.join(get_args(FeatureKind))}", self.kind)
        if self.weight is not None and not 0 <= self.weight < math.inf:
            raise InvalidArgumentError("FeatureSettings.weight", "a number of at least 0", self.weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeachSettings:
    """How the recipe's teacher teaches.

    Args:
        temperature: Softening of both distributions, above 0.
        weight: Share of the teacher's loss beside that of the labels, in [0, 1].
        kind: The loss of the outputs.
        features: What layers learn from layers.
        mixup: Alpha of the shares in which pictures are blended with one another, above 0; null blends none.
        cutmix: Alpha of the shares in which pictures are pasted into one another, above 0; null pastes none.

    Raises:
        InvalidArgumentError: If a value is out of its range, or pictures are to be mixed in both ways.
    """

    temperature: float = 4.0
    weight: float = 0.9
    kind: Kind = "soft_targets"
    features: tuple[FeatureSettings, ...] = ()
    mixup: float | None = None
    cutmix: float | None = None

    def __post_init__(self):
        if self.kind not in get_args(Kind):
            raise InvalidArgumentError("TeachSettings.kind", f"one of {', '.join(get_args(Kind))}", self.kind)
        if not 0 < self.temperature < math.inf:
            raise InvalidArgumentError("TeachSettings.temperature", "a number above 0", self.temperature)
        if not 0 <= self.weight <= 1:
            raise InvalidArgumentError("TeachSettings.weight", "in [0, 1]", self.weight)
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            if alpha is not None and not 0 < alpha < math.inf:
                raise InvalidArgumentError(f"TeachSettings.{name}", "a number above 0, or null", alpha)
        if self.mixup is not None and self.cutmix is not None:
            raise InvalidArgumentError("TeachSettings.cutmix", "null beside `mixup`", self.cutmix)
