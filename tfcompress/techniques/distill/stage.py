"""The recipe stage `distill`: trains the model under the recipe's teacher, and nothing else.

Invariant: the model that comes out has the structure of the one that went in. Left out: teaching within other stages,
which each of them takes as `teach` (`pipeline/`).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import keras

from tfcompress.teach_settings import TeachSettings
from tfcompress.techniques.base import Context, Technique


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill(TeachSettings, Technique):
    """Trains under the teacher.

    Args:
        temperature: Softening of both distributions, above 0.
        weight: Share of the teacher's loss beside that of the labels, in [0, 1].
        kind: A name in `by_name.LOSSES`.
        features: What layers learn from layers.
        mixup: Alpha of the shares in which pictures are blended with one another, above 0, or None.
        cutmix: Alpha of the shares in which pictures are pasted into one another, above 0, or None.
    """

    needs_teacher: ClassVar[bool] = True

    @property
    def keeps_clusters(self) -> bool:
        return True

    def apply(self, model: keras.Model, context: Context) -> keras.Model:
        return context.train(model).model

    def teaching(self) -> TeachSettings:
        return self
