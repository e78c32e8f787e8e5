"""Flattening: nested models opened, names of their own, the same function."""

import keras
import numpy as np
from keras import layers

from tfcompress.graph.copy_layer import copy_layer
from tfcompress.graph.flatten import flatten, has_equal_names, unique_names
from tfcompress.graph.trace import trace


def twice_the_same_names():
    def block(name):
        inputs = keras.Input((4,), name="x")
        return keras.Model(inputs, layers.Dense(4, activation="relu", name="dense")(inputs), name=name)

    inputs = keras.Input((4,), name="x")
    shared = block("shared")
    x = shared(block("other")(shared(inputs)))
    return keras.Model(inputs, layers.Dense(2, name="dense")(x + 1.0), name="outer")


def test_flat_model_computes_the_same():
    model = twice_the_same_names()
    flat = flatten(model)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    np.testing.assert_allclose(flat(x), model(x), rtol=1e-6)
    assert sorted(layer.name for layer in flat.layers) == ["dense", "dense_1", "dense_2", "x"]
    # A layer that is used twice is one layer still.
    assert flat.count_params() == model.count_params()
    assert not any(isinstance(layer, keras.Model) for layer in flat.layers)


def test_equal_names_are_found():
    model = twice_the_same_names()
    assert has_equal_names(trace(model, allow_equal_names=True))
    # It uses a layer twice, which is no second layer.
    assert not has_equal_names(trace(flatten(model)))


def test_the_model_keeps_its_own_layers():
    model = twice_the_same_names()
    before = model.to_json()
    flat = flatten(model)
    flat.get_layer("dense").kernel.assign(np.zeros((4, 4)))
    assert model.to_json() == before
    assert all(np.any(weight) for weight in model.get_weights()[::2])


def test_names_are_the_same_each_time():
    model = twice_the_same_names()
    first, second = (list(unique_names(trace(model, allow_equal_names=True)).values()) for _ in range(2))
    assert first == second and len(set(first)) == len(first)


def test_a_lambda_is_copied_without_reading_code():
    layer = layers.Lambda(lambda x, by: x * by, arguments={"by": 3.0}, name="times")
    copy = copy_layer(layer, name="other")
    assert copy is not layer and copy.name == "other"
    np.testing.assert_array_equal(copy(np.ones((1, 2), "float32")), [[3.0, 3.0]])
