"""Schedules: TFMOT's own from shares of a training, and the plan that is read ahead of it."""

import os

import numpy as np
import pytest
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError, TrainingError
from tfcompress.techniques.schedules import (
    SchedulePlan,
    check_reachable,
    schedule_from_recipe,
    target_sparsity,
    tfmot_schedules,
)


def test_importing_tfmot_leaves_keras_alone():
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    tfmot_schedules()
    assert os.environ.get("TF_USE_LEGACY_KERAS") == before
    assert tf.keras.__version__.startswith("3.")


@pytest.mark.parametrize("total", [7, 100, 400, 2345])
def test_polynomial_decay_reaches_its_sparsity_for_any_length(total):
    schedule = schedule_from_recipe({"polynomial_decay": {"final_sparsity": 0.8, "initial_sparsity": 0.1}}, total)
    assert type(schedule).__name__ == "PolynomialDecay"
    plan = SchedulePlan.read(schedule, total)
    assert check_reachable(schedule, plan) <= 0.75 * total + 1
    begin, end = schedule.begin_step, schedule.end_step
    steps = np.arange(total + 1)
    share = np.clip((steps - begin) / (end - begin), 0, 1)
    np.testing.assert_allclose(plan.sparsity, 0.8 + (0.1 - 0.8) * (1 - share) ** 3, rtol=1e-5)
    in_range = (steps >= begin) & (steps <= end)
    np.testing.assert_array_equal(plan.should_prune, in_range & ((steps - begin) % schedule.frequency == 0))


@pytest.mark.parametrize("total", [10, 400])
def test_rounds_leave_the_same_share_each_time(total):
    schedule = schedule_from_recipe({"iterative": {"final_sparsity": 0.875, "rounds": 3}}, total)
    plan = SchedulePlan.read(schedule, total)
    prunings = np.flatnonzero(plan.should_prune)
    assert prunings.tolist() == [0, int(0.75 * total) // 2, int(0.75 * total)]
    np.testing.assert_allclose(plan.sparsity[prunings], [0.5, 0.75, 0.875], rtol=1e-6)
    assert target_sparsity(schedule) == 0.875 and check_reachable(schedule, plan) == prunings[-1]


def test_more_rounds_than_steps():
    with pytest.raises(InvalidArgumentError, match=r"`iterative.rounds` must be 1 to 8. Received: 9"):
        schedule_from_recipe({"iterative": {"final_sparsity": 0.5, "rounds": 9}}, 10)


def test_constant_sparsity():
    schedule = schedule_from_recipe({"constant_sparsity": {"target_sparsity": 0.6, "begin": 0.5}}, 100)
    plan = SchedulePlan.read(schedule, 100)
    assert plan.final_step(0.6) == 50 and plan.due(-1, 49) is None
    assert target_sparsity(schedule) == 0.6


def test_due_is_the_last_pruning_in_the_steps():
    plan = SchedulePlan(np.array([True, False, True, True, False]), np.array([0.0, 0.1, 0.2, 0.3, 0.4]))
    assert (plan.due(-1, 0), plan.due(0, 1), plan.due(0, 4), plan.due(3, 4)) == (0.0, None, 0.3, None)


def test_own_callable_is_a_schedule():
    def schedule(step):
        return step % 2 == 0, tf.minimum(tf.cast(step, tf.float32) / 10.0, 0.5)

    plan = SchedulePlan.read(schedule, 20)
    assert check_reachable(schedule, plan) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"polynomial_decay": {"final_sparsity": 1.2}}, r"final_sparsity` must be a number in \(0, 1\). Received: 1.2"),
        ({"polynomial_decay": {"final_sparsity": 0.5, "initial_sparsity": 0.6}}, r"in \[0, final_sparsity\]"),
        ({"polynomial_decay": {"final_sparsity": 0.5, "begin": 0.8, "end": 0.2}}, "0 <= begin < end <= 1"),
        ({"polynomial_decay": {"sparsity": 0.5}}, "`schedule.polynomial_decay` must be the arguments"),
        ({"linear": {}}, r"`schedule` must be one of \['constant_sparsity', 'iterative', 'polynomial_decay'\]"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        schedule_from_recipe(arguments, 100)


def test_unreachable_says_what_to_change():
    schedule = tfmot_schedules().PolynomialDecay(0.0, 0.9, begin_step=0, end_step=150)
    with pytest.raises(TrainingError, match=r"prunes 2 times and ends at .*`frequency` that divides"):
        check_reachable(schedule, SchedulePlan.read(schedule, 200))


def test_own_callable_in_plain_python():
    plan = SchedulePlan.read(lambda step: (int(step) % 2 == 0, min(float(step) / 10, 0.5)), 10)
    assert plan.should_prune.tolist() == [True, False] * 5 + [True]
    np.testing.assert_allclose(plan.sparsity, np.minimum(np.arange(11) / 10, 0.5))
