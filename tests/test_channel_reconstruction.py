"""Kernels fitted anew after channels have gone: the linear algebra against Keras and NumPy, what is left alone, and
what it is worth."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import blob_dataset, tiny_cnn
from keras import layers
from zoo import small

import tfcompress as tfc
from tfcompress.errors import DataError
from tfcompress.graph.channels import channel_graph
from tfcompress.graph.random_inputs import random_inputs
from tfcompress.graph.shrink import shrink
from tfcompress.graph.trace import trace
from tfcompress.techniques.channels import (
    PruneChannels,
    layer_regression,
    prune_channels,
    reconstruction,
    reestimate_batch_norm,
)
from tfcompress.techniques.channels.forward import run_calls, walk
from tfcompress.techniques.channels.reconstruction import fit_kernels
from tfcompress.train_settings import TrainSettings
from tfcompress.training.fit import fit

SMALL = ("lstm", "transformer", "conv1d", "unet", "multi_input", "multi_output", "nested", "op_layers", "detector")


def removed_half(graph, seed=0):
    """Half of the units of each group, by chance."""
    rng, removed = np.random.default_rng(seed), np.zeros(graph.num_units, bool)
    for units in graph.groups:
        removed[rng.permutation(units)[: len(units) // 2]] = True
    return removed


def mean_square(one, other, x):
    pairs = zip(*(keras.tree.flatten(model(x, training=False)) for model in (one, other)), strict=True)
    return float(np.mean([np.mean(np.square(a - b)) for a, b in pairs]))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    "options", [{}, {"strides": 2}, {"dilation_rate": 2}, {"kernel_size": 4, "strides": 3}], ids=str
)
@pytest.mark.parametrize("kind", [layers.Conv1D, layers.Conv2D, layers.Conv3D])
def test_windows_times_the_kernel_are_the_convolution(kind, options, padding):
    layer = kind(5, **{"kernel_size": 3, **options}, padding=padding, bias_initializer="normal")
    rank = len(layer.kernel_size)
    x = np.random.default_rng(0).normal(size=(2, *(11, 10, 9)[:rank], 3)).astype("float32")
    expected = layer(x).numpy()
    places = np.unravel_index(np.arange(expected[..., 0].size), expected.shape[:-1])
    rows = layer_regression._multiplied(layer, x, places)
    sums = rows @ layer.kernel.numpy().reshape(-1, 5) + layer.bias.numpy()
    np.testing.assert_allclose(sums, expected[places], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer_regression._sums(layer, tf.constant(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", [200, 3])
@pytest.mark.parametrize("use_bias", [True, False])
def test_a_kernel_is_the_regression_on_what_is_left(use_bias, samples):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="relu", bias_initializer="normal", name="hidden"),
            layers.Dense(3, activation="softmax", use_bias=use_bias, name="classes"),
        ]
    )
    graph, x = channel_graph(model), np.random.default_rng(0).normal(size=(samples, 6)).astype("float32")
    removed = np.arange(8) % 2 == 0
    fewer = shrink(graph, removed)
    assert fit_kernels(graph, removed, fewer, [x[: samples // 2], x[samples // 2 :]]) == ["classes"]
    first, second = (model.get_layer(name) for name in ("hidden", "classes"))
    hidden = np.maximum(x @ first.kernel.numpy() + first.bias.numpy(), 0).astype("float64")
    sums, weights = hidden @ second.kernel.numpy(), second.kernel.numpy()[~removed].astype("float64")
    left = hidden[:, ~removed]
    if use_bias:
        left, weights = np.concatenate([left, np.ones((samples, 1))], 1), np.concatenate([weights, np.zeros((1, 3))])
    products = left.T @ left
    held = layer_regression._HOLD * np.trace(products) / len(products)
    expected = weights + np.linalg.inv(products + held * np.eye(len(products))) @ left.T @ (sums - left @ weights)
    for weight, values in zip(fewer.get_layer("classes").weights, (expected[:4], expected[4:].ravel()), strict=False):
        np.testing.assert_allclose(weight, values, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("most", "rows"), [(9, 180), (8, 40)])
def test_as_many_positions_as_are_needed_are_looked_at(most, rows, monkeypatch):
    monkeypatch.setattr(layer_regression, "_LEAST_ROWS", 100)
    monkeypatch.setattr(layer_regression, "_MOST_UNKNOWNS", most)
    monkeypatch.setattr(layer_regression, "_ROWS_FOR_MORE", 40)
    layer, batch = layers.Conv2D(2, 3), tf.zeros((5, 9, 9, 1))
    layer.build(batch.shape)
    places = layer_regression._places(layer, [batch, batch], np.random.default_rng(0))
    assert [len(set(zip(*each, strict=True))) for each in places] == [rows // 2, rows // 2]
    assert all((np.max(each, 1) < (5, 7, 7)).all() for each in places)


def test_channels_that_others_can_stand_for_cost_nothing():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(6, 3, activation="relu", name="first")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, name="second")(x)))
    model = keras.Model(inputs, layers.Dense(3, name="last")(layers.Flatten()(x)))
    kernel, bias = (np.array(weight) for weight in model.get_layer("first").weights)
    # The last three channels are the first three, twice as large.
    kernel[..., 3:], bias[3:] = 2 * kernel[..., :3], 2 * bias[:3]
    model.get_layer("first").set_weights([kernel, bias])
    x = np.random.default_rng(0).normal(size=(60, 6, 6, 2)).astype("float32")
    reestimate_batch_norm(model, [x])
    graph = channel_graph(model)
    (group,) = [units for units in graph.groups if len(units) == 6]
    removed = np.isin(np.arange(graph.num_units), group[3:])
    fewer = shrink(graph, removed)
    without = mean_square(model, fewer, x)
    assert fit_kernels(graph, removed, fewer, [x]) == ["second", "last"]
    assert mean_square(model, fewer, x) < 1e-5 * without


@pytest.mark.parametrize("build", [getattr(small, name) for name in SMALL], ids=SMALL)
def test_outputs_come_nearer_to_those_of_the_whole(build):
    model = build()
    graph = channel_graph(model)
    removed = removed_half(graph)
    fewer, fitted = shrink(graph, removed), shrink(graph, removed)
    traced = trace(model)
    arrays = random_inputs(traced, 128)
    x = [
        keras.tree.pack_sequence_as(traced.inputs, [array[at : at + 32] for array in arrays]) for at in (0, 32, 64, 96)
    ]
    assert fit_kernels(graph, removed, fitted, x[:3])
    # Of samples that nothing was fitted on.
    assert mean_square(model, fitted, x[3]) < 0.9 * mean_square(model, fewer, x[3])


def test_statistics_are_those_of_what_the_fitted_layers_give():
    model, data = tiny_cnn(), blob_dataset()
    fewer = prune_channels(model, macs=0.6, data=data, samples=64, reconstruct=True)
    traced = trace(fewer)
    batches = [x for x, _ in data.batches("train", 32, limit=64)]
    norms = [call for call in traced.calls if isinstance(call.operation, layers.BatchNormalization)]
    assert norms
    for call in norms:
        given = np.concatenate([run_calls(traced, x, call.sources)[call.sources[0]] for x in batches])
        axes = tuple(range(given.ndim - 1))
        np.testing.assert_allclose(call.operation.moving_mean, given.mean(axes), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(call.operation.moving_variance, given.var(axes), rtol=1e-3, atol=1e-4)


def test_half_of_a_trained_network_needs_no_training():
    data = blob_dataset()
    trained = fit(tiny_cnn(), data, TrainSettings(epochs=12, learning_rate=2e-2), batch_size=32, seed=0).model
    accuracies = {}
    for reconstruct in (False, True):
        fewer = prune_channels(trained, macs=0.35, data=data, reconstruct=reconstruct)
        accuracies[reconstruct] = tfc.evaluate(fewer, data).accuracy
    assert accuracies[True] > accuracies[False] + 0.1
    assert accuracies[True] > tfc.evaluate(trained, data).accuracy - 0.05


def test_the_stage_fits_before_it_trains():
    model, data = tiny_cnn(), blob_dataset()
    context = types.SimpleNamespace(data=data, seed=0, train=lambda small: types.SimpleNamespace(model=small))
    fewer = PruneChannels(macs=0.6, reconstruct=True).apply(model, context)
    for one, other in zip(
        fewer.weights, prune_channels(model, macs=0.6, data=data, reconstruct=True).weights, strict=True
    ):
        np.testing.assert_array_equal(one, other)


def chain():
    inputs = keras.Input((6,))
    x = layers.Dense(12, activation="relu", name="first")(inputs)
    x = layers.Dense(12, activation="relu", name="second")(x)
    return keras.Model(inputs, layers.Dense(3, name="last")(x))


def zeros(layer):
    layer.kernel.assign(layer.kernel.numpy() * (np.arange(144).reshape(12, 12) % 3 > 0))


def few_values(layer):
    layer.kernel.assign(np.round(layer.kernel.numpy() * 4) / 4 + 0.125)


def frozen(layer):
    layer.trainable = False


def bounded(layer):
    layer.kernel_constraint = keras.constraints.MaxNorm(1.0)


@pytest.mark.parametrize("change", [zeros, few_values, frozen, bounded], ids=lambda change: change.__name__)
def test_kernels_that_must_stay_stay(change):
    model = chain()
    change(model.get_layer("second"))
    graph, x = channel_graph(model), np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    (member,) = (one for one in graph.members if one.layer == "first" and one.variable.name == "kernel")
    removed = np.isin(np.arange(graph.num_units), member.units[:5])
    fewer = shrink(graph, removed)
    before = fewer.get_layer("second").get_weights()
    assert fit_kernels(graph, removed, fewer, [x]) == ["last"]
    for now, then in zip(fewer.get_layer("second").get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_layer_that_is_used_twice_stays():
    inputs, shared = keras.Input((6,)), layers.Dense(8, activation="relu", name="shared")
    x = layers.Dense(8, activation="relu", name="first")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="last")(shared(shared(x))))
    graph, x = channel_graph(model), np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    removed = removed_half(graph)
    assert fit_kernels(graph, removed, shrink(graph, removed), [x]) == ["last"]


def test_nothing_is_fitted_where_nothing_is_missing():
    model = chain()
    graph, x = channel_graph(model), np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    nothing = np.zeros(graph.num_units, bool)
    assert fit_kernels(graph, nothing, shrink(graph, nothing), [x]) == []


def test_only_samples_that_there_is_room_for_are_used(monkeypatch):
    model = chain()
    graph, x = channel_graph(model), np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    removed = removed_half(graph)
    # Of each sample, in both networks, at most 12 + 12 numbers of 4 bytes at a time; here for 20 samples.
    most = max(sum(np.prod(each.shape) * 4 for [each] in values.values()) for _, _, values in
               walk(trace(model), [x[:1]]))  # fmt: skip
    models = []
    for room, batches in ((20, [x[:16], x[16:32], x[32:]]), (1000, [x[:16], x[16:20]])):
        monkeypatch.setattr(reconstruction, "_MOST_BYTES", room * 2 * most)
        fit_kernels(graph, removed, fewer := shrink(graph, removed), batches)
        models.append(fewer.get_weights())
    for one, other in zip(*models, strict=True):
        np.testing.assert_array_equal(one, other)


def test_positions_are_chosen_by_the_seed(monkeypatch):
    monkeypatch.setattr(layer_regression, "_LEAST_ROWS", 100)
    monkeypatch.setattr(layer_regression, "_ROWS_PER_UNKNOWN", 1)
    model, data = tiny_cnn(), blob_dataset()
    kernels = [
        prune_channels(model, macs=0.6, data=data, reconstruct=True, seed=seed).get_weights() for seed in (0, 0, 1)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(kernels[0], kernels[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(kernels[0], kernels[2], strict=True))


def test_errors():
    model = chain()
    with pytest.raises(DataError, match="`reconstruct` fits kernels on data. Pass `data`"):
        prune_channels(model, macs=0.5, reconstruct=True)
    x, y = np.ones((8, 6), "float32"), np.zeros(8, "int32")
    x[3, 2] = np.nan
    with pytest.raises(DataError, match="Layer 'second' cannot be fitted.*Received: NaN or infinity"):
        prune_channels(model, macs=0.5, data=(x, y), reconstruct=True)
    with pytest.raises(DataError, match="no batch"):
        fit_kernels(graph := channel_graph(model), np.zeros(graph.num_units, bool), model, [])


def test_half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = chain()
    finally:
        keras.config.set_dtype_policy("float32")
    graph, x = channel_graph(model), np.random.default_rng(0).normal(size=(256, 6)).astype("float32")
    removed = removed_half(graph)
    fewer, fitted = shrink(graph, removed), shrink(graph, removed)
    assert fit_kernels(graph, removed, fitted, [x]) == ["second", "last"]
    assert mean_square(model, fitted, x) < 0.9 * mean_square(model, fewer, x)
    assert fitted.get_layer("second").compute_dtype == "float16"
