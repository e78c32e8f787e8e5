"""What a recipe says of teaching, as losses: a loss of outputs by its name, and features by theirs.

Invariant: each loss of outputs is made from a `temperature`, if it has one, and a `weight`, each of features from a
`weight`. Left out: losses with more to say, which a script passes to `Distiller`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from tfcompress.teach_settings import FeatureSettings, TeachSettings
from tfcompress.techniques.distill.decoupled import Decoupled
from tfcompress.techniques.distill.features import (
    AttentionMaps,
    AttentionTransfer,
    Contrastive,
    Features,
    Hints,
    ProbabilisticTransfer,
    RelationalAngle,
    RelationalDistance,
    SimilarityPreserving,
    SolutionFlow,
    VariationalInformation,
)
from tfcompress.techniques.distill.losses import (
    HardLabels,
    LabelSmoothing,
    LogitMatching,
    SoftCrossEntropy,
    SoftTargets,
)
from tfcompress.techniques.distill.mixing import CutMix, Mixup
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

FEATURE_LOSSES: dict[str, Callable[..., Any]] = {
    "hints": Hints,
    "attention_transfer": AttentionTransfer,
    "similarity_preserving": SimilarityPreserving,
    "relational_distance": RelationalDistance,
    "relational_angle": RelationalAngle,
    "solution_flow": SolutionFlow,
    "probabilistic_transfer": ProbabilisticTransfer,
    "variational_information": VariationalInformation,
    "contrastive": Contrastive,
    "attention_maps": AttentionMaps,
}


@dataclasses.dataclass(frozen=True)
class Teaching:
    """What a `Distiller` is given beside the networks.

    Args:
        losses: Losses of outputs and of features.
        mix: What mixes pictures, or None.
    """

    losses: tuple[Any, ...]
    mix: Mixup | CutMix | None

    @property
    def pairs(self) -> tuple[Features, ...]:
        """The layers that are compared, which stored outputs do not have."""
        return tuple(loss for loss in self.losses if isinstance(loss, Features))


def teaching(settings: TeachSettings, seed: int) -> Teaching:
    """The losses that a recipe means.

    Args:
        settings: What the recipe says.
        seed: Seed of what is mixed with what.

    Raises:
        InvalidArgumentError: If a pair of layers is none.
    """
    names = inspect.signature(LOSSES[settings.kind]).parameters
    arguments = {name: getattr(settings, name) for name in ("temperature", "weight") if name in names}
    mix: Mixup | CutMix | None = None
    if settings.mixup is not None:
        mix = Mixup(alpha=settings.mixup, seed=seed)
    elif settings.cutmix is not None:
        mix = CutMix(alpha=settings.cutmix, seed=seed)
    return Teaching((LOSSES[settings.kind](**arguments), *(_pair(pair) for pair in settings.features)), mix)


def _pair(settings: FeatureSettings) -> Features:
    weight = {} if settings.weight is None else {"weight": settings.weight}
    loss = FEATURE_LOSSES[settings.kind](**weight)
    return Features(loss, teacher_layer=settings.teacher_layer, student_layer=settings.student_layer)
