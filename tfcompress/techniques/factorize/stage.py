"""The recipe stage `factorize`: smaller layers in the place of large ones, then fine-tuning.

Invariant: what the stage is given is factorized as `factorize` does it, and trained once. Zeros of an earlier stage are
refused unless the stage leaves those layers alone: the factors of a kernel with zeros have none, and their product has
others. Left out: ranks that change while training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras

from tfcompress.errors import ModelError
from tfcompress.techniques.base import Context, Technique
from tfcompress.techniques.factorize.decide import check_structure
from tfcompress.techniques.factorize.factorize import factorize, own_names
from tfcompress.techniques.factorize.plan import Selection
from tfcompress.techniques.layer_names import fits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factorize(Selection, Technique):
    """Factorizes layers and trains what comes out; its keys are the arguments of `factorize`."""

    def check_after(self, earlier: Sequence[Technique]) -> None:
        super().check_after(earlier)
        for technique in earlier:
            if technique.makes_integers:
                raise ModelError("It works on float models only; let it come before the stage that quantizes.")
            if technique.makes_zeros and not self._leaves_alone(technique):
                raise ModelError(
                    f"The zeros of {type(technique).__name__} would be lost, since the factors of a kernel with zeros "
                    "have none. Factorize first and prune the factors, or name the pruned layers in the `include` of "
                    "that stage and in the `exclude` of this one."
                )

    def check(self, model: keras.Model, total_steps: int) -> None:
        check_structure(own_names(model), self)

    def apply(self, model: keras.Model, context: Context) -> keras.Model:
        arguments = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return context.train(factorize(model, **arguments)).model

    def _leaves_alone(self, pruning: Technique) -> bool:
        """Whether no layer that a stage may prune can be factorized here, whatever the model's layers are called."""
        include, exclude = getattr(pruning, "include", None), getattr(pruning, "exclude", ())
        return _covers(self.exclude, include) or _covers(exclude, self.include)


def _covers(patterns: Sequence[str], included: Sequence[str] | None) -> bool:
    """Whether every name that fits one of `included` fits one of `patterns`."""
    return included is not None and all(
        # A pattern fits itself; of another one only a plain name is known to fit with all that it means.
        pattern in patterns or (not set(pattern) & set("*?[") and fits(pattern, patterns))
        for pattern in included
    )
