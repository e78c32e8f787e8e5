"""The recipe stage `distill`: trains the model under the recipe's teacher, and nothing else.

Invariant: the model that comes out has the structure of the one that went in. Left out: teaching within other stages,
which each of them takes as `teach` (`pipeline.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import keras

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.base import Context, Technique
from tfcompress.techniques.distill.losses import LOSSES


def distillation_loss(kind: str, temperature: float, weight: float) -> Callable[[Any, Any], Any]:
    """The loss that a recipe means by `kind`, `temperature` and `weight`.

    Raises:
        InvalidArgumentError: If one of them is out of its range.
    """
    if kind not in LOSSES:
        raise InvalidArgumentError("distill.kind", f"one of {sorted(LOSSES)}", kind)
    names = {field.name for field in dataclasses.fields(LOSSES[kind])}
    arguments = {"temperature": temperature, "weight": weight}
    return LOSSES[kind](**{name: value for name, value in arguments.items() if name in names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill(Technique):
    """Trains under the teacher.

    Args:
        temperature: Softening of both distributions, in (0, inf).
        weight: Share of the teacher's loss, in [0, 1]; the labels have the rest.
        kind: A name in `losses.LOSSES`.
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

    def teaching(self) -> Callable[[Any, Any], Any]:
        return distillation_loss(self.kind, self.temperature, self.weight)
