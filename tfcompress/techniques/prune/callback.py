"""`WeightPruning`: weights become zero while a network trains, on a schedule of TFMOT's.

Invariant: at every batch end each pruned kernel has exactly the zeros that the schedule asked for last; a weight once
pruned stays zero, unless it is regrown. Left out: making the tensors smaller, which zeros alone do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError, TrainingError
from tfcompress.techniques.constraints import begin
from tfcompress.techniques.kernels import check_finite
from tfcompress.techniques.listening import steps_so_far
from tfcompress.techniques.masks import KernelMask
from tfcompress.techniques.prune.budgets import as_budget, uniform
from tfcompress.techniques.prune.criteria import as_criterion, check_scores
from tfcompress.techniques.prune.gradients import GradientWatch
from tfcompress.techniques.prune.kernels import prunable_kernels
from tfcompress.techniques.prune.patterns import Pattern, RowLayout, check_pattern
from tfcompress.techniques.prune.ranking import choose_masks, ranked
from tfcompress.techniques.prune.regrowth import regrow as exchange
from tfcompress.techniques.prune.regrowth import regrowth_share
from tfcompress.techniques.prune.rewinding import Rewind
from tfcompress.techniques.schedules import Schedule, SchedulePlan, check_reachable, target_sparsity

RANKINGS = ("layer", "global")


class _GrowingMask(KernelMask):
    """The mask of a kernel that is being pruned."""

    adds_zeros = True


class WeightPruning(keras.callbacks.Callback):
    """Prunes weights of a model during `fit`.

    Works in plain `model.fit` and inside a custom `train_step`, with `jit_compile`, `steps_per_execution`, mixed
    precision and distribution strategies. By magnitude, resuming needs no state beside the model and its optimizer: the
    zeros are the mask, and the steps that the optimizer counts are the place in the schedule. What other options have
    to remember is in `variables`, which `tfcompress.fit` keeps in its checkpoints.

    The zeros at the end of training are those of its last step. Where a callback that goes back to the weights of an
    earlier epoch (`EarlyStopping`) comes before this one, these weights get the last zeros too, and what is left is no
    epoch's model; where it comes after, the model is that epoch's, as sparse as it was then.

    Args:
        model: The model to prune: the one that is fitted, or the student of a `Distiller`.
        schedule: Any TFMOT schedule, or a callable `step -> (should_prune, sparsity)`. Step n is after n batches.
        criterion: What a weight is worth: `"l1"` (magnitude), `"l2"`, `"taylor"`, `"movement"`, `"hessian"`,
            `"random"`, a callable `weights -> scores`, or a `Criterion`. Those that need gradients take them from the
            training itself; where a schedule begins before the first step, they prune at the end of that step.
        pattern: What gets zeros together, along the input axis: `"2:4"` or `"4:8"`, `"1x4"` or `"1x16"`, or None.
        budget: How the sparsity is shared out: `"uniform"` prunes the same share of every kernel, `"global"` ranks the
            weights of all kernels together, `"erk"` prunes large kernels more; or a callable `(shapes, sparsity) ->
            sparsities`, such as a `SensitivityBudget`. A kernel always keeps at least one weight or block.
        rewind: A step whose weights each pruning after it goes back to, or None.
        regrow: Share of the weights that each pruning exchanges for pruned ones of large gradients (RigL), in [0, 1);
            it falls to 0 with the last pruning. Weights that come back start from zero.
        include: Patterns of layer names to prune; see `prunable_kernels` for what is pruned by default.
        exclude: Patterns of layer names not to prune.
        seed: Seed of `"random"`.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        ModelError: If the model has nothing to prune, or the pattern does not fit a kernel.
        TrainingError: When training begins, if the schedule cannot reach its target in the planned steps, or the same
            `fit` holds a kernel at few values; cluster in one after it.
        ModelError: When weights are pruned, if a kernel holds NaN or infinity.

    Example:
        >>> import tensorflow_model_optimization as tfmot
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="hidden"), keras.layers.Dense(2)])
        >>> schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, begin_step=0, frequency=1)
        >>> pruning = WeightPruning(model, schedule, criterion="taylor", pattern="2:4", include=["hidden"])
        >>> model.compile("sgd", "mse")
        >>> _ = model.fit(np.ones((4, 8)), np.ones((4, 2)), verbose=0, callbacks=[pruning])
        >>> (model.get_layer("hidden").kernel.numpy().reshape(2, 4, 8) == 0).sum(1).tolist()[0]
        [2, 2, 2, 2, 2, 2, 2, 2]
    """

    def __init__(
        self,
        model: keras.Model,
        schedule: Schedule,
        *,
        criterion: Any = "l1",
        pattern: str | None = None,
        budget: Any = "uniform",
        rewind: int | None = None,
        regrow: float = 0.0,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        seed: int = 0,
    ):
        super().__init__()
        owner = type(self).__name__
        if not callable(schedule):
            raise InvalidArgumentError(f"{owner}.schedule", "a TFMOT schedule or a callable", schedule)
        check_options(owner, pattern=pattern, budget=budget, rewind=rewind, regrow=regrow)
        self._criterion = as_criterion(owner, criterion)
        self._pattern = Pattern.parse(pattern)
        self._budget = as_budget(owner, budget)
        self._kernels = prunable_kernels(model, include, exclude)
        check_pattern(self._pattern, self._kernels)
        check_target(owner, schedule, self._pattern)
        self._layouts = [RowLayout.of(kernel) for kernel in self._kernels]
        self._schedule = schedule
        self._seed = seed
        self._regrow = regrow
        self._prepare(model, rewind)
        self._masks: list[KernelMask] = []
        self._plan: SchedulePlan | None = None
        self._overdue: float | None = None
        self._final_step = 0
        self._last_step = 0
        self._step = 0
        self._epoch_start = 0

    def _prepare(self, model: keras.Model, rewind: int | None) -> None:
        """Makes what is remembered from step to step, in the scope that the model lives in."""
        strategy = model.distribute_strategy
        kernels = [kernel.variable for kernel in self._kernels]
        observe = self._criterion.observe
        self._observed = GradientWatch(kernels, observe, strategy) if observe is not None else None
        last = (lambda weights, gradient: gradient) if self._regrow else None
        # The gradients of the last batch, those of pruned weights too.
        self._gradients = GradientWatch(kernels, last, strategy, last_only=True) if last else None
        with strategy.scope():
            # Weights that came back at the last pruning are zero, and yet no zeros to hold.
            self._regrown = [tf.Variable(tf.zeros(kernel.shape), trainable=False) for kernel in kernels if last]
        self._rewind = Rewind(model, rewind, strategy) if rewind is not None else None

    @property
    def variables(self) -> list[Any]:
        """What a training resumed in the middle needs beside the model and its optimizer."""
        parts = [part for part in (self._observed, self._gradients, self._rewind) if part is not None]
        return [*(variable for part in parts for variable in part.variables), *self._regrown]

    @property
    def settled(self) -> bool:
        """Whether the final sparsity is reached; earlier epochs are no candidates for the best one."""
        return self._step >= self._final_step

    def on_train_begin(self, logs=None):
        self._masks = [_GrowingMask(kernel.variable, self.model.distribute_strategy) for kernel in self._kernels]
        begin(self._masks, self.params)
        for watch in self._watches:
            watch.install(self.model.optimizer)
        self._plan = None
        # A step that was compiled before knows nothing of the masks.
        self.model.make_train_function(force=True)

    def on_epoch_begin(self, epoch, logs=None):
        if self._plan is None:
            self._start(epoch)
        self._epoch_start = self._step

    def on_train_batch_end(self, batch, logs=None):
        # With `steps_per_execution` several steps end at once, and `batch` is the last of them; Keras counts whole
        # executions, also where an epoch ends within one.
        self._advance(self._epoch_start + min(batch + 1, self.params["steps"]))

    def on_train_end(self, logs=None):
        for mask in self._masks:
            # An optimizer that averages weights overwrites them at the end.
            mask.reapply()
            mask.remove()
        self._masks = []
        for watch in reversed(self._watches):
            watch.remove()
        # The compiled step still has the masks in it.
        self.model.make_train_function(force=True)

    @property
    def _watches(self) -> list[GradientWatch]:
        return [watch for watch in (self._observed, self._gradients) if watch is not None]

    def _start(self, epoch: int) -> None:
        steps = self.params.get("steps")
        if steps is None:
            raise TrainingError(
                f"{type(self).__name__} must know how many steps are planned to hold its schedule against them. "
                "Received: data of unknown length. Pass `steps_per_epoch` to `fit`."
            )
        # Under loss scaling the optimizer leaves out steps that overflow, and counts fewer than there were.
        self._step = max(steps_so_far(self.model.optimizer), epoch * steps)
        total = self._step + (self.params["epochs"] - epoch) * steps
        self._plan = SchedulePlan.read(self._schedule, total)
        self._final_step = check_reachable(self._schedule, self._plan)
        self._last_step = int(np.flatnonzero(self._plan.should_prune)[-1])
        if self._rewind is not None:
            self._rewind.keep_when_due(self._step)
        # The sparsity that holds now; a resumed training finds the zeros of the last pruning again by it.
        sparsity = self._plan.due(-1, self._step)
        if sparsity is not None:
            self._resume(sparsity)

    def _resume(self, sparsity: float) -> None:
        """Prunes before the first step, or finds the masks again that an earlier training pruned by."""
        kept = self._kept()
        masks = self._choose(kept, sparsity, observed=False)
        found_again = all(not (alive & ~keep).any() for alive, keep in zip(kept, masks, strict=True))
        if not found_again and self._observed is not None and not self._observed.seen:
            # No gradient came by yet: the end of the first step is early enough for what is promised of batch ends.
            self._overdue = sparsity
            return
        if not found_again:
            masks = self._choose(kept, sparsity)
        for mask, keep in zip(self._masks, masks, strict=True):
            mask.assign(keep)

    def _advance(self, step: int) -> None:
        assert self._plan is not None
        sparsity = self._plan.due(self._step, step)
        if self._rewind is not None:
            self._rewind.keep_when_due(step)
        self._step = step
        if sparsity is None:
            sparsity = self._overdue
        if sparsity is not None:
            self._prune(sparsity)

    def _prune(self, sparsity: float) -> None:
        self._overdue = None
        kept = self._kept()
        masks = self._choose(kept, sparsity)
        if self._gradients is not None:
            masks = self._exchange(kept, masks)
        if self._rewind is not None:
            self._rewind.go_back()
        for mask, keep in zip(self._masks, masks, strict=True):
            mask.assign(keep)
        if self._observed is not None and not self._criterion.since_beginning:
            self._observed.reset()

    def _kept(self) -> list[np.ndarray]:
        """Which weights are not pruned, boolean arrays."""
        kept = [values != 0 for values in self._values()]
        if self._regrown:
            back = [keras.ops.convert_to_numpy(regrown) for regrown in self._regrown]
            kept = [alive | (regrown != 0) for alive, regrown in zip(kept, back, strict=True)]
        return kept

    def _choose(self, kept: list[np.ndarray], sparsity: float, *, observed: bool = True) -> list[np.ndarray]:
        """Masks for a sparsity; what is pruned goes first. Not `observed`, magnitude stands in for the criterion."""
        check_finite(self._kernels)
        scores = self._scores() if observed else [np.abs(values) for values in self._values()]
        return choose_masks(
            ranked(scores, kept), sparsity, budget=self._budget, pattern=self._pattern, layouts=self._layouts
        )

    def _scores(self) -> list[np.ndarray]:
        rng = np.random.default_rng((self._seed, self._step))
        observed = self._observed.read() if self._observed is not None else [None] * len(self._kernels)
        return [
            check_scores(kernel.name, self._criterion.score(value, seen, rng), value.shape)
            for kernel, value, seen in zip(self._kernels, self._values(), observed, strict=True)
        ]

    def _values(self) -> list[np.ndarray]:
        return [keras.ops.convert_to_numpy(kernel.variable) for kernel in self._kernels]

    def _exchange(self, kept: list[np.ndarray], masks: list[np.ndarray]) -> list[np.ndarray]:
        assert self._gradients is not None
        share = regrowth_share(self._regrow, self._step, self._last_step)
        arguments = zip(masks, self._scores(), self._gradients.read(), kept, strict=True)
        exchanged = [exchange(keep, score, gradient, alive, share) for keep, score, gradient, alive in arguments]
        for regrown, now, before in zip(self._regrown, exchanged, kept, strict=True):
            regrown.assign((now & ~before).astype("float32"))
        return exchanged


class MagnitudePruning(WeightPruning):
    """Prunes the smallest weights of a model during `fit`: `WeightPruning` by magnitude, each weight by itself.

    Args:
        model: The model to prune: the one that is fitted, or the student of a `Distiller`.
        schedule: Any TFMOT schedule, or a callable `step -> (should_prune, sparsity)`. Step n is after n batches.
        ranking: `"layer"` prunes the same share of every kernel; `"global"` ranks the weights of all kernels together,
            so that layers with small weights lose more of them. A kernel always keeps at least one weight.
        include: Patterns of layer names to prune; see `prunable_kernels` for what is pruned by default.
        exclude: Patterns of layer names not to prune.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        ModelError: If the model has nothing to prune.
        TrainingError: When training begins, if the schedule cannot reach its target in the planned steps.

    Example:
        >>> import tensorflow_model_optimization as tfmot
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="hidden"), keras.layers.Dense(2)])
        >>> schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, begin_step=0, frequency=1)
        >>> pruning = MagnitudePruning(model, schedule, include=["hidden"])
        >>> model.compile("sgd", "mse")
        >>> _ = model.fit(np.ones((4, 8)), np.ones((4, 2)), verbose=0, callbacks=[pruning])
        >>> float(np.mean(model.get_layer("hidden").kernel.numpy() == 0))
        0.5

    Reference:
        Zhu, Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", 2017,
        https://arxiv.org/abs/1710.01878
    """

    def __init__(
        self,
        model: keras.Model,
        schedule: Schedule,
        *,
        ranking: str = "layer",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ):
        if ranking not in RANKINGS:
            raise InvalidArgumentError("MagnitudePruning.ranking", f"one of {RANKINGS}", ranking)
        budget = "global" if ranking == "global" else "uniform"
        super().__init__(model, schedule, budget=budget, include=include, exclude=exclude)


def check_options(owner: str, *, pattern: str | None, budget: Any, rewind: float | None, regrow: float) -> None:
    """Raises an `InvalidArgumentError` for options that are out of range or do not go together."""
    parsed = Pattern.parse(pattern)
    if 1 < parsed.width != parsed.zeros_per_unit and budget not in ("uniform", "global", uniform):
        raise InvalidArgumentError(f"{owner}.budget", "uniform or global where the pattern is N:M", budget)
    if rewind is not None and rewind < 0:
        raise InvalidArgumentError(f"{owner}.rewind", "at least 0", rewind)
    if not 0 <= regrow < 1:
        raise InvalidArgumentError(f"{owner}.regrow", "a share in [0, 1)", regrow)
    if regrow and (pattern is not None or rewind is not None):
        raise InvalidArgumentError(f"{owner}.regrow", "0 with a pattern or rewinding", regrow)


def check_target(owner: str, schedule: Schedule, pattern: Pattern) -> None:
    """Raises an `InvalidArgumentError` unless a pattern N:M ends with all of its zeros."""
    if pattern.zeros_per_unit < pattern.width and abs(target_sparsity(schedule) - pattern.most_sparsity) > 1e-6:
        expected = f"one that ends at a sparsity of {pattern.most_sparsity:g}, which is that of the pattern"
        raise InvalidArgumentError(f"{owner}.schedule", expected, target_sparsity(schedule))
