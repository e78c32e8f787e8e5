"""Magnitude pruning: the smallest weights become zero while a network trains, on a schedule of TFMOT's.

Invariant: at every batch end each pruned kernel has exactly the zeros that the schedule asked for last; a weight once
pruned stays zero. Left out: zeros that follow a pattern (N:M, blocks), criteria other than magnitude, and making the
tensors smaller, which zeros alone do not.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np

from tfcompress.errors import InvalidArgumentError, ModelError, TrainingError
from tfcompress.graph.trace import Trace, trace
from tfcompress.techniques.base import Context, Technique
from tfcompress.techniques.masks import KernelMask, kernel_layers
from tfcompress.techniques.schedules import Schedule, SchedulePlan, check_reachable, schedule_from_recipe

RANKINGS = ("layer", "global")


def prunable_layers(
    model: keras.Model, include: Iterable[str] | None = None, exclude: Iterable[str] = ()
) -> list[keras.layers.Layer]:
    """The layers whose kernels are pruned.

    By default that is every layer with a kernel, except depthwise convolutions, the first and the last kernel on each
    path through the network. A depthwise kernel has a handful of weights for each channel, and the first and last
    layers have few weights that every prediction depends on: their zeros save little and cost much accuracy (Gale et
    al., "The State of Sparsity in Deep Neural Networks", 2019, https://arxiv.org/abs/1902.09574).

    Args:
        model: A built Keras model.
        include: Patterns of layer names (`fnmatch`, such as `"conv*"`). When given, just these are pruned, the kinds
            that are left out by default too.
        exclude: Patterns of layer names that are not pruned.

    Raises:
        InvalidArgumentError: If a pattern fits no layer with a kernel.
        ModelError: If nothing is left to prune.
    """
    layers = kernel_layers(model)
    names = [layer.name for layer in layers]
    for argument, patterns in (("include", include or ()), ("exclude", exclude)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise InvalidArgumentError(argument, f"patterns of the layer names {names}", pattern)
    if include is None:
        left_out = _first_and_last(model, names)
        chosen = [
            layer
            for layer in layers
            if layer.name not in left_out
            and not isinstance(layer, keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D)
        ]
    else:
        chosen = [layer for layer in layers if any(fnmatch.fnmatch(layer.name, pattern) for pattern in include)]
    chosen = [layer for layer in chosen if not any(fnmatch.fnmatch(layer.name, pattern) for pattern in exclude)]
    if not chosen:
        raise ModelError(
            f"Model {model.name!r} has no layer to prune: first, last and depthwise layers are left out by default. "
            f"Name layers in `include`. Received: layers with kernels {names}."
        )
    return chosen


class MagnitudePruning(keras.callbacks.Callback):
    """Prunes the smallest weights of a model during `fit`.

    Works in plain `model.fit` and inside a custom `train_step`, with `jit_compile`, `steps_per_execution`, mixed
    precision and distribution strategies. Resuming needs no state beside the model and its optimizer: the zeros are the
    mask, and `optimizer.iterations` is the place in the schedule.

    Args:
        model: The model to prune: the one that is fitted, or the student of a `Distiller`.
        schedule: Any TFMOT schedule, or a callable `step -> (should_prune, sparsity)`. Step n is after n batches.
        ranking: `"layer"` prunes the same share of every layer; `"global"` ranks the weights of all layers together,
            so that layers with small weights lose more of them. A layer always keeps at least one weight.
        include: Patterns of layer names to prune; see `prunable_layers` for what is pruned by default.
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
        super().__init__()
        if ranking not in RANKINGS:
            raise InvalidArgumentError("MagnitudePruning.ranking", f"one of {RANKINGS}", ranking)
        if not callable(schedule):
            raise InvalidArgumentError("MagnitudePruning.schedule", "a TFMOT schedule or a callable", schedule)
        self._layers = prunable_layers(model, include, exclude)
        self._schedule = schedule
        self._ranking = ranking
        self._masks: list[KernelMask] = []
        self._plan: SchedulePlan | None = None
        self._final_step = 0
        self._step = 0
        self._epoch_start = 0

    @property
    def settled(self) -> bool:
        """Whether the final sparsity is reached; earlier epochs are no candidates for the best one."""
        return self._step >= self._final_step

    def on_train_begin(self, logs=None):
        self._masks = [KernelMask(layer.kernel, self.model.distribute_strategy) for layer in self._layers]
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
        # The compiled step still has the masks in it.
        self.model.make_train_function(force=True)

    def _start(self, epoch: int) -> None:
        steps = self.params.get("steps")
        if steps is None:
            raise TrainingError(
                "MagnitudePruning must know how many steps are planned to hold its schedule against them. "
                "Received: data of unknown length. Pass `steps_per_epoch` to `fit`."
            )
        # Under loss scaling the optimizer leaves out steps that overflow, and counts fewer than there were.
        iterations = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        self._step = max(iterations, epoch * steps)
        total = self._step + (self.params["epochs"] - epoch) * steps
        self._plan = SchedulePlan.read(self._schedule, total)
        self._final_step = check_reachable(self._schedule, self._plan)
        # The sparsity that holds now; a resumed training finds the zeros of the last pruning again by it.
        self._prune_when_due(-1, self._step)

    def _advance(self, step: int) -> None:
        self._prune_when_due(self._step, step)
        self._step = step

    def _prune_when_due(self, after: int, until: int) -> None:
        assert self._plan is not None
        sparsity = self._plan.due(after, until)
        if sparsity is not None:
            kernels = [keras.ops.convert_to_numpy(mask.variable) for mask in self._masks]
            for mask, keep in zip(self._masks, magnitude_masks(kernels, sparsity, self._ranking), strict=True):
                mask.assign(keep)


def magnitude_masks(kernels: Sequence[np.ndarray], sparsity: float, ranking: str = "layer") -> list[np.ndarray]:
    """Which weights to keep so that a share `sparsity` of them, the smallest, is dropped.

    Args:
        kernels: Arrays of any shapes.
        sparsity: Share to drop, in [0, 1].
        ranking: `"layer"` or `"global"`.

    Returns:
        A boolean array for each kernel. Equal magnitudes are dropped in the order of their index.

    Example:
        >>> magnitude_masks([np.array([3.0, -1.0, 2.0, 0.5])], 0.5)[0].tolist()
        [True, False, True, False]
    """
    if ranking == "layer":
        return [_keep_largest(np.abs(kernel), round(sparsity * kernel.size)) for kernel in kernels]
    flat = np.concatenate([np.abs(kernel).ravel() for kernel in kernels])
    starts = np.cumsum([0, *(kernel.size for kernel in kernels)])
    # The largest weight of each layer is worth more than any other, or a layer could go dead.
    for start, end in itertools.pairwise(starts):
        flat[start + np.argmax(flat[start:end])] = np.inf
    keep = _keep_largest(flat, min(round(sparsity * flat.size), flat.size - len(kernels)))
    return [
        keep[start:end].reshape(kernel.shape)
        for start, end, kernel in zip(starts[:-1], starts[1:], kernels, strict=True)
    ]


def _keep_largest(magnitude: np.ndarray, drop: int) -> np.ndarray:
    if drop <= 0:
        return np.ones(magnitude.shape, bool)
    drop = min(drop, magnitude.size - 1)
    flat = magnitude.ravel()
    threshold = np.partition(flat, drop - 1)[drop - 1]
    keep = flat > threshold
    # Some of the weights at the threshold itself stay: the count is exact, whatever ties there are.
    ties = np.flatnonzero(flat == threshold)
    keep[ties[drop - np.count_nonzero(flat < threshold) :]] = True
    return keep.reshape(magnitude.shape)


def _first_and_last(model: keras.Model, names: Sequence[str]) -> set[str]:
    """The layers with a kernel that have no other such layer before them, or none after them."""
    try:
        traced = trace(model)
    except ModelError:
        # A subclassed model has no graph; its layers are listed in the order of their making.
        return {names[0], names[-1]} if names else set()
    return _edge(traced, names, forward=True) | _edge(traced, names, forward=False)


def _edge(traced: Trace, names: Iterable[str], *, forward: bool) -> set[str]:
    calls = traced.calls
    kernels = set(names)
    reached: dict[int, bool] = {}  # Whether a kernel lies between the edge of the network and this call's result.
    edge = set()
    for index in range(len(calls)) if forward else reversed(range(len(calls))):
        before = [ref.call for ref in calls[index].sources] if forward else traced.consumers(index)
        behind_kernel = any(reached[at] for at in before)
        is_kernel = calls[index].operation.name in kernels
        if is_kernel and not behind_kernel:
            edge.add(calls[index].operation.name)
        reached[index] = behind_kernel or is_kernel
    return edge


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune(Technique):
    """The recipe stage `prune`: trains with `MagnitudePruning`.

    Args:
        schedule: `{name: arguments}`, a function of `schedules.py`, such as
            `{"polynomial_decay": {"final_sparsity": 0.8}}`.
        ranking: `"layer"` or `"global"`.
        include: Patterns of layer names to prune.
        exclude: Patterns of layer names not to prune.
    """

    makes_zeros: ClassVar[bool] = True

    schedule: Mapping[str, Any]
    ranking: str = "layer"
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self):
        if self.ranking not in RANKINGS:
            raise InvalidArgumentError("prune.ranking", f"one of {RANKINGS}", self.ranking)
        # A schedule is known to be right only when it is made; a thousand steps stand for the planned ones.
        schedule_from_recipe(self.schedule, 1000)

    def check(self, model: keras.Model, total_steps: int) -> None:
        prunable_layers(model, self.include, self.exclude)
        schedule = schedule_from_recipe(self.schedule, total_steps)
        check_reachable(schedule, SchedulePlan.read(schedule, total_steps))

    def apply(self, model: keras.Model, context: Context) -> keras.Model:
        schedule = schedule_from_recipe(self.schedule, context.total_steps)

        def callbacks(replica: keras.Model) -> list[keras.callbacks.Callback]:
            return [
                MagnitudePruning(replica, schedule, ranking=self.ranking, include=self.include, exclude=self.exclude)
            ]

        return context.train(model, callbacks=callbacks).model
