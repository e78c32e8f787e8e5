"""Sparsity of whole channels: penalties against NumPy, strengths that rise, what removal costs then, and resumption."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    CLOSE,
    OwnStep,
    blob_dataset,
    blobs,
    cross_entropy,
    tiny_cnn,
    tiny_mlp,
    trained_on_one_and_two_replicas,
    whole_and_resumed,
)
from keras import layers

from tfcompress.errors import InvalidArgumentError, ModelError, TrainingError
from tfcompress.techniques.channels import ChannelSparsity, prune_channels
from tfcompress.train_settings import TrainSettings
from tfcompress.training.fit import fit

NAMES = ("a/kernel", "a/bias", "norm/gamma", "norm/beta", "b/kernel", "b/bias", "c/kernel", "c/bias")
STRENGTH, RATE = 0.3, 0.5


def chain():
    """Two hidden layers, the first with BatchNormalization: channels of `a` are read by `b`, those of `b` by `c`."""
    model = keras.Sequential(
        [
            keras.Input((3,), name="x"),
            layers.Dense(6, name="a"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.Dense(5, activation="relu", name="b"),
            layers.Dense(2, name="c"),
        ]
    )
    rng = np.random.default_rng(0)
    for name in ("gamma", "beta"):
        variable = getattr(model.get_layer("norm"), name)
        variable.assign(rng.uniform(0.5, 2.0, size=6) * rng.choice([-1, 1], size=6))
    return model


def short_name(weight):
    return "/".join(weight.path.split("/")[-2:])


def weights_of(model):
    found = {short_name(weight): weight.numpy().astype("float64") for weight in model.trainable_variables}
    assert set(found) == set(NAMES)
    return found


def units(w):
    """Every weight of each channel, as the graph has them: lists of arrays."""
    a = [[w["a/kernel"][:, i], w["a/bias"][[i]], w["norm/gamma"][[i]], w["norm/beta"][[i]], w["b/kernel"][i]]
         for i in range(6)]  # fmt: skip
    b = [[w["b/kernel"][:, i], w["b/bias"][[i]], w["c/kernel"][i]] for i in range(5)]
    return a, b


def group_lasso(w):
    flat = [np.concatenate(unit) for side in units(w) for unit in side]
    return sum(np.sqrt(len(unit)) * np.sqrt((unit**2).sum()) for unit in flat)


def batch_norm_l1(w):
    return np.abs(w["norm/gamma"]).sum()


def lowest(w, count_a, count_b):
    """The channels of `a` and of `b` with the smallest kernels, by L1 norm."""
    of_a = np.abs(w["a/kernel"]).sum(0) + np.abs(w["b/kernel"]).sum(1)
    of_b = np.abs(w["b/kernel"]).sum(0) + np.abs(w["c/kernel"]).sum(1)
    return np.argsort(of_a)[:count_a], np.argsort(of_b)[:count_b]


def growing_l2(chosen):
    def penalty(w):
        picked = [side[i] for side, index in zip(units(w), chosen, strict=True) for i in index]
        return sum((part**2).sum() for unit in picked for part in unit) / 2

    return penalty


def numpy_gradients(penalty, w):
    """Central differences."""
    gradients = {name: np.zeros_like(value) for name, value in w.items()}
    for name, value in w.items():
        for at in np.ndindex(value.shape):
            sides = []
            for step in (1e-6, -1e-6):
                moved = value.copy()
                moved[at] += step
                sides.append(penalty({**w, name: moved}))
            gradients[name][at] = (sides[0] - sides[1]) / 2e-6
    return gradients


def one_step(how, callbacks):
    """Weights before and after a step, with the loss's own gradients."""
    keras.utils.set_random_seed(0)
    model = chain()
    x = np.random.default_rng(1).normal(size=(8, 3)).astype("float32")
    trainer = OwnStep(model) if how == "own_step" else model
    trainer.compile(keras.optimizers.SGD(RATE), "mse", jit_compile=how == "jit", run_eagerly=how == "eager")
    before = weights_of(model)
    trainer.fit(x, np.ones((8, 2)), verbose=0, callbacks=callbacks(model))
    assert "apply" not in trainer.optimizer.__dict__
    return before, weights_of(model)


@pytest.mark.parametrize(
    ("kind", "how"),
    [("group_lasso", how) for how in ("plain", "jit", "own_step", "eager")]
    + [("batch_norm_l1", "plain"), ("growing_l2", "plain")],
)
def test_the_penalty_adds_its_gradient(kind, how):
    before, without = one_step(how, lambda model: [])
    options = {"rise": 0}
    penalty = {"group_lasso": group_lasso, "batch_norm_l1": batch_norm_l1}.get(kind)
    if kind == "growing_l2":
        # 33 of 61 parameters stay when 2 channels of each layer go, which is what isomorphic ranking does in this net.
        options = {"rise": 1.0, "macs": 0.55}
        small = prune_channels(chain_with(before), macs=0.55, criterion="l1")
        gone = 6 - small.get_layer("a").units, 5 - small.get_layer("b").units
        assert min(gone) >= 1
        penalty = growing_l2(lowest(before, *gone))
    _, with_penalty = one_step(how, lambda model: [ChannelSparsity(model, kind, strength=STRENGTH, **options)])
    expected = numpy_gradients(penalty, before)
    assert any(np.abs(gradient).max() > 0.1 for gradient in expected.values())
    for name in NAMES:
        actual = (without[name] - with_penalty[name]) / (RATE * STRENGTH)
        np.testing.assert_allclose(actual, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)


def chain_with(weights):
    model = chain()
    for weight in model.trainable_variables:
        weight.assign(weights[short_name(weight)])
    return model


def no_loss(y, outputs):
    return 0.0 * tf.reduce_sum(outputs, -1)


@pytest.mark.parametrize("options", [{}, {"steps_per_execution": 2}, {"jit_compile": True}], ids=str)
def test_the_strength_rises_step_by_step(options):
    model = chain()
    before = weights_of(model)
    model.compile(keras.optimizers.SGD(RATE), no_loss, **options)
    # 8 steps, of which the first 4 have a quarter of the strength more each; `exclude` leaves those of `b` alone.
    sparsity = ChannelSparsity(model, "growing_l2", strength=STRENGTH, rise=0.5, params=0.8, exclude=["b"])
    model.fit(np.zeros((16, 3)), np.zeros((16, 2)), batch_size=4, epochs=2, verbose=0, callbacks=[sparsity])
    factor = np.prod([1 - RATE * STRENGTH * min(1, step / 4) for step in range(1, 9)])
    shares = weights_of(model)["a/kernel"] / before["a/kernel"]
    gone = 6 - prune_channels(chain_with(before), params=0.8, criterion="l1", exclude=["b"]).get_layer("a").units
    expected = np.ones(6)
    expected[lowest(before, gone, 0)[0]] = factor
    assert 0 < gone < 6
    np.testing.assert_allclose(shares, np.tile(expected, (3, 1)), rtol=1e-5)
    np.testing.assert_allclose(weights_of(model)["c/kernel"], before["c/kernel"], rtol=1e-6)


def test_the_strength_can_be_assigned_while_the_model_trains():
    model = chain()
    before = weights_of(model)
    model.compile(keras.optimizers.SGD(RATE), no_loss)
    sparsity = ChannelSparsity(model, "batch_norm_l1", strength=0.1, rise=0)
    later = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: setattr(sparsity, "strength", 0.02))
    model.fit(np.zeros((8, 3)), np.zeros((8, 2)), batch_size=4, epochs=1, verbose=0, callbacks=[sparsity])
    model.fit(np.zeros((8, 3)), np.zeros((8, 2)), batch_size=4, epochs=1, verbose=0, callbacks=[sparsity, later])
    moved = np.abs(before["norm/gamma"]) - np.abs(weights_of(model)["norm/gamma"])
    np.testing.assert_allclose(moved, 2 * RATE * 0.1 + 2 * RATE * 0.02, rtol=1e-4)
    assert sparsity.strength == pytest.approx(0.02)


@pytest.mark.parametrize("accumulated, updates", [(None, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]), (2, [0.375, 0.875, 1, 1])])
def test_epochs_count_as_the_best_one_once_the_strength_has_risen(accumulated, updates):
    """Also where the optimizer takes the mean gradient of several steps, and calls them one iteration."""
    model = chain()
    before = weights_of(model)
    model.compile(keras.optimizers.SGD(RATE, gradient_accumulation_steps=accumulated), no_loss)
    sparsity, settled = ChannelSparsity(model, "batch_norm_l1", strength=0.01, rise=0.5), []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: settled.append(sparsity.settled))
    model.fit(np.zeros((8, 3)), np.zeros((8, 2)), batch_size=4, epochs=4, verbose=0, callbacks=[sparsity, note])
    assert all(isinstance(one, bool) for one in settled) and settled == [False, True, True, True]
    moved = np.abs(before["norm/gamma"]) - np.abs(weights_of(model)["norm/gamma"])
    np.testing.assert_allclose(moved, RATE * 0.01 * sum(updates), rtol=1e-4)


def test_a_fit_without_it_has_no_penalty():
    model = chain()
    model.compile(keras.optimizers.SGD(RATE), no_loss)
    data = np.zeros((4, 3)), np.zeros((4, 2))
    model.fit(*data, verbose=0, callbacks=[ChannelSparsity(model, strength=0.1)])
    before = weights_of(model)
    model.fit(*data, verbose=0)
    np.testing.assert_array_equal(weights_of(model)["a/kernel"], before["a/kernel"])


def normalized():
    """Two hidden layers of 16, each with BatchNormalization."""
    model = keras.Sequential([keras.Input((8,), name="features")])
    for name in ("a", "b"):
        model.add(layers.Dense(16, use_bias=False, name=name))
        model.add(layers.BatchNormalization(momentum=0.7, name=f"{name}_norm"))
        model.add(layers.ReLU(name=f"{name}_relu"))
    model.add(layers.Dense(4, name="classes"))
    return model


def trained(build, rate, callbacks):
    keras.utils.set_random_seed(0)
    model = build()
    model.compile(keras.optimizers.Adam(rate), cross_entropy())
    x, y = blobs(128, shape=model.input_shape[1:])
    model.fit(x, y, batch_size=32, epochs=24, verbose=0, callbacks=callbacks(model))
    return model


def change_by_removal(model, x, criterion):
    """Largest difference that half of the multiply-adds make, relative to the largest output."""
    small = prune_channels(model, macs=0.5, criterion=criterion)
    whole, left = (one(x, training=False).numpy() for one in (model, small))
    return np.abs(whole - left).max() / np.abs(whole).max()


def third(numbers):
    """The third smallest of some numbers, relative to the largest."""
    return np.sort(numbers)[2] / numbers.max()


SIZES = {
    tiny_cnn: lambda model: np.linalg.norm(model.get_layer("hidden").kernel.numpy(), axis=0),
    normalized: lambda model: np.linalg.norm(model.get_layer("b").kernel.numpy(), axis=0),
    "batch_norm_l1": lambda model: np.abs(model.get_layer("b_norm").gamma.numpy()),
}


@pytest.mark.parametrize(
    ("kind", "build", "rate", "options"),
    [
        pytest.param("group_lasso", tiny_cnn, 1e-2, {"strength": 1e-2}, marks=pytest.mark.slow),
        pytest.param("growing_l2", normalized, 1e-2, {"strength": 1.0, "macs": 0.5}, marks=pytest.mark.slow),
        ("batch_norm_l1", normalized, 3e-2, {"strength": 0.03}),
    ],
)
def test_what_is_removed_afterwards_was_unimportant(kind, build, rate, options):
    plain = trained(build, rate, lambda model: [])
    sparse = trained(build, rate, lambda model: [ChannelSparsity(model, kind, **options)])
    x, y = blobs(64, shape=plain.input_shape[1:], seed=5)
    assert np.mean(sparse(x).numpy().argmax(1) == y) > 0.9
    smallest = [third(SIZES.get(kind, SIZES[build])(model)) for model in (plain, sparse)]
    assert smallest[0] > 0.3 and smallest[1] < 0.1 * smallest[0]
    criterion = "batch_norm_scale" if kind == "batch_norm_l1" else "l2"
    changes = [change_by_removal(model, x, criterion) for model in (plain, sparse)]
    print(kind, smallest, changes)
    assert changes[1] < 0.5 * changes[0]


def test_a_distiller_and_loss_scaling():
    from tfcompress.techniques.distill import Distiller, SoftTargets

    student, data = tiny_mlp(), blob_dataset(shape=(8,))
    before = np.abs(student.get_layer("second").kernel.numpy()).sum()
    teacher = tiny_mlp(name="teacher")
    settings = TrainSettings(epochs=2, precision="mixed_float16", learning_rate=1e-2, schedule="constant")

    def callbacks(replica):
        return [ChannelSparsity(replica, strength=1.0, rise=0)]

    options = {"batch_size": 32, "seed": 0, "callbacks": callbacks}
    result = fit(student, data, settings, wrap=lambda copy: Distiller(copy, teacher, [SoftTargets()]), **options)
    # A penalty so strong leaves Adam one direction: 8 steps of 0.01 towards zero.
    after = np.abs(result.model.get_layer("second").kernel.numpy()).sum()
    assert after < before - 0.8 * 256 * 8 * 1e-2


@pytest.mark.slow
def test_two_replicas_train_as_one():
    one, two = trained_on_one_and_two_replicas(lambda model: [ChannelSparsity(model, strength=1e-2)])
    for expected, actual in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_killed_training_resumes_exactly(tmp_path):
    data, model = blob_dataset(shape=(8,)), tiny_mlp()

    def run(checkpoint, *more):
        def callbacks(replica):
            return [ChannelSparsity(replica, "growing_l2", strength=1.0, macs=0.5, rise=1.0), *more]

        settings = TrainSettings(epochs=3)
        return fit(model, data, settings, batch_size=32, seed=3, callbacks=callbacks, checkpoint=checkpoint).model

    whole, resumed = whole_and_resumed(run, tmp_path / "state.npz", kill_after=1)
    for one, two in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(two, one, **CLOSE)


def test_embeddings_and_several_inputs():
    words, numbers = keras.Input((4,), dtype="int32", name="words"), keras.Input((3,), name="numbers")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(10, 6, name="table")(words))
    x = layers.Concatenate()([x, layers.Dense(5, name="side")(numbers)])
    model = keras.Model([words, numbers], layers.Dense(2, name="out")(x))
    before = {name: model.get_layer(name).weights[0].numpy() for name in ("table", "side")}
    sparsity = ChannelSparsity(model, "growing_l2", strength=STRENGTH, rise=1.0, params=0.6)
    model.compile(keras.optimizers.SGD(RATE), no_loss)
    data = [np.zeros((4, 4), "int32"), np.zeros((4, 3))]
    model.fit(data, np.zeros((4, 2)), verbose=0, callbacks=[sparsity])
    for name, value in before.items():
        shares = model.get_layer(name).weights[0].numpy() / value
        # Whole channels, words that did not occur too; some channels stay what they were.
        assert np.isclose(shares, [[1 - RATE * STRENGTH]]).all(0).sum() > 0 and np.isclose(shares, 1).all(0).sum() > 0
        assert (np.isclose(shares, 1 - RATE * STRENGTH) | np.isclose(shares, 1)).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "l1"}, "batch_norm_l1, group_lasso, growing_l2"),
        ({"strength": 0.0}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"rise": 1.5}, "rise"),
        ({"kind": "growing_l2", "rise": 0, "macs": 0.5}, "rise"),
        ({"kind": "growing_l2"}, "macs and params` must be one of both"),
        ({"kind": "growing_l2", "macs": 0.5, "params": 0.5}, "macs and params` must be one of both"),
        ({"kind": "growing_l2", "macs": 1.5}, "`macs` must be a share"),
        ({"macs": 0.5}, "left out but for growing_l2"),
        ({"exclude": ["thrid"]}, "exclude"),
    ],
    ids=str,
)
def test_wrong_arguments(options, match):
    with pytest.raises(InvalidArgumentError, match=match):
        ChannelSparsity(tiny_mlp(), **{"strength": 0.1, **options})


def test_a_model_without_batch_norm_has_no_factors():
    with pytest.raises(ModelError, match="no channel with BatchNormalization factors"):
        ChannelSparsity(tiny_mlp(), "batch_norm_l1", strength=0.1)
    with pytest.raises(ModelError, match="no channel with BatchNormalization factors"):
        ChannelSparsity(chain(), "batch_norm_l1", strength=0.1, exclude=["a"])
    with pytest.raises(ModelError, match="no channel with BatchNormalization factors"):
        ChannelSparsity(chain(), "batch_norm_l1", strength=0.1, exclude=["norm"])


def test_a_frozen_model_has_no_weights():
    model = tiny_mlp()
    model.trainable = False
    with pytest.raises(ModelError, match="trainable weights"):
        ChannelSparsity(model, strength=0.1)


def test_data_of_unknown_length():
    model = chain()
    model.compile("sgd", "mse")
    batches = tf.data.Dataset.from_generator(
        lambda: iter([(np.zeros((4, 3)), np.zeros((4, 2)))]),
        output_signature=(tf.TensorSpec((4, 3)), tf.TensorSpec((4, 2))),
    )
    with pytest.raises(TrainingError, match="steps_per_epoch"):
        model.fit(batches, verbose=0, callbacks=[ChannelSparsity(model, strength=0.1)])
    before = weights_of(model)
    model.fit(batches, verbose=0, callbacks=[ChannelSparsity(model, strength=0.1, rise=0)])
    assert (np.abs(weights_of(model)["b/kernel"]).sum() < np.abs(before["b/kernel"]).sum()).all()


class PastTheOptimizer(keras.Model):
    """Writes to its weights by itself."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, inputs):
        return self.inner(inputs)

    def train_step(self, data):
        self.inner.trainable_variables[0].assign_sub(0.0 * self.inner.trainable_variables[0])
        return {"loss": tf.constant(0.0)}


def test_a_train_step_past_the_optimizer_is_an_error():
    model = chain()
    trainer = PastTheOptimizer(model)
    trainer.compile("sgd", "mse")
    with pytest.raises(TrainingError, match="model.optimizer"):
        trainer.fit(np.zeros((4, 3)), np.zeros((4, 2)), verbose=0, callbacks=[ChannelSparsity(model, strength=0.1)])
