"""The recipe stage `prune`: trains with `WeightPruning`.

Invariant: what can be known to be wrong before the training is found before it. Left out: the pruning itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.base import Context, Technique
from tfcompress.techniques.prune.budgets import BUDGETS
from tfcompress.techniques.prune.callback import WeightPruning, check_options, check_target
from tfcompress.techniques.prune.criteria import as_criterion
from tfcompress.techniques.prune.kernels import prunable_kernels
from tfcompress.techniques.prune.patterns import Pattern, check_pattern
from tfcompress.techniques.prune.penalty import SparsityPenalty
from tfcompress.techniques.prune.sensitivity import SensitivityBudget
from tfcompress.techniques.schedules import SchedulePlan, check_reachable, schedule_from_recipe

# Enough to tell a layer that matters from one that doesn't.
_SENSITIVITY_SAMPLES = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune(Technique):
    """The recipe stage `prune`: trains with `WeightPruning`.

    Args:
        schedule: `{name: arguments}`, a function of `schedules.py`, such as
            `{"polynomial_decay": {"final_sparsity": 0.8}}`.
        criterion: What a weight is worth, a name of `CRITERIA`.
        pattern: What gets zeros together: `"2:4"`, `"4:8"`, `"1x4"`, `"1x16"` or the like, or None.
        budget: How the sparsity is shared out: `"uniform"`, `"global"`, `"erk"`, or `"sensitivity"`, which measures on
            training samples what each kernel's zeros do to the outputs.
        rewind: A share of the training, in [0, 1), whose weights each later pruning goes back to; or None.
        regrow: Share of the weights that a pruning exchanges for pruned ones of large gradients, in [0, 1).
        l1_penalty: Weight of the sum of absolute values of the kernels in the loss, at least 0.
        l2_penalty: Weight of the sum of their squares, at least 0.
        include: Patterns of layer names to prune.
        exclude: Patterns of layer names not to prune.
    """

    makes_zeros: ClassVar[bool] = True

    schedule: Mapping[str, Any]
    criterion: str = "l1"
    pattern: str | None = None
    budget: str = "uniform"
    rewind: float | None = None
    regrow: float = 0.0
    l1_penalty: float = 0.0
    l2_penalty: float = 0.0
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self):
        as_criterion("prune", self.criterion)
        if self.budget not in (*BUDGETS, "sensitivity"):
            raise InvalidArgumentError("prune.budget", f"one of {', '.join(BUDGETS)}, sensitivity", self.budget)
        if self.rewind is not None and not 0 <= self.rewind < 1:
            raise InvalidArgumentError("prune.rewind", "a share of the training in [0, 1)", self.rewind)
        for name in ("l1_penalty", "l2_penalty"):
            if getattr(self, name) < 0:
                raise InvalidArgumentError(f"prune.{name}", "at least 0", getattr(self, name))
        check_options("prune", pattern=self.pattern, budget=self.budget, rewind=self.rewind, regrow=self.regrow)
        # A schedule is known to be right only when it is made; a thousand steps stand for the planned ones.
        check_target("prune", schedule_from_recipe(self.schedule, 1000), Pattern.parse(self.pattern))

    def check(self, model: keras.Model, total_steps: int) -> None:
        check_pattern(Pattern.parse(self.pattern), prunable_kernels(model, self.include, self.exclude))
        schedule = schedule_from_recipe(self.schedule, total_steps)
        check_reachable(schedule, SchedulePlan.read(schedule, total_steps))

    def apply(self, model: keras.Model, context: Context) -> keras.Model:
        schedule = schedule_from_recipe(self.schedule, context.total_steps)
        layers: dict[str, Any] = {"include": self.include, "exclude": self.exclude}
        budget: Any = self.budget
        if budget == "sensitivity":
            batches = context.data.batches("train", _SENSITIVITY_SAMPLES, limit=_SENSITIVITY_SAMPLES)
            inputs, _ = next(iter(batches))
            budget = SensitivityBudget.measure(model, np.asarray(inputs), **layers)

        def callbacks(replica: keras.Model) -> list[keras.callbacks.Callback]:
            pruning = WeightPruning(
                replica,
                schedule,
                criterion=self.criterion,
                pattern=self.pattern,
                budget=budget,
                rewind=None if self.rewind is None else int(self.rewind * context.total_steps),
                regrow=self.regrow,
                seed=context.seed,
                **layers,
            )
            if not (self.l1_penalty or self.l2_penalty):
                return [pruning]
            return [pruning, SparsityPenalty(replica, l1=self.l1_penalty, l2=self.l2_penalty, **layers)]

        return context.train(model, callbacks=callbacks).model
