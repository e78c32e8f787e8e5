"""Magnitude pruning: its masks against NumPy, its promise at every batch end, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    CLOSE,
    BatchEnds,
    OwnStep,
    blobs,
    check_resumes_from_a_saved_model,
    cross_entropy,
    tiny_cnn,
    tiny_mlp,
    trained_on_one_and_two_replicas,
    zeros_fraction,
)

from tfcompress.errors import InvalidArgumentError, ModelError, TrainingError
from tfcompress.techniques.masks import HoldMasks, KernelMask
from tfcompress.techniques.prune import MagnitudePruning, choose_masks, prunable_kernels
from tfcompress.techniques.prune.budgets import as_budget
from tfcompress.techniques.schedules import tfmot_schedules


def polynomial(end_step=8, final=0.75, frequency=2, begin=0):
    return tfmot_schedules().PolynomialDecay(0.0, final, begin, end_step, frequency=frequency)


def shares_of_zeros(ends):
    return [float(np.mean(kernel == 0)) for kernel in ends.seen]


def fit_pruned(model, schedule, *, trainer=None, epochs=3, compile_options=None, **options):
    trainer = trainer or model
    trainer.compile("adam", cross_entropy(), **(compile_options or {}))
    pruning = MagnitudePruning(model, schedule, include=["second"], **options)
    ends = BatchEnds(model.get_layer("second").kernel)
    x, y = blobs(shape=(8,))
    trainer.fit(x, y, batch_size=32, epochs=epochs, verbose=0, callbacks=[pruning, ends])
    return shares_of_zeros(ends)


@pytest.mark.parametrize("budget", ["uniform", "global"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.99])
def test_masks_drop_the_smallest(budget, sparsity):
    rng = np.random.default_rng(0)
    kernels = [rng.normal(size=(3, 3, 4, 8)), 0.1 * rng.normal(size=(40, 10))]
    masks = choose_masks([np.abs(kernel) for kernel in kernels], sparsity, budget=as_budget("test", budget))
    groups = [[0], [1]] if budget == "uniform" else [[0, 1]]
    for group in groups:
        values = np.concatenate([np.abs(kernels[at]).ravel() for at in group])
        keep = np.concatenate([masks[at].ravel() for at in group])
        assert (~keep).sum() == round(sparsity * keep.size)
        # A layer's largest weight stays even where the ranking alone would drop it.
        largest = {np.abs(kernels[at]).max() for at in group}
        kept = np.array([value for value in values[keep] if value not in largest])
        if kept.size and (~keep).any():
            assert kept.min() >= values[~keep].max()
    assert all(mask.any() for mask in masks)


def test_masks_count_exactly_among_equal_magnitudes():
    (mask,) = choose_masks([np.ones(4)], 0.5)
    assert mask.tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    "compile_options", [{}, {"jit_compile": True}, {"steps_per_execution": 3}, {"run_eagerly": True}], ids=str
)
def test_follows_the_schedule_at_every_batch_end(compile_options):
    schedule = polynomial()
    seen = fit_pruned(tiny_mlp(), schedule, compile_options=compile_options)
    stride = compile_options.get("steps_per_execution", 1)
    expected = []
    current = 0.0
    for step in range(1, 13):
        should_prune, sparsity = schedule(tf.constant(step))
        current = float(sparsity) if should_prune else current
        # An execution ends after so many steps, and with the epoch of 4.
        if ((step - 1) % 4 + 1) % stride == 0 or step % 4 == 0:
            expected.append(round(current * 256) / 256)
    assert seen == expected and seen[-1] == 0.75


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(precision):
    keras.config.set_dtype_policy(precision)
    try:
        seen = fit_pruned(tiny_mlp(), polynomial())
    finally:
        keras.config.set_dtype_policy("float32")
    assert seen[-1] == 0.75


def test_custom_train_step():
    model = tiny_mlp()
    assert fit_pruned(model, polynomial(), trainer=OwnStep(model))[-1] == 0.75


def test_masks_hold_after_a_step_was_compiled_without_them():
    model = tiny_mlp()
    model.compile("adam", cross_entropy())
    x, y = blobs(shape=(8,))
    model.fit(x, y, batch_size=32, verbose=0)
    kernel = model.get_layer("second").kernel
    kernel.assign(kernel.numpy() * (np.arange(256).reshape(16, 16) % 2))
    ends = BatchEnds(kernel)
    model.fit(x, y, batch_size=32, verbose=0, callbacks=[HoldMasks(model), ends])
    assert set(shares_of_zeros(ends)) == {0.5}
    assert kernel.constraint is None


def test_resumes_from_a_saved_model(tmp_path):
    half = check_resumes_from_a_saved_model(
        lambda model: MagnitudePruning(model, polynomial(end_step=12), include=["second"]), tmp_path
    )
    assert 0 < np.mean(half == 0) < 0.75


def test_own_constraint_of_the_layer_still_holds():
    model = tiny_mlp()
    model.get_layer("second").kernel.constraint = keras.constraints.NonNeg()
    fit_pruned(model, polynomial())
    assert model.get_layer("second").kernel.numpy().min() == 0
    assert isinstance(model.get_layer("second").kernel.constraint, keras.constraints.NonNeg)


def test_two_replicas_prune_as_one():
    models = trained_on_one_and_two_replicas(
        lambda replica: [MagnitudePruning(replica, polynomial(), include=["first", "second"])]
    )
    for name in ("first", "second"):
        one, two = (model.get_layer(name).kernel.numpy() for model in models)
        assert np.mean(two == 0) == 0.75
        np.testing.assert_allclose(two, one, **CLOSE)


def test_first_last_and_depthwise_are_left_out_by_default():
    assert [kernel.layer.name for kernel in prunable_kernels(tiny_cnn())] == ["middle", "hidden"]
    assert [kernel.layer.name for kernel in prunable_kernels(tiny_cnn(), include=["*"], exclude=["c*"])] == [
        "stem",
        "middle",
        "depthwise",
        "hidden",
    ]


def test_nothing_to_prune():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="only")])
    with pytest.raises(ModelError, match="has no layer to prune: first, last and depthwise"):
        prunable_kernels(model)


def test_pattern_that_fits_nothing():
    with pytest.raises(
        InvalidArgumentError, match=r"`include` must be patterns of the layer names .* Received: 'conv\*'"
    ):
        prunable_kernels(tiny_mlp(), include=["conv*"])


@pytest.mark.parametrize(
    "schedule",
    [polynomial(end_step=100), polynomial(end_step=9), polynomial(frequency=100)],
    ids=["late", "odd", "rare"],
)
def test_schedule_that_cannot_reach_its_target_is_an_error_before_the_first_step(schedule):
    model = tiny_mlp()
    before = model.get_weights()
    with pytest.raises(TrainingError, match=r"cannot reach its sparsity of 0.75 in the planned 12 steps"):
        fit_pruned(model, schedule)
    for expected, actual in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_data_of_unknown_length():
    model = tiny_mlp()
    model.compile("adam", cross_entropy())
    x, y = blobs(shape=(8,))
    endless = tf.data.Dataset.from_tensor_slices((x, y)).batch(32).filter(lambda x, y: True)
    with pytest.raises(TrainingError, match="Pass `steps_per_epoch`"):
        model.fit(endless, verbose=0, callbacks=[MagnitudePruning(model, polynomial(), include=["second"])])


@pytest.mark.parametrize("first", [0, 1])
def test_two_masks_on_one_kernel_leave_none_behind(first):
    variable = tiny_mlp().get_layer("second").kernel
    masks = [KernelMask(variable), KernelMask(variable)]
    keep = np.arange(256).reshape(16, 16)
    masks[0].assign(keep % 2 == 0)
    masks[1].assign(keep % 3 == 0)
    np.testing.assert_array_equal(variable.constraint(tf.ones((16, 16))), (keep % 6 == 0).astype("float32"))
    masks[first].remove()
    other = 2 if first == 1 else 3
    np.testing.assert_array_equal(variable.constraint(tf.ones((16, 16))), (keep % other == 0).astype("float32"))
    masks[1 - first].remove()
    left = variable.constraint
    np.testing.assert_array_equal(tf.ones((16, 16)) if left is None else left(tf.ones((16, 16))), 1.0)


def test_no_mask_is_left_in_the_compiled_step():
    model = tiny_mlp()
    fit_pruned(model, polynomial())
    model.get_layer("second").kernel.assign(np.ones((16, 16)))
    model.fit(*blobs(shape=(8,)), verbose=0)
    assert zeros_fraction(model.get_layer("second")) == 0


def test_resumes_where_loss_scaling_left_steps_out():
    model = tiny_mlp()
    model.compile("adam", cross_entropy())
    pruning = MagnitudePruning(model, polynomial(end_step=12), include=["second"])
    # As if 7 of the first 8 steps had been applied.
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(7)
    model.fit(*blobs(shape=(8,)), initial_epoch=2, epochs=3, batch_size=32, verbose=0, callbacks=[pruning])
    assert zeros_fraction(model.get_layer("second")) == 0.75
