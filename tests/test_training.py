"""`fit`: resumes exactly, keeps the epoch it is told to, leaves its input alone, and stops on NaN."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import blob_dataset, tiny_cnn, tiny_mlp, whole_and_resumed

from tfcompress.errors import InvalidArgumentError, ModelError, TrainingError
from tfcompress.layers import FusedBatchNormalization
from tfcompress.techniques.prune import MagnitudePruning
from tfcompress.techniques.schedules import schedule_from_recipe
from tfcompress.train_settings import TrainSettings
from tfcompress.training import fit as fit_module
from tfcompress.training.checkpoint import BestEpoch
from tfcompress.training.copying import copy_model
from tfcompress.training.fit import SmoothedCrossentropy, check_batch_size, distribution_scope, fit
from tfcompress.training.optimizers import WarmUpThenFall


def dropout_mlp():
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, activation="relu", name="first"),
            keras.layers.Dropout(0.2, name="dropout"),
            keras.layers.Dense(16, activation="relu", name="second"),
            keras.layers.Dense(4, name="last"),
        ]
    )


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_a_killed_training_resumes_exactly(tmp_path, keep, precision):
    data, model = blob_dataset(shape=(8,)), dropout_mlp()
    settings = TrainSettings(epochs=6, keep=keep, precision=precision, warmup_steps=3)
    schedule = schedule_from_recipe({"polynomial_decay": {"final_sparsity": 0.5, "end": 0.6}}, 24)

    def run(checkpoint, *more):
        def callbacks(replica):
            return [MagnitudePruning(replica, schedule, include=["second"]), *more]

        return fit(model, data, settings, batch_size=32, seed=3, callbacks=callbacks, checkpoint=checkpoint, key="this")

    whole, resumed = whole_and_resumed(run, tmp_path / "state.npz", kill_after=3)
    assert resumed.history.keys() == whole.history.keys()
    for name, values in whole.history.items():
        np.testing.assert_allclose(resumed.history[name], values, rtol=1e-4, err_msg=name)
    for one, two in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)
    finished = run(tmp_path / "state.npz")
    np.testing.assert_array_equal(finished.model.get_weights()[0], resumed.model.get_weights()[0])


def test_a_step_is_traced_once():
    traced = []

    class Noted(keras.layers.Layer):
        def call(self, inputs, training=False):
            if training and tf.inside_function():
                traced.append(inputs.shape)
            return inputs

    model = keras.Sequential([keras.Input((8,)), Noted(), keras.layers.Dense(4)])
    result = fit(model, blob_dataset(shape=(8,)), TrainSettings(epochs=2), batch_size=32, seed=0)
    assert len(traced) == 1
    assert max(result.history["accuracy"]) <= 1 and len(result.history["val_accuracy"]) == 2


def test_normalizations_train_fused_and_come_out_plain(monkeypatch):
    data, model = blob_dataset(), tiny_cnn()
    kinds = []

    def train():
        def noted(replica):
            kinds.append({type(layer) for layer in replica.layers if "BatchNorm" in type(layer).__name__})
            return replica

        return fit(model, data, TrainSettings(epochs=2), batch_size=32, seed=0, wrap=noted).model

    fused = train()
    monkeypatch.setattr(fit_module, "copy_model", lambda model, *precision, fused=False: copy_model(model, *precision))
    plain = train()
    assert kinds == [{FusedBatchNormalization}, {keras.layers.BatchNormalization}]
    assert [type(layer) for layer in fused.layers] == [type(layer) for layer in model.layers]
    for one, other in zip(fused.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-3)


def test_checkpoint_of_another_training_is_refused(tmp_path):
    data, model = blob_dataset(shape=(8,)), tiny_mlp()
    options = {"batch_size": 32, "seed": 0, "checkpoint": tmp_path / "state.npz"}
    fit(model, data, TrainSettings(epochs=1), key="one", **options)
    with pytest.raises(TrainingError, match="is of another training. Delete it"):
        fit(model, data, TrainSettings(epochs=1), key="two", **options)


def test_same_seed_gives_the_same_weights_and_input_is_unchanged():
    data, model = blob_dataset(), tiny_cnn()
    before = [weight.copy() for weight in model.get_weights()]
    one, two, other = (
        fit(model, data, TrainSettings(epochs=2), batch_size=32, seed=seed).model.get_weights() for seed in (5, 5, 6)
    )
    for expected, actual in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)
    for first, second in zip(one, two, strict=True):
        np.testing.assert_allclose(second, first, rtol=1e-6)
    assert any(not np.allclose(first, third) for first, third in zip(one, other, strict=True))


def epoch_ends(best, accuracies):
    best.set_model(keras.Sequential())
    for epoch, accuracy in enumerate(accuracies):
        best.model.stop_training = False
        kept = [np.full(1, epoch, "float32")]
        best._kept.get_weights = lambda kept=kept: kept
        best.on_epoch_end(epoch, {"val_accuracy": accuracy})
        if best.model.stop_training:
            return epoch
    return None


class FakeModel:
    def set_weights(self, weights):
        self.restored = weights


def test_best_epoch_is_kept_and_patience_stops():
    model = FakeModel()
    best = BestEpoch(model, patience=2, keep_best=True)
    assert epoch_ends(best, [0.5, 0.7, 0.6, 0.7, 0.9]) == 3
    best.on_train_end()
    assert model.restored[0] == 1


def test_epochs_before_the_final_sparsity_are_no_candidates():
    class Sparse:
        settled = False

    model, sparse = FakeModel(), Sparse()
    best = BestEpoch(model, patience=None, keep_best=True)
    best.others = [sparse]
    epoch_ends(best, [0.99])
    sparse.settled = True
    epoch_ends(best, [0.7, 0.8])
    best.on_train_end()
    assert model.restored[0] == 1


def test_a_loss_of_nan_is_an_error():
    settings = TrainSettings(epochs=2, optimizer="sgd", learning_rate=1e30)
    with pytest.raises(TrainingError, match="loss became .* in epoch 1. Lower `learning_rate`"):
        fit(tiny_mlp(), blob_dataset(shape=(8,)), settings, batch_size=32, seed=0)


def test_model_that_cannot_be_copied():
    class Subclassed(keras.Model):
        def __init__(self, width):
            super().__init__()
            self.dense = keras.layers.Dense(width)

        def call(self, inputs):
            return self.dense(inputs)

    model = Subclassed(4)
    model(np.zeros((1, 8), "float32"))
    with pytest.raises(ModelError, match="cannot be copied, so it cannot be trained without changing it"):
        copy_model(model)


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_learning_rates_equal_numpy(shape):
    schedule = WarmUpThenFall(0.5, total_steps=100, shape=shape, warmup_steps=10)
    steps = np.array([0, 5, 9, 10, 50, 99])
    rise = np.minimum((steps + 1) / 10, 1)
    done = np.clip((steps - 10) / 90, 0, 1)
    fall = {"cosine": 0.5 + 0.5 * np.cos(np.pi * done), "linear": 1 - done, "constant": np.ones(6)}[shape]
    np.testing.assert_allclose([float(schedule(step)) for step in steps], 0.5 * rise * fall, rtol=1e-4, atol=1e-6)
    assert type(schedule).from_config(schedule.get_config()).shape == shape


@pytest.mark.parametrize("from_logits", [False, True])
def test_label_smoothing_equals_numpy(from_logits):
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(6, 4)).astype("float32")
    shifted = np.exp(outputs - outputs.max(-1, keepdims=True))
    probabilities = shifted / shifted.sum(-1, keepdims=True)
    labels = np.array([0, 1, 2, 3, 0, 1])
    targets = np.eye(4)[labels] * 0.9 + 0.1 / 4
    expected = -(targets * np.log(probabilities)).sum(-1).mean()
    loss = SmoothedCrossentropy(4, 0.1, from_logits)
    np.testing.assert_allclose(loss(labels, outputs if from_logits else probabilities), expected, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_weight_decay_spares_offsets_and_ranges(optimizer):
    from tfcompress.training.optimizers import make_optimizer

    made = make_optimizer(TrainSettings(epochs=1, optimizer=optimizer, weight_decay=0.1), 10)
    model = tiny_cnn()
    made.build(model.trainable_variables)
    decayed = {
        variable.path.split("/")[-1] for variable in model.trainable_variables if made._use_weight_decay(variable)
    }
    assert decayed == {"kernel"}


def test_steps_per_execution_must_divide_an_epoch():
    settings = TrainSettings(epochs=1, steps_per_execution=3)
    with pytest.raises(InvalidArgumentError, match=r"a divisor of the 4 steps of an epoch, one of \[1, 2, 4\]"):
        fit(tiny_mlp(), blob_dataset(shape=(8,)), settings, batch_size=32, seed=0)


def test_each_replica_has_samples_in_each_step():
    settings = TrainSettings(epochs=1, strategy="mirrored")
    with distribution_scope("mirrored"):
        strategy = tf.distribute.get_strategy()
    taken = set()
    for size in (2, 3, 4, 6, 8):
        batches = strategy.experimental_distribute_dataset(tf.data.Dataset.range(7).batch(size))
        counts = [[len(part) for part in strategy.experimental_local_results(batch)] for batch in batches]
        check_batch_size(TrainSettings(epochs=1), 7, size)
        if len(set(counts[0])) == 1 and all(0 not in batch for batch in counts):
            check_batch_size(settings, 7, size)
            taken.add(size)
            continue
        with pytest.raises(InvalidArgumentError, match=rf"`batch_size` must be a multiple of 2 .* Received: {size}\."):
            check_batch_size(settings, 7, size)
    assert taken == {4}
    with pytest.raises(InvalidArgumentError, match=r"near are \[30, 32\]. Received: 31"):
        fit(tiny_mlp(), blob_dataset(shape=(8,)), settings, batch_size=31, seed=0)


def test_several_steps_per_execution_train_as_single_ones():
    data, model = blob_dataset(shape=(8,)), tiny_mlp()
    one, four = (
        fit(model, data, TrainSettings(epochs=3, steps_per_execution=count), batch_size=32, seed=0).model.get_weights()
        for count in (1, 4)
    )
    for first, second in zip(one, four, strict=True):
        np.testing.assert_allclose(second, first, rtol=1e-4, atol=1e-6)


def test_copies_compute_in_one_precision_and_give_float32():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = tiny_cnn()
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.compute_dtype for layer in copy_model(half).layers[1:]} == {"float32"}
    inputs = keras.Input((8, 8, 1))
    nested = keras.Model(inputs, tiny_cnn(name="inner")(inputs))
    mixed = copy_model(nested, "mixed_float16")
    assert mixed.get_layer("inner").get_layer("hidden").compute_dtype == "float16"
    assert mixed(np.zeros((1, 8, 8, 1), "float32")).dtype == "float32"


def test_copies_of_models_with_arithmetic_on_tensors_and_slices():
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(4)(keras.ops.relu(inputs * 2.0 - 1.0)[:, 1:4])
    model = keras.Model(inputs, keras.ops.concatenate([hidden, hidden / 3.0]))
    x = np.random.default_rng(0).uniform(-1, 1, (5, 6)).astype("float32")
    copy = copy_model(model)
    np.testing.assert_array_equal(copy(x), model(x))
    copy.set_weights([weight + 1.0 for weight in copy.get_weights()])
    assert np.abs(copy(x) - model(x)).max() > 0.1
