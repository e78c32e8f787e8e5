"""Magnitude pruning: its masks against NumPy, its promise at every batch end, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CLOSE, blob_dataset, blobs, cross_entropy, tiny_cnn, tiny_mlp, zeros_fraction

from tfcompress.errors import InvalidArgumentError, ModelError, TrainingError
from tfcompress.techniques.masks import HoldMasks, KernelMask
from tfcompress.techniques.prune import MagnitudePruning, magnitude_masks, prunable_layers
from tfcompress.techniques.schedules import tfmot_schedules


def polynomial(end_step=8, final=0.75, frequency=2, begin=0):
    return tfmot_schedules().PolynomialDecay(0.0, final, begin, end_step, frequency=frequency)


class BatchEndSparsity(keras.callbacks.Callback):
    """Notes the share of zeros of a layer at each batch end."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.seen = layer, []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(zeros_fraction(self.layer))


def fit_pruned(model, schedule, *, trainer=None, epochs=3, compile_options=None, **options):
    trainer = trainer or model
    trainer.compile("adam", cross_entropy(), **(compile_options or {}))
    pruning = MagnitudePruning(model, schedule, include=["second"], **options)
    seen = BatchEndSparsity(model.get_layer("second"))
    x, y = blobs(shape=(8,))
    trainer.fit(x, y, batch_size=32, epochs=epochs, verbose=0, callbacks=[pruning, seen])
    return seen.seen


@pytest.mark.parametrize("ranking", ["layer", "global"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.99])
def test_masks_drop_the_smallest(ranking, sparsity):
    rng = np.random.default_rng(0)
    kernels = [rng.normal(size=(3, 3, 4, 8)), 0.1 * rng.normal(size=(40, 10))]
    masks = magnitude_masks(kernels, sparsity, ranking)
    groups = [[0], [1]] if ranking == "layer" else [[0, 1]]
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
    (mask,) = magnitude_masks([np.array([1.0, -1.0, 1.0, 1.0])], 0.5)
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
    class Doubled(keras.Model):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def call(self, inputs, training=False):
            return self.inner(inputs, training=training)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = 2 * self.compute_loss(x, y, self(x, training=True))
            variables = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            return {"loss": loss}

    model = tiny_mlp()
    assert fit_pruned(model, polynomial(), trainer=Doubled(model))[-1] == 0.75


def test_masks_hold_after_a_step_was_compiled_without_them():
    model = tiny_mlp()
    model.compile("adam", cross_entropy())
    x, y = blobs(shape=(8,))
    model.fit(x, y, batch_size=32, verbose=0)
    kernel = model.get_layer("second").kernel
    kernel.assign(kernel.numpy() * (np.arange(256).reshape(16, 16) % 2))
    seen = BatchEndSparsity(model.get_layer("second"))
    model.fit(x, y, batch_size=32, verbose=0, callbacks=[HoldMasks(model), seen])
    assert set(seen.seen) == {0.5}
    assert kernel.constraint is None


def test_resumes_from_a_saved_model(tmp_path):
    x, y = blobs(shape=(8,))

    def epochs(model, first, last):
        pruning = MagnitudePruning(model, polynomial(end_step=12), include=["second"])
        model.fit(x, y, batch_size=32, initial_epoch=first, epochs=last, shuffle=False, verbose=0, callbacks=[pruning])

    through = tiny_mlp()
    through.compile("adam", cross_entropy())
    start = [weight.copy() for weight in through.get_weights()]
    epochs(through, 0, 4)

    interrupted = tiny_mlp()
    interrupted.set_weights(start)
    interrupted.compile("adam", cross_entropy())
    # The plan ends where this fit ends, so the schedule is asked for no more than the first part here.
    pruning = MagnitudePruning(interrupted, polynomial(end_step=12), include=["second"])
    stop = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(interrupted, "stop_training", epoch == 1)
    )
    interrupted.fit(x, y, batch_size=32, epochs=4, shuffle=False, verbose=0, callbacks=[pruning, stop])
    interrupted.save(tmp_path / "half.keras")
    resumed = keras.saving.load_model(tmp_path / "half.keras")
    assert 0 < zeros_fraction(resumed.get_layer("second")) < 0.75
    epochs(resumed, 2, 4)
    for expected, actual in zip(through.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_own_constraint_of_the_layer_still_holds():
    model = tiny_mlp()
    model.get_layer("second").kernel.constraint = keras.constraints.NonNeg()
    fit_pruned(model, polynomial())
    assert model.get_layer("second").kernel.numpy().min() == 0
    assert isinstance(model.get_layer("second").kernel.constraint, keras.constraints.NonNeg)


def test_two_replicas_prune_as_one():
    from tfcompress.train_settings import TrainSettings
    from tfcompress.training.fit import fit

    # Without BatchNormalization, whose statistics are those of one replica.
    model, data = tiny_mlp(), blob_dataset(shape=(8,))
    results = {}
    for strategy in ("default", "mirrored"):
        settings = TrainSettings(epochs=2, strategy=strategy, optimizer="sgd", learning_rate=0.1)
        results[strategy] = fit(
            model,
            data,
            settings,
            batch_size=32,
            seed=0,
            callbacks=lambda replica: [MagnitudePruning(replica, polynomial(), include=["first", "second"])],
        ).model
    for name in ("first", "second"):
        one, two = (results[strategy].get_layer(name).kernel.numpy() for strategy in ("default", "mirrored"))
        assert np.mean(two == 0) == 0.75
        np.testing.assert_allclose(two, one, **CLOSE)


def test_first_last_and_depthwise_are_left_out_by_default():
    assert [layer.name for layer in prunable_layers(tiny_cnn())] == ["middle", "hidden"]
    assert [layer.name for layer in prunable_layers(tiny_cnn(), include=["*"], exclude=["c*"])] == [
        "stem",
        "middle",
        "depthwise",
        "hidden",
    ]


def test_nothing_to_prune():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="only")])
    with pytest.raises(ModelError, match="has no layer to prune: first, last and depthwise"):
        prunable_layers(model)


def test_pattern_that_fits_nothing():
    with pytest.raises(
        InvalidArgumentError, match=r"`include` must be patterns of the layer names .* Received: 'conv\*'"
    ):
        prunable_layers(tiny_mlp(), include=["conv*"])


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
