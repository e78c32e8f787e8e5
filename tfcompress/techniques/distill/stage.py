"""The recipe stage `distill`: trains the model under the recipe's teacher, and nothing else.

Invariant: the model that comes out has the structure of the one that went in. Left out: teaching within other stages,
which each of them takes as `teach` (`pipeline.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import keras

from tfcompress.techniques.base import Context, Technique
from tfcompress.techniques.distill.by_name import distillation_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill(Technique):
    """Trains under the teacher.

    Args:
        temperature: Softening of both distributions, in (0, inf).
        weight: Share of the teacher's loss, in [0, 1]; the labels have the rest.
        kind: A name in `by_name.LOSSES`.
    """

    temperature: float = 4.0
    weight: float = 0.9
    kind: str = "soft_targets"

    needs_teacher: ClassVar[bool] = True

    def __post_init__(self):
        distillation_loss(self.kind, self.temperature, self.weight)

    @property
    def keeps_clusters(self) -> bool:
        return True

    def apply(self, model: keras.Model, context: Context) -> keras.Model:
        return context.train(model).model

    def teaching(self) -> Callable[..., Any]:
        return distillation_loss(self.kind, self.temperature, self.weight)
