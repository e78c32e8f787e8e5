"""A BatchNormalization with factors of zero still exports as int8, with the same numbers."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.export.zero_factors import zero_factors_as_zero_kernels


def network(use_bias):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, use_bias=use_bias, bias_initializer="ones", name="conv")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    model = keras.Model(inputs, layers.Conv2D(2, 3, name="last")(x))
    norm = model.get_layer("norm")
    norm.gamma.assign([1.0, 0.0, -0.5, 1e-7])
    norm.beta.assign([0.0, 1.0, 0.5, -1.0])
    norm.moving_mean.assign([0.1, 0.2, 0.3, 0.4])
    return model


@pytest.mark.parametrize("use_bias", [False, True])
def test_function_is_the_same_meanwhile_and_the_model_afterwards(use_bias):
    model = network(use_bias)
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    before, weights = model(x, training=False), model.get_weights()
    with zero_factors_as_zero_kernels(model):
        assert (model.get_layer("norm").gamma.numpy() != 0).all()
        np.testing.assert_allclose(model(x, training=False), before, rtol=1e-5, atol=1e-6)
    for expected, actual in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_int8_file_passes_the_gate(tmp_path):
    x = np.random.default_rng(0).normal(size=(100, 8, 8, 3)).astype("float32")
    aware = tfc.quantize_aware(network(True), x)
    result = tfc.export_tflite(aware, tmp_path / "model.tflite", calibration=x)
    assert result.parity.agreements[0].within_1 > 0.99
