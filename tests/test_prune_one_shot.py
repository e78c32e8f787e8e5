"""`prune_weights`, the penalties, and gates that learn to close: against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CLOSE, OwnStep, blob_dataset, blobs, cross_entropy, tiny_mlp, whole_and_resumed

import tfcompress as tfc
from tfcompress.errors import DataError, InvalidArgumentError, ModelError, TrainingError
from tfcompress.train_settings import TrainSettings
from tfcompress.training.fit import fit


def kernel_of(model, name="second"):
    return keras.ops.convert_to_numpy(model.get_layer(name).kernel)


def test_threshold():
    model = tiny_mlp()
    before = kernel_of(model).copy()
    pruned = tfc.prune_weights(model, threshold=0.1, include=["second"])
    np.testing.assert_array_equal(kernel_of(pruned), np.where(np.abs(before) < 0.1, 0, before))
    np.testing.assert_array_equal(kernel_of(model), before)
    np.testing.assert_array_equal(kernel_of(pruned, "first"), kernel_of(model, "first"))


def test_sparsity_of_all_layers_together(tmp_path):
    model = tiny_mlp()
    pruned = tfc.prune_weights(model, 0.75, budget="global", include=["first", "second"])
    flat = np.concatenate([kernel_of(model, name).ravel() for name in ("first", "second")])
    limit = np.sort(np.abs(flat))[round(0.75 * flat.size)]
    for name in ("first", "second"):
        np.testing.assert_array_equal(kernel_of(pruned, name) != 0, np.abs(kernel_of(model, name)) >= limit)
    pruned.save(tmp_path / "model.keras")
    reloaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(kernel_of(reloaded), kernel_of(pruned))


def test_blocks_by_sum_and_by_norm():
    model = tiny_mlp()
    kernel = np.full((16, 16), 0.5)
    # A block of even weights has the larger sum, one of a single weight the larger norm.
    kernel[:4, 0], kernel[4:8, 0] = 0.1, [0.35, 0, 0, 0]
    model.get_layer("second").kernel.assign(kernel)
    for criterion, gone in (("l1", slice(4, 8)), ("l2", slice(0, 4))):
        pruned = tfc.prune_weights(model, 1 / 64, criterion=criterion, pattern="1x4", include=["second"])
        expected = kernel.astype("float32")
        expected[gone, 0] = 0
        np.testing.assert_array_equal(kernel_of(pruned), expected)


def test_two_of_four_has_its_own_sparsity():
    pruned = tfc.prune_weights(tiny_mlp(), pattern="2:4", include=["second"])
    assert ((kernel_of(pruned).T.reshape(-1, 4) == 0).sum(1) == 2).all()


def test_gradients_from_data():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, use_bias=False, name="second")])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 8)).astype("float32"), rng.normal(size=(16, 4)).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    loss = keras.losses.MeanSquaredError()
    pruned = tfc.prune_weights(model, 0.5, criterion="taylor", data=batches, loss=loss, include=["second"])
    weights = kernel_of(model)
    score = sum(
        np.abs(weights * (2 * x[rows].T @ (x[rows] @ weights - y[rows]) / 32)) for rows in (slice(8), slice(8, 16))
    )
    expected = np.ones(32, bool)
    expected[np.argsort(score.ravel())[:16]] = False
    np.testing.assert_array_equal(kernel_of(pruned).ravel() != 0, expected)

    # Arrays are batched by 32; a list is of batches.
    def by(data):
        return kernel_of(tfc.prune_weights(model, 0.5, criterion="taylor", data=data, loss=loss, include=["second"]))

    np.testing.assert_array_equal(by([(x[:8], y[:8]), (x[8:], y[8:])]), kernel_of(pruned))
    score = np.abs(weights * (x.T @ (x @ weights - y)))
    np.testing.assert_array_equal(by((x, y)) == 0, score <= np.sort(score.ravel())[15])
    np.testing.assert_array_equal(by(batches.map(lambda x, y: (x, y, 1.0))), kernel_of(pruned))
    with pytest.raises(InvalidArgumentError, match="a tfcompress Dataset, .* or arrays"):
        by(5)
    with pytest.raises(DataError, match="holds no batch"):
        tfc.prune_weights(model, 0.5, criterion="taylor", data=[], loss=loss, include=["second"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either `sparsity` or `threshold`"),
        ({"sparsity": 0.5, "threshold": 0.1}, "either `sparsity` or `threshold`"),
        ({"sparsity": 1.5}, r"`prune_weights.sparsity` must be a share in \(0, 1\)"),
        ({"threshold": 0.1, "criterion": "l2"}, "above 0, and by magnitude without a pattern"),
        ({"sparsity": 0.7, "pattern": "2:4"}, "must be 0.5 with 2:4"),
        ({"pattern": "2:4", "budget": "erk"}, "must be uniform or global where the pattern is N:M"),
        ({"pattern": "2:4", "budget": lambda shapes, sparsity: [sparsity]}, "must be uniform or global"),
        ({"sparsity": 0.5, "exclude": "h"}, "`exclude` must be a list of patterns of layer names. Received: 'h'"),
        ({"sparsity": 0.5, "criterion": lambda weights: weights - np.inf}, "finite scores of .* 'second'.*infinity"),
        ({"sparsity": 0.5, "criterion": "taylor"}, "given for a criterion of gradients"),
        ({"sparsity": 0.5, "criterion": "movement"}, "one that needs no training"),
    ],
    # A function's address would make another name in each process.
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        tfc.prune_weights(tiny_mlp(), include=["second"], **arguments)


def test_gradients_from_a_dataset():
    data, model = blob_dataset(shape=(8,)), tiny_mlp()
    one, other = (
        kernel_of(tfc.prune_weights(model, 0.5, criterion="taylor", data=given, loss=cross_entropy()))
        for given in (data, list(data.batches("train", 32)))
    )
    assert (one == 0).mean() == 0.5
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("arguments", [{"sparsity": 0.5}, {"threshold": 0.1}], ids=str)
def test_weights_that_are_no_numbers_are_refused(arguments):
    model = tiny_mlp()
    kernel = kernel_of(model).copy()
    kernel[1] = np.nan
    model.get_layer("second").kernel.assign(kernel)
    with pytest.raises(ModelError, match="Kernel 'second' holds weights that are NaN .* 16 such weights of 256"):
        tfc.prune_weights(model, include=["first", "second"], **arguments)


def test_a_kernel_that_the_loss_does_not_depend_on_is_named():
    inputs = keras.Input((8,))
    x = keras.layers.Dense(8, name="before")(inputs)
    x = keras.ops.stop_gradient(keras.layers.Dense(8, name="behind")(x))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    data = [(np.ones((4, 8), "float32"), np.zeros(4, int))]
    with pytest.raises(ModelError, match="Kernel 'before' has no gradient"):
        tfc.prune_weights(model, 0.5, criterion="taylor", data=data, loss=cross_entropy(), include=["be*"])


def train(model, callbacks, epochs=1, **options):
    model.compile(keras.optimizers.SGD(0.1), cross_entropy(), **options)
    x, y = blobs(shape=(8,))
    model.fit(x, y, batch_size=32, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
    return model


@pytest.mark.parametrize("own", [None, keras.regularizers.L2(0.01)], ids=["none", "own"])
def test_penalty_is_in_the_gradient_of_each_step(own):
    start = tiny_mlp()
    start.get_layer("second").kernel.regularizer = own
    plain, pulled = (keras.models.clone_model(start) for _ in range(2))
    x, y = blobs(32, shape=(8,))
    for model in (plain, pulled):
        model.set_weights(start.get_weights())
        model.get_layer("second").kernel.regularizer = own
        model.compile(keras.optimizers.SGD(0.1), cross_entropy())
    penalty = tfc.SparsityPenalty(pulled, l1=0.02, l2=0.03, include=["second"])
    plain.fit(x, y, batch_size=32, verbose=0)
    pulled.fit(x, y, batch_size=32, verbose=0, callbacks=[penalty])
    before = kernel_of(start)
    expected = kernel_of(plain) - 0.1 * (0.02 * np.sign(before) + 2 * 0.03 * before)
    np.testing.assert_allclose(kernel_of(pulled), expected, **CLOSE)
    assert pulled.get_layer("second").kernel.regularizer is own
    # And no longer in a training after it.
    weights = pulled.get_weights()
    pulled.fit(x, y, batch_size=32, verbose=0)
    plain.set_weights(weights)
    plain.fit(x, y, batch_size=32, verbose=0)
    np.testing.assert_allclose(kernel_of(pulled), kernel_of(plain), **CLOSE)


def test_penalty_that_a_train_step_leaves_out():
    class Bare(OwnStep):
        def loss_of(self, x, y):
            return tf.reduce_mean(cross_entropy()(y, self(x, training=True)))

    inner = tiny_mlp()
    with pytest.raises(TrainingError, match="uses neither `self.compute_loss` nor `self.losses`"):
        train(Bare(inner), [tfc.SparsityPenalty(inner, l1=0.1, include=["second"])])
    with pytest.raises(InvalidArgumentError, match="one of them above 0"):
        tfc.SparsityPenalty(inner, include=["second"])


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gates_close_as_the_penalty_grows(jit_compile):
    zeros = []
    for strength in (1e-6, 1e-2):
        keras.utils.set_random_seed(1)
        model = tiny_mlp()
        gates = tfc.HardConcretePruning(model, strength, learning_rate=0.1, include=["second"])
        shown = []
        note = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs, shown=shown, model=model: shown.append(kernel_of(model).copy())
        )
        train(model, [gates, note], epochs=15, jit_compile=jit_compile)
        zeros.append(float(np.mean(kernel_of(model) == 0)))
        # What an epoch ends with is what inference uses, and the last is the result.
        np.testing.assert_array_equal(shown[-1], kernel_of(model))
        assert "apply" not in model.optimizer.__dict__
    assert zeros[0] < 0.1 and 0.5 < zeros[1] <= 1


def test_gates_learn_by_the_gradient_of_the_paper():
    """One step against NumPy: the weights times gates, the gradient of both, and the penalty."""
    from tfcompress.techniques.prune.hard_concrete import _GatedKernel

    model = tiny_mlp()
    rng = np.random.default_rng(0)
    gated = _GatedKernel(model.get_layer("second").kernel, 0.7, seed=0)
    drawn, log_alpha = rng.uniform(0.01, 0.99, (16, 16)), rng.normal(size=(16, 16))
    gated._drawn.assign(drawn)
    gated.log_alpha.assign(log_alpha)
    gradient = rng.normal(size=(16, 16))
    of_weights, of_gate = gated.gradients(tf.constant(gradient, tf.float32), 0.1)
    gate = np.clip(1.2 * drawn - 0.1, 0, 1)
    np.testing.assert_allclose(of_weights, gradient * gate, **CLOSE)

    def loss(log_alpha):
        # The noise that gave `drawn` is held.
        noise = 2 / 3 * np.log(drawn / (1 - drawn)) - gated.log_alpha.numpy()
        gates = np.clip(1.2 / (1 + np.exp(-(noise + log_alpha) * 1.5)) - 0.1, 0, 1)
        is_open = 1 / (1 + np.exp(-(log_alpha - 2 / 3 * np.log(0.1 / 1.1))))
        return gradient * kernel_of(model) * gates + 0.1 * is_open

    numeric = (loss(log_alpha + 1e-4) - loss(log_alpha - 1e-4)) / 2e-4
    # Not at the kinks, where a difference sees both sides.
    smooth = np.abs(1.2 * drawn - 0.6) % 0.5 > 1e-3
    np.testing.assert_allclose(of_gate.numpy()[smooth], numeric[smooth], rtol=2e-3, atol=1e-5)


def test_gates_resume_exactly(tmp_path):
    data, model = blob_dataset(shape=(8,)), tiny_mlp()

    def run(checkpoint, *more):
        def callbacks(replica):
            return [tfc.HardConcretePruning(replica, 1e-3, learning_rate=0.05, include=["second"]), *more]

        settings = TrainSettings(epochs=4, learning_rate=0.01)
        return fit(model, data, settings, batch_size=32, seed=3, callbacks=callbacks, checkpoint=checkpoint).model

    whole, resumed = whole_and_resumed(run, tmp_path / "state.npz", kill_after=2)
    for one, two in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


def test_gates_go_on_in_a_second_fit_and_open_for_new_weights():
    model = tiny_mlp()
    gates = tfc.HardConcretePruning(model, 1e-2, learning_rate=0.1, include=["first", "second"])
    train(model, [gates], epochs=12)
    zeros = kernel_of(model, "first") == 0
    assert zeros.mean() > 0.2
    new = np.random.default_rng(0).normal(5, 1, size=(16, 16))
    model.get_layer("second").kernel.assign(new)
    train(model, [gates])
    assert kernel_of(model).mean() == pytest.approx(5, abs=0.5)
    assert (kernel_of(model, "first") == 0)[zeros].mean() > 0.9


def test_an_epoch_that_early_stopping_restores_stays_as_it_was():
    model = tiny_mlp()
    gates = tfc.HardConcretePruning(model, 1e-2, learning_rate=0.1, include=["second"])
    stopping = keras.callbacks.EarlyStopping("loss", mode="max", patience=100, restore_best_weights=True)
    train(model, [stopping, gates], epochs=4)
    assert stopping.best_epoch == 0
    for best, weight in zip(stopping.best_weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, best)


def test_gates_under_an_average_of_weights_end_with_their_zeros():
    model = tiny_mlp()
    model.compile(keras.optimizers.Adam(0.01, use_ema=True), cross_entropy())
    gates = tfc.HardConcretePruning(model, 1e-2, learning_rate=0.3, include=["second"])
    shown = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: shown.append(kernel_of(model).copy()))
    model.fit(*blobs(shape=(8,)), epochs=8, verbose=0, callbacks=[gates, note])
    assert (shown[-1] == 0).any()
    np.testing.assert_array_equal(kernel_of(model), shown[-1])


def test_gates_out_of_range():
    for options, name in (({"strength": 0.0}, "strength"), ({"strength": 1.0, "initial_keep": 1.0}, "initial_keep")):
        with pytest.raises(InvalidArgumentError, match=f"`HardConcretePruning.{name}` must be"):
            tfc.HardConcretePruning(tiny_mlp(), include=["second"], **options)
