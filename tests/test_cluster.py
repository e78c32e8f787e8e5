"""Weight sharing: its values against brute force, its steps against NumPy, its promise at every batch end and in the
integer file, and what it refuses."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    CLOSE,
    OwnStep,
    blobs,
    check_resumes_from_a_saved_model,
    cross_entropy,
    integer_kernels,
    tiny_cnn,
    tiny_mlp,
    trained_on_one_and_two_replicas,
)
from keras import layers as kl

import tfcompress as tfc
from tfcompress.errors import InvalidArgumentError, ModelError, TrainingError
from tfcompress.graph.normalized_sums import make_factors_positive, normalized_sums
from tfcompress.techniques.cluster.centroids import INITS, cluster_kernel, k_means
from tfcompress.techniques.cluster.reassignment import Clusters, ReassignedValues
from tfcompress.techniques.cluster.selection import clusterable_kernels
from tfcompress.techniques.shared_values import SharedValues, holds_few_values, shares_values


def count(array):
    return len(np.unique(keras.ops.convert_to_numpy(array)))


def with_zeros(layer, share=0.5):
    kernel = keras.ops.convert_to_numpy(layer.kernel).copy()
    kernel.reshape(-1)[: round(share * kernel.size)] = 0
    layer.kernel.assign(kernel)
    return kernel == 0


class BatchEnds(keras.callbacks.Callback):
    """Notes at each batch end how many values each kernel holds, and whether `zeros` of the first are zero."""

    def __init__(self, layers, zeros=None):
        super().__init__()
        self.layers, self.zeros, self.seen, self.values = layers, zeros, [], []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(max(count(layer.kernel) for layer in self.layers))
        first = keras.ops.convert_to_numpy(self.layers[0].kernel)
        self.values.append(first.copy())
        assert self.zeros is None or not first[self.zeros].any()


def fit_clustered(model, *, trainer=None, epochs=2, clusters=6, zeros=None, compile_options=None, **options):
    trainer = trainer or model
    trainer.compile("adam", cross_entropy(), **(compile_options or {}))
    clustering = tfc.WeightClustering(model, clusters, **options)
    watched = [layer for layer in model.layers if getattr(layer, "kernel", None) is not None]
    ends = BatchEnds(sorted(watched, key=lambda layer: layer.name != "second"), zeros)
    x, y = blobs(shape=(8,))
    trainer.fit(x, y, batch_size=32, epochs=epochs, verbose=0, callbacks=[clustering, ends])
    return ends


# ---- the values


def squared_error(values, groups):
    return sum(np.square(group - np.mean(group)).sum() for group in np.split(values, groups) if len(group))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("clusters", [1, 2, 3, 4])
def test_k_means_finds_the_best_groups_of_a_few_values(seed, clusters):
    values = np.sort(np.random.default_rng(seed).normal(size=10) ** 3)
    cuts = itertools.combinations(range(1, len(values)), clusters - 1)
    best = min(squared_error(values, list(cut)) for cut in cuts)
    centroids = k_means(np.random.default_rng(0).permutation(values), clusters)
    reached = np.square(values[:, None] - centroids[None]).min(1).sum()
    assert reached == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("init", INITS)
def test_k_means_ends_where_each_centroid_is_the_mean_of_its_values(init):
    values = np.random.default_rng(1).standard_t(3, size=5000)
    centroids = k_means(values, 16, init)
    nearest = np.abs(values[:, None] - centroids[None]).argmin(1)
    for at, centroid in enumerate(centroids):
        if (nearest == at).any():
            assert centroid == pytest.approx(values[nearest == at].mean(), abs=1e-12)


def test_starts_are_what_they_say():
    ordered = np.sort(np.random.default_rng(2).normal(size=1000))
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(np.diff(INITS["linear"](ordered, 5, rng)), np.ptp(ordered) / 4)
    counts = np.histogram(ordered, [-np.inf, *INITS["density"](ordered, 5, rng), np.inf])[0]
    np.testing.assert_allclose(counts, [100, 200, 200, 200, 200, 100], atol=1)
    assert set(INITS["k-means++"](ordered, 5, rng)) <= set(ordered)


@pytest.mark.parametrize(
    "init",
    [*INITS, lambda ordered, clusters, rng: ordered[:clusters]],
    ids=lambda init: init if isinstance(init, str) else "own",
)
def test_a_kernel_holds_as_many_values_as_asked_for_and_its_zeros(init):
    kernel = np.random.default_rng(3).normal(size=(3, 3, 4, 8)).astype("float32")
    kernel[np.random.default_rng(4).uniform(size=kernel.shape) < 0.3] = 0
    shared = cluster_kernel(kernel, 8, init)
    assert shared.dtype == kernel.dtype and 1 < count(shared) <= 8
    np.testing.assert_array_equal(shared == 0, kernel == 0)
    # Equal weights stay equal, larger ones stay at least as large.
    order = np.argsort(kernel[kernel != 0])
    assert (np.diff(shared[kernel != 0][order]) >= 0).all()
    np.testing.assert_array_equal(cluster_kernel(shared, 8), shared)


def test_a_large_kernel_is_quick_and_its_values_are_exact():
    kernel = np.random.default_rng(5).normal(size=2_000_000).astype("float32")
    shared = cluster_kernel(kernel, 16)
    for value in np.unique(shared):
        assert value == pytest.approx(kernel[shared == value].mean(dtype="float64"), abs=1e-4)


# ---- the steps


def gradient_descent(kernel, few, momentum, follow, callback):
    """The kernel that three steps in NumPy lead to, and that of three steps of `fit` under a callback.

    `few` is what stands for `kernel` in the first step; `follow` gives the next from it and the optimizer's step.
    """
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 8, 6)), rng.normal(size=(3, 8, 5))
    expected, velocity = few.astype("float64"), np.zeros(few.shape)
    for inputs, targets in zip(x, y, strict=True):
        gradient = inputs.T @ (2 * (inputs @ expected - targets)) / targets.size
        velocity = momentum * velocity - 0.5 * gradient
        expected = follow(expected, velocity)
    model = keras.Sequential([keras.Input((6,)), kl.Dense(5, use_bias=False, name="y")])
    model.set_weights([kernel])
    model.compile(keras.optimizers.SGD(0.5, momentum=momentum), "mse")
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(x.reshape(-1, 6), y.reshape(-1, 5), callbacks=[callback(model)], **options)
    return expected, model.get_weights()[0]


def with_one_zero():
    kernel = np.random.default_rng(1).normal(size=(6, 5)).astype("float32")
    kernel[0, 0] = 0
    return kernel


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_held_values_move_by_the_mean_of_their_gradients(momentum):
    def follow(kernel, step):
        moved = kernel + step
        for value in np.unique(kernel):
            members = kernel == value
            moved[members] = 0 if value == 0 else moved[members].mean()
        return moved

    few = cluster_kernel(with_one_zero(), 5)
    expected, actual = gradient_descent(few, few, momentum, follow, tfc.HoldClusters)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weights_follow_the_optimizer_and_take_the_nearest_value(momentum):
    kernel = with_one_zero()
    own, few = kernel.astype("float64"), cluster_kernel(kernel, 5)
    values = np.unique(few[few != 0]).astype("float64")
    first = np.abs(own[..., None] - values).argmin(-1)
    seen = []

    def follow(_, step):
        nonlocal own, values
        own = own + step
        nearest = np.abs(own[..., None] - values).argmin(-1)
        values = np.array([own[(nearest == at) & (kernel != 0)].mean() for at in range(4)])
        seen.append(nearest)
        return np.where(kernel == 0, 0, values[nearest])

    expected, actual = gradient_descent(kernel, few, momentum, follow, lambda model: tfc.WeightClustering(model, 5))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)
    assert any((nearest != first).any() for nearest in seen)


def test_values_of_a_large_kernel_do_not_drift():
    variable = keras.Variable(np.where(np.arange(3_000_000) % 2, 0.1, -0.3).astype("float32"))
    shared = SharedValues(variable)
    value = tf.convert_to_tensor(variable)
    for _ in range(3):
        value = shared(value)
    np.testing.assert_array_equal(value, variable.numpy())


# ---- training


@pytest.mark.parametrize(
    "compile_options", [{}, {"jit_compile": True}, {"steps_per_execution": 2}, {"run_eagerly": True}], ids=str
)
def test_few_values_and_all_zeros_at_every_batch_end(compile_options):
    model = tiny_mlp()
    zeros = with_zeros(model.get_layer("second"))
    ends = fit_clustered(model, compile_options=compile_options, zeros=zeros)
    assert len(ends.seen) == 8 // compile_options.get("steps_per_execution", 1) and set(ends.seen) == {6}
    # The values are trained, and so is which of them a weight has.
    first, last = ends.values[0], ends.values[-1]
    assert not np.intersect1d(first[first != 0], last).size
    assert len(np.unique(np.stack([first, last], -1).reshape(-1, 2), axis=0)) > 6
    assert all(layer.kernel.constraint is None for layer in model.layers)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        ends = fit_clustered(tiny_mlp())
    finally:
        keras.config.set_dtype_policy("float32")
    assert set(ends.seen) == {6}


def test_custom_train_step():
    model = tiny_mlp()
    assert set(fit_clustered(model, trainer=OwnStep(model)).seen) == {6}


def test_two_replicas_cluster_as_one():
    models = trained_on_one_and_two_replicas(lambda replica: [tfc.WeightClustering(replica, 6)])
    for name in ("first", "second"):
        one, two = (model.get_layer(name).kernel.numpy() for model in models)
        assert count(two) == 6
        np.testing.assert_allclose(two, one, **CLOSE)


def test_own_constraint_of_the_layer_still_holds():
    model = tiny_mlp()
    model.get_layer("second").kernel.constraint = keras.constraints.NonNeg()
    fit_clustered(model)
    assert model.get_layer("second").kernel.numpy().min() >= 0
    assert isinstance(model.get_layer("second").kernel.constraint, keras.constraints.NonNeg)


def test_no_value_leaves_the_constraint_of_the_layer_and_no_sign_is_turned_against_it():
    inputs = keras.Input((8,))
    x = kl.Dense(16, kernel_constraint="non_neg", name="hidden")(inputs)
    model = keras.Model(inputs, kl.Dense(4, name="classes")(kl.BatchNormalization(momentum=1.0, name="norm")(x)))
    rng = np.random.default_rng(0)
    model.get_layer("hidden").kernel.assign(np.abs(rng.normal(size=(8, 16))))
    model.get_layer("norm").gamma.assign(np.where(np.arange(16) % 2, 1.0, -1.0))
    x, y = blobs(shape=(8,))
    before = model(x).numpy()
    clustered = tfc.cluster(model, 64, include=["hidden"])
    assert clustered.get_layer("hidden").kernel.numpy().min() > 0
    np.testing.assert_allclose(clustered(x).numpy(), before, rtol=0.1, atol=0.05)
    model.compile(keras.optimizers.SGD(0.5), cross_entropy())
    ends = BatchEnds([model.get_layer("hidden")])
    model.fit(x, y, batch_size=32, verbose=0, callbacks=[tfc.WeightClustering(model, 32, include=["hidden"]), ends])
    assert max(ends.seen) <= 32 and min(kernel.min() for kernel in ends.values) >= 0


def test_the_constraint_of_the_layer_holds_for_each_weight():
    variable = keras.Variable([0.125, 0.375, 4.0])
    variable.constraint = keras.constraints.NonNeg()
    clusters = Clusters(3, 2, tf.distribute.get_strategy())
    clusters.choose(variable.numpy(), np.array([0.25, 0.25, 4.0]))
    reassigned = ReassignedValues(variable, clusters)
    # The step of -0.25, which is all that the kernel's constraint leaves, takes the first weight to -0.125, held at 0.
    np.testing.assert_array_equal(reassigned(tf.constant([-9.0, -9.0, 4.0])), [0.0625, 0.0625, 4.0])


def test_a_constraint_that_means_do_not_keep_is_refused():
    model = tiny_mlp()
    model.get_layer("second").kernel.constraint = keras.constraints.MaxNorm(1.0)
    with pytest.raises(ModelError, match="Kernel 'second' has a constraint, MaxNorm, that values shared"):
        tfc.WeightClustering(model, 6)
    tfc.WeightClustering(model, 6, exclude=["second"])


def test_a_model_of_bounded_norms_is_neither_clustered_nor_held():
    model = keras.Sequential([keras.Input((8,)), kl.Dense(32, kernel_constraint="max_norm", name="bounded")])
    why = "Kernel 'bounded' has a constraint, MaxNorm, that values shared"
    with pytest.raises(ModelError, match=why):
        tfc.cluster(model, 6)
    kernel = model.get_layer("bounded").kernel
    model.compile("sgd", "mse")
    x, y = np.ones((4, 8)), np.ones((4, 32))
    with_zeros(model.get_layer("bounded"))
    # Its zeros alone are shared.
    model.fit(x, y, verbose=0, callbacks=[tfc.HoldClusters(model)])
    kernel.assign(cluster_kernel(kernel.numpy(), 6))
    with pytest.raises(ModelError, match=why):
        model.fit(x, y, verbose=0, callbacks=[tfc.HoldClusters(model)])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(wrong):
    model = tiny_mlp()
    clustering = tfc.WeightClustering(model, 6)
    kernel = model.get_layer("second").kernel.numpy()
    kernel[3, 4] = wrong
    model.get_layer("second").kernel.assign(kernel)
    model.compile("sgd", cross_entropy())
    for make in (lambda: tfc.cluster(model, 6), lambda: model.fit(*blobs(shape=(8,)), verbose=0, callbacks=clustering)):
        with pytest.raises(ModelError, match="Kernel 'second' holds weights that are NaN or infinite.* 1 such .* 256"):
            make()


def test_steps_whose_gradients_are_accumulated_leave_the_kernel_as_it_is():
    model = tiny_mlp()
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=4), cross_entropy())
    ends = BatchEnds([model.get_layer("second")])
    clustering = tfc.WeightClustering(model, 6)
    x, y = blobs(shape=(8,))
    model.fit(x, y, batch_size=16, verbose=0, callbacks=[clustering, ends])
    moved = [not np.array_equal(before, after) for before, after in itertools.pairwise(ends.values)]
    assert moved == [step % 4 == 3 for step in range(1, len(x) // 16)] and any(moved)


def test_an_epoch_that_early_stopping_restores_stays_as_it_was():
    model = tiny_mlp()
    zeros = with_zeros(model.get_layer("second"))
    model.compile(keras.optimizers.Adam(0.05), cross_entropy())
    # The first epoch is the best one.
    stopping = keras.callbacks.EarlyStopping("loss", mode="max", patience=100, restore_best_weights=True)
    x, y = blobs(shape=(8,))
    model.fit(x, y, epochs=4, verbose=0, callbacks=[stopping, tfc.WeightClustering(model, 6)])
    for best, weight in zip(stopping.best_weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, best)
    kernel = model.get_layer("second").kernel.numpy()
    assert stopping.best_epoch == 0 and count(kernel) == 6 and not kernel[zeros].any()


def test_an_average_of_weights_at_the_end_is_clustered():
    model = tiny_mlp()
    model.compile(keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9), cross_entropy())
    x, y = blobs(shape=(8,))
    model.fit(x, y, verbose=0, callbacks=[tfc.WeightClustering(model, 6)])
    assert count(model.get_layer("second").kernel) == 6


def test_constraints_that_go_leave_no_trace_in_either_order():
    for order in (1, -1):
        model = tiny_mlp()
        kernel = model.get_layer("second").kernel
        zeros = with_zeros(model.get_layer("second"))
        own = kernel.constraint = keras.constraints.NonNeg()
        kernel.assign(cluster_kernel(kernel.numpy(), 6))
        model.compile("sgd", cross_entropy())
        for _ in range(2):
            callbacks = [tfc.HoldMasks(model), tfc.HoldClusters(model)][::order]
            model.fit(*blobs(shape=(8,)), verbose=0, callbacks=callbacks)
            assert kernel.constraint is own
            assert count(kernel) <= 6 and not kernel.numpy()[zeros].any()


def test_resumes_from_a_saved_model(tmp_path):
    half = check_resumes_from_a_saved_model(lambda model: tfc.WeightClustering(model, 6), tmp_path)
    assert count(half) == 6


def test_later_training_holds_what_a_clustered_model_has():
    model = tfc.cluster(tiny_mlp(), 5)
    model.compile("adam", cross_entropy())
    x, y = blobs(shape=(8,))
    before = model.get_layer("second").kernel.numpy()
    model.fit(x, y, batch_size=32, verbose=0, callbacks=[tfc.HoldClusters(model)])
    after = model.get_layer("second").kernel.numpy()
    assert count(after) == 5 and not np.array_equal(before, after)
    # And then no more.
    model.fit(x, y, batch_size=32, verbose=0)
    assert count(model.get_layer("second").kernel) > 100


@pytest.mark.parametrize("callback", [lambda model: tfc.WeightClustering(model, 6), tfc.HoldClusters])
@pytest.mark.parametrize("order", [1, -1])
def test_a_kernel_is_not_pruned_and_held_at_few_values_at_once(callback, order):
    model = tfc.cluster(tiny_mlp(), 6)
    model.compile("sgd", cross_entropy())
    callbacks = [callback(model), tfc.WeightPruning(model, lambda step: (True, 0.5), include=["second"])][::order]
    with pytest.raises(TrainingError, match="cannot be pruned and held at few values in one training.*kernel"):
        model.fit(*blobs(shape=(8,)), verbose=0, callbacks=callbacks)
    # What that training left behind is no one's in the next.
    model.fit(*blobs(shape=(8,)), verbose=0, callbacks=callbacks[1:])
    assert model.get_layer("second").kernel.constraint is None


# ---- the file


def conv_and_norm():
    """Convolutions with and without BatchNormalization of factors of both signs, and a dense layer with one."""
    rng = np.random.default_rng(0)
    inputs = keras.Input((8, 8, 3))
    x = kl.Conv2D(8, 3, use_bias=False, name="conv")(inputs)
    x = kl.ReLU()(kl.BatchNormalization(name="conv_bn", momentum=0.7)(x))
    x = kl.Conv2D(8, 3, strides=2, activation="relu", name="plain")(x)
    x = kl.Dense(12, use_bias=False, name="hidden")(kl.Flatten()(x))
    x = kl.ReLU()(kl.BatchNormalization(name="hidden_bn", momentum=0.7)(x))
    model = keras.Model(inputs, kl.Dense(4, name="classes")(x))
    for name in ("conv_bn", "hidden_bn"):
        norm = model.get_layer(name)
        size = norm.gamma.shape[0]
        norm.gamma.assign(rng.uniform(0.5, 1.5, size) * np.where(np.arange(size) % 3, 1, -1))
        norm.moving_mean.assign(rng.normal(size=size))
        norm.moving_variance.assign(rng.uniform(0.2, 2, size))
    return model


def test_signs_of_factors_go_into_the_kernel_without_changing_anything():
    model = conv_and_norm()
    x, _ = blobs(16, shape=(8, 8, 3))
    before, kernel = model(x).numpy(), model.get_layer("conv").kernel.numpy()
    pairs = normalized_sums(model)
    assert [(layer.name, norm.name) for layer, norm in pairs] == [("conv", "conv_bn"), ("hidden", "hidden_bn")]
    assert [make_factors_positive(*pair) for pair in pairs] == [True, True]
    np.testing.assert_allclose(model(x).numpy(), before, **CLOSE)
    np.testing.assert_array_equal(model.get_layer("conv").kernel, kernel * np.where(np.arange(8) % 3, 1, -1))
    assert all(norm.gamma.numpy().min() > 0 for _, norm in pairs)
    assert not any(make_factors_positive(*pair) for pair in pairs)


# Without training it is among the pairs of tests/conformance too.
@pytest.mark.parametrize("how", ["trained", pytest.param("after_training", marks=pytest.mark.slow)])
def test_the_integer_file_holds_as_few_values(how, tmp_path):
    model = conv_and_norm()
    zeros = with_zeros(model.get_layer("plain"))
    clustered = tfc.cluster(model, 7)
    x, y = blobs(64, shape=(8, 8, 3))
    if how == "trained":
        aware = tfc.quantize_aware(clustered, x)
        aware.compile(keras.optimizers.Adam(1e-2), cross_entropy())
        aware.fit(x, y, batch_size=32, epochs=2, verbose=0, callbacks=[tfc.HoldClusters(aware)])
        aware.save(tmp_path / "aware.keras")
        aware = tfc.load(tmp_path / "aware.keras")
        tfc.round_biases(aware)
    else:
        aware = tfc.quantize_post_training(clustered, x, learned_rounding=True, rounding_steps=5)
    assert all(count(aware.get_layer(name).kernel) <= 7 for name in ("conv", "plain", "hidden", "classes"))
    exported = tfc.export_tflite(aware, tmp_path / "model.tflite", mode="int8")
    found = integer_kernels(exported.path)
    assert sorted(kernel.size for kernel in found) == [48, 216, 384, 576]
    assert all(1 < count(kernel) <= 7 for kernel in found)
    (plain,) = (kernel for kernel in found if kernel.size == 576)
    assert (plain.transpose(1, 2, 3, 0)[zeros] == 0).all()


def test_a_kernel_that_shares_nothing_has_a_scale_for_each_channel():
    x, _ = blobs(64, shape=(8, 8, 3))
    model = conv_and_norm()
    with_zeros(model.get_layer("plain"), 0.9)
    aware = tfc.quantize_aware(tfc.cluster(model, 8, include=["conv"]), x)
    assert {name: aware.get_layer(name).one_scale for name in ("conv", "plain", "hidden")} == {
        "conv": True,
        "plain": False,
        "hidden": False,
    }


def test_which_kernels_share_values():
    assert holds_few_values(np.zeros((2, 2))) and not shares_values(np.zeros((2, 2)))
    assert not shares_values(np.arange(10.0)) and not holds_few_values(np.arange(10.0))
    assert not shares_values(np.arange(1000.0) // 2) and shares_values(np.arange(500.0) // 2)


# ---- what is chosen, and what is refused


def test_every_kernel_but_depthwise_and_tiny_ones_is_clustered():
    inputs = keras.Input((8, 8, 3))
    x = kl.SeparableConv2D(8, 3, name="separable")(inputs)
    x = kl.DepthwiseConv2D(3, name="depthwise")(x)
    x = kl.LSTM(4, name="lstm")(kl.Reshape((16, 8))(x))
    model = keras.Model(inputs, kl.Dense(3, name="tiny")(x))
    chosen = [(kernel.layer.name, kernel.variable.name) for kernel in clusterable_kernels(model, 16)]
    assert chosen == [("separable", "pointwise_kernel"), ("lstm", "kernel"), ("lstm", "recurrent_kernel")]
    named = clusterable_kernels(model, 16, include=["depth*", "lstm"], exclude=["lstm"])
    assert [kernel.layer.name for kernel in named] == ["depthwise"]
    clustered = tfc.cluster(model, 16)
    assert max(count(kernel) for kernel in clustered.get_layer("lstm").trainable_variables[:2]) == 16
    np.testing.assert_array_equal(clustered.get_layer("tiny").kernel, model.get_layer("tiny").kernel)

    # Within wrappers, too, and each kernel once.
    inputs, dense = keras.Input((2, 8, 8, 8)), kl.Dense(8, name="dense")
    x = kl.TimeDistributed(kl.DepthwiseConv2D(3), name="depthwise")(inputs)
    wrapped = keras.Model(inputs, dense(kl.TimeDistributed(dense, name="each")(x)))
    assert [kernel.layer.name for kernel in clusterable_kernels(wrapped, 16)] == ["each"]


def test_the_table_says_what_was_done():
    model = tiny_mlp()
    zeros = with_zeros(model.get_layer("second"), 0.25)
    clustered = tfc.cluster(model, 6, include=["second"])
    table = tfc.cluster_table(clustered, model)
    first, second, _ = table.layers
    assert (first.values, first.error) == (128, 0.0)
    old, new = (each.get_layer("second").kernel.numpy() for each in (model, clustered))
    assert (second.layer, second.kernel, second.weights, second.values) == ("second", "kernel", 256, 6)
    assert second.zeros == zeros.mean() == 0.25
    assert second.error == pytest.approx(np.sqrt(np.square(new - old).sum() / np.square(old).sum()), rel=1e-5)
    assert second.huffman_bytes < 256 * 3 / 8 + 6 * 5 < second.float_bytes == 1024
    assert "second" in str(table) and table.rows()[1]["values"] == 6
    with pytest.raises(ModelError, match="`before` must have the kernels of 'mlp'"):
        tfc.cluster_table(clustered, tiny_cnn())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clusters": 1}, "`cluster.clusters` must be an integer from 2 to 256. Received: 1"),
        ({"clusters": 257}, "`cluster.clusters` must be an integer from 2 to 256. Received: 257"),
        ({"init": "random"}, "`cluster.init` must be one of .*k-means"),
        ({"init": ["linear"]}, "`cluster.init` must be one of .*k-means"),
        ({"clusters": 4.0}, "`cluster.clusters` must be an integer from 2 to 256. Received: 4.0"),
        ({"include": "h"}, "`include` must be a list of patterns of layer names. Received: 'h'"),
        ({"init": lambda ordered, clusters, rng: ordered}, r"`init` must be a callable .* shape \(16,\)"),
        ({"include": ["conv*"]}, r"`include` must be patterns of the layer names .* Received: 'conv\*'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        tfc.cluster(tiny_mlp(), **arguments)


def test_integers_of_numpy_are_integers():
    model = tiny_mlp()
    assert count(tfc.cluster(model, np.int64(5)).get_layer("second").kernel) == 5
    assert fit_clustered(model, clusters=np.int32(5), epochs=1).seen[-1] == 5


def test_nothing_to_cluster():
    with pytest.raises(ModelError, match="has no kernel to cluster"):
        tfc.cluster(keras.Sequential([keras.Input((4,)), kl.Dense(2, name="only")]))


def test_scales_of_channels_are_refused():
    aware = tfc.quantize_aware(tiny_cnn(), blobs(16)[0])
    with pytest.raises(ModelError, match="'stem' rounds each channel .* before `quantize_aware`"):
        tfc.cluster(aware, 4)
