"""Pruning schedules: TFMOT's own, found by name, and read ahead for the steps that a training plans.

Invariant: a schedule is asked exactly as TFMOT asks it, `schedule(step) -> (should_prune, sparsity)`. Only the rounds
of `iterative` are our own, since TFMOT has none. Left out: what is done with the answer (`prune/`).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError, TrainingError

# TFMOT asks: has `step` come, and which share of the weights is to be zero?
Schedule = Callable[[Any], tuple[Any, Any]]


def load_tfmot() -> Any:
    """The module `tensorflow_model_optimization`.

    Importing TFMOT for the first time would turn `tf.keras` into the legacy Keras for the whole process; touching
    `tf.keras` first and putting the environment back prevents that.
    """
    _ = tf.keras.__name__
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    try:
        import tensorflow_model_optimization as tfmot
    finally:
        if before is None:
            os.environ.pop("TF_USE_LEGACY_KERAS", None)
        else:
            os.environ["TF_USE_LEGACY_KERAS"] = before
    return tfmot


def tfmot_schedules() -> Any:
    """The module `tensorflow_model_optimization.sparsity.keras`."""
    return load_tfmot().sparsity.keras


def polynomial_decay(
    total_steps: int,
    *,
    final_sparsity: float,
    initial_sparsity: float = 0.0,
    power: float = 3,
    begin: float = 0.0,
    end: float = 0.75,
    frequency: int | None = None,
) -> Schedule:
    """TFMOT's `PolynomialDecay` with its steps given as shares of the training.

    Args:
        total_steps: Planned training steps.
        final_sparsity: Share of zeros from `end` on, in (0, 1).
        initial_sparsity: Share of zeros at `begin`, in [0, 1).
        power: Exponent of the decay; 3 prunes much at first and little later.
        begin: Share of the training before the first pruning, in [0, 1).
        end: Share of the training after which the sparsity is final, in (begin, 1]; the rest recovers accuracy.
        frequency: Steps between two prunings; by default as many as give about 50 prunings.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Reference:
        Zhu, Gupta, "To prune, or not to prune", 2017, https://arxiv.org/abs/1710.01878
    """
    _check_sparsity("polynomial_decay.final_sparsity", final_sparsity)
    if not 0 <= initial_sparsity <= final_sparsity:
        raise InvalidArgumentError(
            "polynomial_decay.initial_sparsity", "a number in [0, final_sparsity]", initial_sparsity
        )
    begin_step, end_step = _steps("polynomial_decay", begin, end, total_steps)
    frequency = frequency or max(1, (end_step - begin_step) // 50)
    # TFMOT prunes only at begin + k * frequency: an end between two of those would never be reached.
    end_step = begin_step + max(1, (end_step - begin_step) // frequency) * frequency
    return tfmot_schedules().PolynomialDecay(
        initial_sparsity=initial_sparsity,
        final_sparsity=final_sparsity,
        begin_step=begin_step,
        end_step=end_step,
        power=power,
        frequency=frequency,
    )


def constant_sparsity(
    total_steps: int, *, target_sparsity: float, begin: float = 0.0, frequency: int | None = None
) -> Schedule:
    """TFMOT's `ConstantSparsity`, beginning at a share of the training.

    Args:
        total_steps: Planned training steps.
        target_sparsity: Share of zeros, in (0, 1).
        begin: Share of the training before the pruning, in [0, 1).
        frequency: Steps between two prunings; by default as many as give about 50 prunings.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
    """
    _check_sparsity("constant_sparsity.target_sparsity", target_sparsity)
    begin_step, end_step = _steps("constant_sparsity", begin, 1.0, total_steps)
    return tfmot_schedules().ConstantSparsity(
        target_sparsity, begin_step=begin_step, frequency=frequency or max(1, (end_step - begin_step) // 50)
    )


@dataclasses.dataclass(frozen=True)
class PruningRounds:
    """Prunes in rounds, each of which leaves the same share of the weights that the round before left.

    Args:
        final_sparsity: Share of zeros after the last round, in (0, 1).
        steps: The steps of the prunings, rising.
    """

    final_sparsity: float
    steps: tuple[int, ...]

    def __call__(self, step: Any) -> tuple[Any, Any]:
        prunings = tf.constant(self.steps, tf.int64)
        step = tf.cast(step, tf.int64)
        rounds = tf.cast(tf.reduce_sum(tf.cast(prunings <= step, tf.int64)), tf.float32)
        sparsity = 1.0 - (1.0 - self.final_sparsity) ** (rounds / len(self.steps))
        return tf.reduce_any(prunings == step), sparsity

    def get_config(self) -> dict[str, Any]:
        return {"class_name": "PruningRounds", "config": {"final_sparsity": self.final_sparsity, "steps": self.steps}}


def iterative(
    total_steps: int, *, final_sparsity: float, rounds: int = 5, begin: float = 0.0, end: float = 0.75
) -> Schedule:
    """Rounds of pruning and training: Han's iterative pruning, and with rewinding that of the lottery ticket.

    Args:
        total_steps: Planned training steps.
        final_sparsity: Share of zeros after the last round, in (0, 1).
        rounds: How many prunings, at least 1, evenly from `begin` to `end`.
        begin: Share of the training before the first pruning, in [0, end).
        end: Share of the training at the last pruning, in (begin, 1]; the rest recovers accuracy.

    Raises:
        InvalidArgumentError: If an argument is out of its range, or there are more rounds than steps for them.

    Example:
        >>> iterative(100, final_sparsity=0.75, rounds=2).steps
        (0, 75)

    Reference:
        Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015,
        https://arxiv.org/abs/1506.02626; Frankle, Carbin, "The Lottery Ticket Hypothesis", 2019,
        https://arxiv.org/abs/1803.03635
    """
    _check_sparsity("iterative.final_sparsity", final_sparsity)
    begin_step, end_step = _steps("iterative", begin, end, total_steps)
    steps = tuple(int(step) for step in np.linspace(begin_step, end_step, rounds)) if rounds >= 1 else ()
    if rounds == 1:
        steps = (end_step,)
    if not steps or len(set(steps)) < rounds:
        raise InvalidArgumentError("iterative.rounds", f"1 to {end_step - begin_step + 1}", rounds)
    return PruningRounds(final_sparsity, steps)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "polynomial_decay": polynomial_decay,
    "constant_sparsity": constant_sparsity,
    "iterative": iterative,
}


def schedule_from_recipe(spec: Mapping[str, Mapping[str, Any]], total_steps: int) -> Schedule:
    """A schedule from `{name: arguments}`, as a recipe has it.

    Raises:
        InvalidArgumentError: If the name or an argument is unknown, or a value is out of its range.
    """
    if len(spec) != 1 or next(iter(spec)) not in SCHEDULES:
        raise InvalidArgumentError("schedule", f"one of {sorted(SCHEDULES)} with its arguments", dict(spec))
    ((name, arguments),) = spec.items()
    try:
        return SCHEDULES[name](total_steps, **arguments)
    except TypeError as error:
        raise InvalidArgumentError(f"schedule.{name}", f"the arguments of its function ({error})", arguments) from error


@dataclasses.dataclass(frozen=True)
class SchedulePlan:
    """What a schedule says for every step of a training, asked once before it starts.

    Args:
        should_prune: Whether to prune at each step, shape `(steps + 1,)`; step 0 is before the first.
        sparsity: The sparsity at each step, in [0, 1], same shape.
    """

    should_prune: np.ndarray
    sparsity: np.ndarray

    @classmethod
    def read(cls, schedule: Schedule, total_steps: int) -> SchedulePlan:
        """Asks `schedule` about steps 0 to `total_steps`."""

        def ask(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            should_prune, sparsity = schedule(step)
            return tf.cast(should_prune, tf.bool), tf.cast(sparsity, tf.float32)

        steps = tf.range(total_steps + 1, dtype=tf.int64)
        try:
            answers = tf.function(lambda: tf.map_fn(ask, steps, fn_output_signature=(tf.bool, tf.float32)))()
        except (TypeError, ValueError, NotImplementedError):
            # Not made of TensorFlow operations: slower, one step at a time.
            answered = [schedule(step) for step in range(total_steps + 1)]
            return cls(
                *(np.array(side, kind) for side, kind in zip(zip(*answered, strict=True), (bool, float), strict=True))
            )
        return cls(*(answer.numpy() for answer in answers))

    def due(self, after: int, until: int) -> float | None:
        """The sparsity at the last pruning in steps `after` (exclusive) to `until` (inclusive), if there is one."""
        steps = np.flatnonzero(self.should_prune[after + 1 : until + 1])
        return None if steps.size == 0 else float(self.sparsity[after + 1 + steps[-1]])

    def final_step(self, target: float) -> int | None:
        """The first pruning that reaches `target`, or `None`."""
        steps = np.flatnonzero(self.should_prune & (self.sparsity >= target - 1e-6))
        return None if steps.size == 0 else int(steps[0])


def target_sparsity(schedule: Schedule) -> float:
    """The sparsity a schedule ends at: what its configuration says, or what it answers for a step far away."""
    config = schedule.get_config().get("config", {}) if hasattr(schedule, "get_config") else {}
    for key in ("final_sparsity", "target_sparsity"):
        if key in config:
            return float(config[key])
    return float(schedule(tf.constant(2**40, tf.int64))[1])


def check_reachable(schedule: Schedule, plan: SchedulePlan) -> int:
    """Returns the step at which the target is reached.

    Raises:
        TrainingError: If it is not reached in the planned steps, with what to change.
    """
    target = target_sparsity(schedule)
    reached = plan.final_step(target)
    if reached is not None:
        return reached
    planned = len(plan.should_prune) - 1
    prunings = np.flatnonzero(plan.should_prune)
    best = plan.sparsity[prunings].max() if prunings.size else 0.0
    config = schedule.get_config().get("config", {}) if hasattr(schedule, "get_config") else {}
    raise TrainingError(
        f"The pruning schedule cannot reach its sparsity of {target:g} in the planned {planned} steps: it prunes "
        f"{prunings.size} times and ends at {best:.3g}. Train longer, or choose `end_step` up to {planned} and a "
        f"`frequency` that divides `end_step - begin_step`. Received: {type(schedule).__name__} {config}."
    )


def _check_sparsity(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise InvalidArgumentError(name, "a number in (0, 1)", value)


def _steps(owner: str, begin: float, end: float, total_steps: int) -> tuple[int, int]:
    if not 0 <= begin < end <= 1:
        raise InvalidArgumentError(f"{owner}.begin and end", "shares with 0 <= begin < end <= 1", (begin, end))
    begin_step = math.floor(begin * total_steps)
    return begin_step, max(begin_step + 1, math.floor(end * total_steps))
