"""Equalization: the same function, equal ranges, better integers; ReLU6 never silently."""

import keras
import numpy as np
import pytest
from helpers import tiny_cnn
from keras import layers

import tfcompress as tfc
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.techniques.quantize.equalize import equalize, find_pairs


def depthwise_net(relu6=False, seed=0):
    """Three separable blocks with BatchNorm, whose channels have sizes a thousand times apart."""
    rng = np.random.default_rng(seed)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(inputs)
    for block in range(3):
        x = layers.BatchNormalization(name=f"norm_{block}")(x)
        x = layers.ReLU(6.0 if relu6 else None, name=f"relu_{block}")(x)
        x = layers.ZeroPadding2D(name=f"pad_{block}")(x)
        x = layers.DepthwiseConv2D(3, depth_multiplier=2 if block == 1 else 1, activation="relu", name=f"dw_{block}")(x)
        x = layers.Conv2D(8, 1, use_bias=False, name=f"pw_{block}")(x)
    x = layers.Flatten(name="flat")(layers.AveragePooling2D(2, name="pool")(layers.ReLU(name="last_relu")(x)))
    model = keras.Model(inputs, layers.Dense(5, name="classes")(x))
    for layer in model.layers:
        for weight in layer.weights:
            if weight.name in ("gamma", "moving_variance"):
                weight.assign(np.exp(rng.normal(scale=1.5, size=weight.shape)))
            elif weight.name in ("beta", "bias", "moving_mean"):
                weight.assign(rng.normal(scale=0.3, size=weight.shape))
    return model


def pictures(count=32, channels=3, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, size=(count, 8, 8, channels)).astype("float32")


def relative_difference(one, other, x):
    expected = np.asarray(one(x))
    return np.abs(np.asarray(other(x)) - expected).max() / np.abs(expected).max()


def snr_db(model, quantized, x):
    expected = np.asarray(model(x))
    return 10 * np.log10(np.var(expected) / np.mean((np.asarray(quantized(x)) - expected) ** 2))


def test_depthwise_net_computes_the_same_and_has_equal_ranges():
    model, x = depthwise_net(), pictures()
    before = [weight.copy() for weight in model.get_weights()]
    equalized = equalize(model)
    assert relative_difference(model, equalized, x) < 1e-5
    for expected, actual in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)
    names = [(pair.first.name, pair.second.name) for pair in find_pairs(model)]
    pointwise = [("stem", "dw_0"), ("pw_0", "dw_1"), ("pw_1", "dw_2"), ("pw_2", "classes")]
    assert set(names) == {*pointwise, *((f"dw_{at}", f"pw_{at}") for at in range(3))}
    norm = equalized.get_layer("norm_0")
    folded = np.abs(norm.gamma.numpy()) / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    made = np.abs(equalized.get_layer("stem").kernel.numpy()).max((0, 1, 2)) * folded
    used = np.abs(equalized.get_layer("dw_0").kernel.numpy()).max((0, 1, 3))
    np.testing.assert_allclose(made, used, rtol=0.05)
    # The dense layer sees each channel at 4x4 places.
    dense = np.abs(equalized.get_layer("classes").kernel.numpy()).reshape(4, 4, 8, 5).max((0, 1, 3))
    made = np.abs(equalized.get_layer("pw_2").kernel.numpy()).max((0, 1, 2))
    np.testing.assert_allclose(made, dense, rtol=0.05)


def test_integers_are_better_after_it():
    model, x = depthwise_net(), pictures(64)
    # The same function, with channels that one range for all of them cannot hold.
    factor = np.geomspace(0.01, 100, 8)
    made, used = model.get_layer("dw_0"), model.get_layer("pw_0")
    made.kernel.assign(made.kernel.numpy() * factor[:, None])
    made.bias.assign(made.bias.numpy() * factor)
    used.kernel.assign(used.kernel.numpy() / factor[:, None])
    plain = tfc.quantize_post_training(model, x, method="min_max", bias_correction=False)
    equal = tfc.quantize_post_training(model, x, method="min_max", bias_correction=False, equalize="exact")
    assert snr_db(model, equal, x) > snr_db(model, plain, x) + 2


def test_groups_and_shared_layers():
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(8, 3, activation="relu", name="first")(inputs)
    x = layers.Conv2D(6, 3, groups=2, activation="relu", name="grouped")(x)
    shared = layers.Conv2D(6, 1, activation="relu", name="shared")
    x = shared(shared(x))
    x = layers.Dense(6, activation="relu", name="on_maps")(x)
    model = keras.Model(inputs, layers.Conv2D(3, 1, name="last")(x))
    model.get_layer("first").kernel.assign(model.get_layer("first").kernel.numpy() * np.geomspace(0.01, 10, 8))
    names = [(pair.first.name, pair.second.name) for pair in find_pairs(model)]
    assert names == [("first", "grouped"), ("on_maps", "last")]
    assert relative_difference(model, equalize(model), pictures(channels=4)) < 1e-5


def test_branches_and_other_functions_are_left_alone():
    pairs = find_pairs(tiny_cnn())
    # `stem` is used twice, `depthwise` is added to, and pooling scales.
    assert [(pair.first.name, pair.second.name) for pair in pairs] == [("middle", "depthwise"), ("hidden", "classes")]
    inputs = keras.Input((4,))
    x = layers.Dense(4, activation="gelu")(inputs)
    with pytest.raises(ModelError, match="no two layers to equalize"):
        equalize(keras.Model(inputs, layers.Dense(2)(x)))


def test_relu6_is_refused_or_replaced():
    model, x = depthwise_net(relu6=True), pictures()
    with pytest.raises(ModelError, match="ReLU6 between layers to equalize.*relu_0, relu_1, relu_2.*relu6='replace'"):
        equalize(model)
    replaced = equalize(model, relu6="replace")
    with_relu = depthwise_net()
    with_relu.set_weights(model.get_weights())
    assert relative_difference(with_relu, replaced, x) < 1e-5
    assert replaced.get_layer("relu_0").max_value is None and model.get_layer("relu_0").max_value == 6
    with pytest.raises(InvalidArgumentError, match="`equalize.relu6` must be one of .*Received: 'ignore'"):
        equalize(model, relu6="ignore")
