"""The data that channels are judged on: several inputs, and labels that are read as classes only where they are."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfcompress.errors import DataError
from tfcompress.techniques.channels import CRITERIA, prune_channels, remove_blocks


def dense(outputs, **arguments):
    keras.utils.set_random_seed(0)
    layer = layers.Dense(outputs, **arguments)
    return keras.Sequential([keras.Input((4,)), layers.Dense(8, activation="relu", name="hidden"), layer])


def numbers(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


CLASSES = np.arange(40) % 3


def noted(seen):
    """The criterion `taylor`, which notes its scores."""

    def criterion(evidence):
        seen.append(CRITERIA["taylor"](evidence))
        return seen[-1]

    return criterion


@pytest.mark.parametrize("labels", [CLASSES, CLASSES[:, None], CLASSES.astype("uint8"), list(CLASSES)], ids=range(4))
def test_whole_numbers_are_classes(labels):
    """By hand: cross-entropy has the gradient `probability - 1` for the logit of the label."""
    model, x, seen = dense(3), numbers(40, 4), []
    prune_channels(model, macs=0.5, criterion=noted(seen), data=(x, labels), samples=8)
    given = seen[0]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    prune_channels(model, macs=0.5, criterion=noted(seen), data=(x, CLASSES), samples=8, loss=loss)
    np.testing.assert_allclose(given, seen[1], rtol=1e-5)
    (w, b), last = model.get_layer("hidden").get_weights(), model.layers[-1].get_weights()
    hidden = np.maximum(x[:8] @ w + b, 0)
    logits = hidden @ last[0] + last[1]
    slope = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(3)[CLASSES[:8]]
    gradient = x[:8].T @ ((slope @ last[0].T) * (hidden > 0)) / 8
    np.testing.assert_allclose(given, np.square((gradient * w).sum(0)), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("criterion", ["taylor", "hessian", noted([])], ids=["taylor", "hessian", "own"])
@pytest.mark.parametrize(
    "model, labels",
    [
        (dense(1), numbers(40)),
        (dense(1, activation="sigmoid"), np.arange(40) % 2),
        (dense(3), np.eye(3)[CLASSES]),
        (dense(3), CLASSES.astype("float32")),
        (dense(3), CLASSES + 1),
        (dense(3), CLASSES - 1),
    ],
    ids=["regression", "binary", "one_hot", "floats", "too_large", "negative"],
)
def test_no_loss_is_guessed(model, labels, criterion):
    data = numbers(40, 4), labels
    with pytest.raises(DataError, match=r"needs the gradient of a loss.*Pass `loss`.*Received: outputs \(None, \d\), "):
        prune_channels(model, macs=0.5, criterion=criterion, data=data)


def test_a_regression_with_its_loss():
    """By hand: the mean squared error of one output."""
    model, x, y, seen = dense(1), numbers(40, 4), numbers(40, 1), []
    small = prune_channels(
        model, macs=0.5, criterion=noted(seen), data=(x, y), samples=8, loss=keras.losses.MeanSquaredError()
    )
    (w, b), last = model.get_layer("hidden").get_weights(), model.layers[-1].get_weights()
    hidden = np.maximum(x[:8] @ w + b, 0)
    slope = 2 * (hidden @ last[0] + last[1] - y[:8])
    gradient = x[:8].T @ ((slope @ last[0].T) * (hidden > 0)) / 8
    np.testing.assert_allclose(seen[0], np.square((gradient * w).sum(0)), rtol=1e-3, atol=1e-9)
    assert small.get_layer("hidden").units == 4


def test_criteria_without_a_loss_take_any_labels():
    assert prune_channels(dense(1), macs=0.5, data=(numbers(40, 4), numbers(40))).get_layer("hidden").units == 4


def two_inputs(names=(None, None)):
    keras.utils.set_random_seed(0)
    one, two = (keras.Input((4,), name=name) for name in names)
    x = layers.Concatenate()([layers.Dense(8, name="one_wide")(one), layers.Dense(8, name="two_wide")(two)])
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Add(name="sum")([x, layers.Dense(16, name="block")(x)])
    inputs = dict(zip(names, (one, two), strict=True)) if names[0] else [one, two]
    return keras.Model(inputs, layers.Dense(3, name="classes")(x))


@pytest.mark.parametrize("count", [40, 2])
@pytest.mark.parametrize("kind", [list, tuple, dict, "dataset"], ids=str)
def test_several_inputs(kind, count):
    a, b, y = numbers(count, 4), 5 + numbers(count, 4), CLASSES[:count]
    model = two_inputs(("a", "b") if kind is dict else (None, None))
    data = ({"a": a, "b": b} if kind is dict else (a, b) if kind == "dataset" else kind((a, b)), y)
    if kind == "dataset":
        data = tf.data.Dataset.from_tensor_slices(data).batch(7)
    seen = []
    small = prune_channels(model, macs=0.6, criterion=noted(seen), data=data)
    assert np.all(seen[0] > 0)
    hidden = [
        x @ small.get_layer(name).kernel + small.get_layer(name).bias for x, name in ((a, "one_wide"), (b, "two_wide"))
    ]
    norm = small.get_layer("norm")
    np.testing.assert_allclose(norm.moving_mean, np.concatenate(hidden, 1).mean(0), rtol=1e-3, atol=1e-4)
    assert len(remove_blocks(model, count=1, data=data).layers) == len(model.layers) - 2


@pytest.mark.parametrize(
    "data, message",
    [
        (([numbers(40, 4)], CLASSES), "must give 2 inputs.*Received: 1"),
        (([numbers(40, 4), numbers(39, 4)], CLASSES), r"as many labels as samples.*Received: \[40, 39, 40\]"),
        (([numbers(40, 4), numbers(40, 4)], 3), r"as many labels as samples.*Received: \[40, 40, 0\]"),
    ],
)
def test_arrays_that_do_not_fit(data, message):
    with pytest.raises(DataError, match=message):
        prune_channels(two_inputs(), macs=0.5, data=data)


def test_data_that_makes_nan():
    x = numbers(40, 4)
    x[3] = np.nan
    with pytest.raises(DataError, match="'taylor' is NaN on `data`"):
        prune_channels(dense(3), macs=0.5, criterion="taylor", data=(x, CLASSES))
