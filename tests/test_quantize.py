"""Quantization-aware training: rounding against NumPy, where it goes, what it keeps, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CLOSE, blob_dataset, blobs, cross_entropy, shared_path, tiny_cnn, tiny_mlp, zeros_fraction

from tfcompress.errors import DataError, InvalidArgumentError, ModelError
from tfcompress.layers import FakeQuantize, fake_quantize_kernel
from tfcompress.techniques.masks import HoldMasks
from tfcompress.techniques.quantize import FreezeRanges, quantize_aware, round_biases
from tfcompress.techniques.quantize.calibrate import fake_quantize_layers
from tfcompress.techniques.quantize.removal import remove_fake_quantization
from tfcompress.techniques.quantize.rewrite import QuantizationSpec, insert_fake_quantization


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_kernel_rounding_equals_numpy(bits, per_channel):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype("float32")
    kernel[..., 2] = 0
    axes = (0, 1, 2) if per_channel else (0, 1, 2, 3)
    limit = np.maximum(np.abs(kernel).max(axes, keepdims=True), 1e-6).astype("float64")
    step = limit / (2 ** (bits - 1) - 1)
    expected = np.floor(kernel / step + 0.5) * step
    actual = fake_quantize_kernel(tf.constant(kernel), bits=bits, per_channel=per_channel).numpy()
    # A value in the middle between two integers may go either way in float32.
    middle = np.abs(kernel / step - np.floor(kernel / step) - 0.5) < 1e-3
    np.testing.assert_allclose(actual[~middle], expected[~middle], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(actual[..., 2], 0)


def test_kernel_rounding_passes_gradients_straight():
    kernel = tf.constant(np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype("float32"))
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        total = tf.reduce_sum(3.0 * fake_quantize_kernel(kernel, bits=8, per_channel=True))
    np.testing.assert_allclose(tape.gradient(total, kernel), 3.0, rtol=1e-6)


def test_activation_rounding_equals_numpy():
    values = np.random.default_rng(0).uniform(-3, 5, size=1000).astype("float32")
    layer = FakeQuantize(initial_range=(-2.0, 4.0))
    scale = 6.0 / 255
    zero_point = np.round(2.0 / scale)
    expected = (np.clip(np.round(values / scale) + zero_point, 0, 255) - zero_point) * scale
    np.testing.assert_allclose(layer(tf.constant(values)), expected, atol=scale * 1.01)
    assert np.mean(np.abs(layer(tf.constant(values)) - expected) < 1e-4) > 0.99


def test_moving_average_follows_and_freezing_stops_it():
    layer = FakeQuantize(ranges="moving_average", momentum=0.5, initial_range=(0.0, 1.0))
    values = tf.constant([-1.0, 3.0])
    layer(values, training=True)
    assert (float(layer.minimum), float(layer.maximum)) == (-0.5, 2.0)
    layer(values, training=False)
    layer.trainable = False
    layer(values, training=True)
    assert (float(layer.minimum), float(layer.maximum)) == (-0.5, 2.0)


def test_nothing_is_rounded_where_the_runtime_fuses():
    aware = quantize_aware(tiny_cnn(), blobs()[0])
    names = [layer.name for layer in fake_quantize_layers(aware)]
    assert names == [
        "image_range",
        "stem_relu_range",
        "middle_range",
        "depthwise_range",
        "residual_range",
        "pool_range",
        "hidden_range",
        "classes_range",
    ]


def test_calibrated_ranges_are_those_seen_while_no_activation_is_rounded():
    model, (x, _) = tiny_cnn(), blobs(200)
    aware = quantize_aware(model, tf.data.Dataset.from_tensor_slices(x).batch(7), calibration_samples=150)
    for name in ("stem", "middle"):
        aware_layer = aware.get_layer(name)
        model.get_layer(name).kernel.assign(aware_layer.rounded_kernel(aware_layer.kernel))
    kernel = model.get_layer("depthwise").kernel
    kernel.assign(
        fake_quantize_kernel(tf.reshape(kernel, (3, 3, 1, 8)), bits=8, per_channel=True).numpy().reshape(3, 3, 8, 1)
    )
    values = keras.Model(model.inputs, model.get_layer("residual").output)([x[:150]])
    layer = aware.get_layer("residual_range")
    np.testing.assert_allclose(float(layer.maximum), np.max(values), rtol=1e-5)
    np.testing.assert_allclose(float(layer.minimum), min(np.min(values), 0), rtol=1e-5, atol=1e-6)


def test_input_model_is_unchanged_and_outputs_stay_close():
    model, (x, _) = tiny_cnn(), blobs()
    before = [weight.copy() for weight in model.get_weights()]
    aware = quantize_aware(model, x)
    for expected, actual in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert aware.input_shape == model.input_shape and aware.output_shape == model.output_shape
    difference = np.abs(aware(x) - model(x)).max()
    assert 0 < difference < 0.05 * np.abs(model(x)).max()


def test_removal_gives_the_float_model_back():
    model, (x, _) = tiny_cnn(softmax=True), blobs()
    plain = remove_fake_quantization(quantize_aware(model, x))
    assert not any(getattr(layer, "is_fake_quantized", False) for layer in plain.layers)
    np.testing.assert_allclose(plain(x), model(x), **CLOSE)


@pytest.mark.parametrize("weight_bits", [4, 8])
def test_saves_and_reloads(tmp_path, weight_bits):
    x, _ = blobs()
    aware = quantize_aware(tiny_cnn(softmax=True), x, weight_bits=weight_bits)
    aware.save(tmp_path / "aware.keras")
    reloaded = keras.saving.load_model(tmp_path / "aware.keras")
    np.testing.assert_allclose(reloaded(x), aware(x), rtol=1e-6)
    assert reloaded.get_layer("middle").weight_bits == weight_bits


@pytest.mark.parametrize(
    ("precision", "jit_compile"),
    [("float32", False), ("mixed_float16", False), pytest.param("mixed_bfloat16", True, marks=pytest.mark.slow)],
)
def test_trains_and_freezes(precision, jit_compile):
    from tfcompress.train_settings import TrainSettings
    from tfcompress.training.fit import fit

    data = blob_dataset()
    floats = fit(tiny_cnn(), data, TrainSettings(epochs=12, learning_rate=2e-2), batch_size=32, seed=0)
    aware = quantize_aware(floats.model, data)

    class Ranges(keras.callbacks.Callback):
        seen = []

        def __init__(self, model):
            super().__init__()
            self.watched = [model.get_layer("residual_range"), model.get_layer("stem_bn")]

        def on_train_batch_end(self, batch, logs=None):
            range_layer, norm = self.watched
            self.seen.append((float(range_layer.maximum.numpy()), float(norm.moving_mean.numpy().sum())))

    Ranges.seen = []
    result = fit(
        aware,
        data,
        TrainSettings(epochs=10, learning_rate=2e-3, precision=precision, jit_compile=jit_compile),
        batch_size=32,
        seed=0,
        callbacks=lambda replica: [FreezeRanges(replica, after=0.5), Ranges(replica)],
    )
    ranges, means = zip(*Ranges.seen, strict=True)
    assert len(set(ranges[:20])) > 10 and len(set(ranges[19:])) == 1
    assert len(set(means[:20])) == 20 and len(set(means[19:])) == 1
    assert floats.history["accuracy"][-1] > 0.8
    assert result.history["accuracy"][-1] > floats.history["accuracy"][-1] - 0.05
    assert all(layer.compute_dtype == "float32" for layer in result.model.layers)


def test_masks_are_held():
    model, data = tiny_cnn(), blob_dataset()
    kernel = model.get_layer("middle").kernel
    kernel.assign(kernel.numpy() * (np.arange(576).reshape(3, 3, 8, 8) % 4 == 0))
    aware = quantize_aware(model, data)
    aware.compile("adam", cross_entropy())
    aware.fit(*blobs(), verbose=0, callbacks=[HoldMasks(aware)])
    assert zeros_fraction(aware.get_layer("middle")) == 0.75
    rounded = aware.get_layer("middle").rounded_kernel(aware.get_layer("middle").kernel)
    assert np.mean(rounded == 0) >= 0.75


def test_two_replicas_train_as_one():
    from tfcompress.train_settings import TrainSettings
    from tfcompress.training.fit import fit

    data = blob_dataset(shape=(8,))
    aware = quantize_aware(tiny_mlp(), data)
    weights = {}
    for strategy in ("default", "mirrored"):
        settings = TrainSettings(epochs=2, strategy=strategy, optimizer="sgd", learning_rate=0.1)
        weights[strategy] = fit(aware, data, settings, batch_size=32, seed=0).model.get_weights()
    for one, two in zip(weights["default"], weights["mirrored"], strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-4)


def test_mlperf_resnet8_is_rewritten_whole():
    model = keras.saving.load_model(shared_path("models/resnet8_cifar10.h5"), compile=False)
    aware = insert_fake_quantization(model, QuantizationSpec())
    assert len(fake_quantize_layers(aware)) == 16
    assert [weight.shape for layer in aware.layers if hasattr(layer, "kernel") for weight in layer.weights] == [
        weight.shape for layer in model.layers if hasattr(layer, "kernel") for weight in layer.weights
    ]


def test_subclassed_model_has_no_graph():
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ModelError, match="must be a functional or Sequential model"):
        quantize_aware(Subclassed(), np.zeros((4, 2), "float32"))


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("weight_bits", 3, "`quantize_aware.weight_bits` must be 4 or 8, or patterns"),
        ("ranges", "guessed", "must be one of .*learned.*Received: 'guessed'"),
        ("momentum", 1.0, r"must be a number in \[0, 1\). Received: 1.0"),
        ("calibration_samples", 0, "must be at least 1. Received: 0"),
    ],
)
def test_arguments_out_of_range(argument, value, message):
    with pytest.raises(InvalidArgumentError, match=message):
        quantize_aware(tiny_mlp(), np.zeros((4, 8), "float32"), **{argument: value})


def test_calibration_must_be_finite_and_not_empty():
    with pytest.raises(DataError, match="finite activations. Received: NaN or infinity at .'features_range'"):
        quantize_aware(tiny_mlp(), np.full((4, 8), np.nan, "float32"))
    with pytest.raises(DataError, match="at least one batch"):
        quantize_aware(tiny_mlp(), np.zeros((0, 8), "float32"))


@pytest.mark.parametrize("softmax", [False, True])
def test_biases_on_the_grid_make_model_and_file_agree(tmp_path, softmax):
    from tfcompress.export import export_tflite
    from tfcompress.measure.tflite_runner import TFLiteRunner
    from tfcompress.training.copying import copy_model

    x, _ = blobs(256)
    model = tiny_cnn(softmax=softmax)
    for layer in model.layers:
        for weight in layer.weights:
            if weight.name in ("bias", "beta", "moving_mean"):
                weight.assign(np.random.default_rng(0).normal(scale=0.3, size=weight.shape))
    aware = quantize_aware(model, x)
    rounded = copy_model(aware)
    assert round_biases(rounded) == 5

    agreement = {}
    for name, candidate in (("as trained", aware), ("rounded", rounded)):
        path = export_tflite(candidate, tmp_path / "model.tflite", calibration=x).path
        runner = TFLiteRunner(path)
        step = runner.output_details["quantization_parameters"]["scales"][0]
        steps = np.abs(np.round(runner.predict(x) / step) - np.round(np.asarray(candidate(x)) / step))
        agreement[name] = np.mean(steps == 0)
        assert np.mean(steps <= 1) >= 0.995
    assert agreement["rounded"] > max(agreement["as trained"], 0.98)


def test_biases_move_by_at_most_half_a_unit_and_once():
    aware = quantize_aware(tiny_cnn(), blobs()[0])
    hidden = aware.get_layer("hidden")
    hidden.bias.assign(np.linspace(-1, 1, 16))
    before = hidden.bias.numpy()
    pool = aware.get_layer("pool_range")
    unit = (float(pool.maximum) - float(pool.minimum)) / 255 * np.abs(hidden.kernel.numpy()).max() / 127
    round_biases(aware)
    after = hidden.bias.numpy()
    assert 0 < np.abs(after - before).max() <= 0.5 * unit * 1.001
    np.testing.assert_allclose(after / unit, np.round(after / unit), atol=1e-2)
    round_biases(aware)
    np.testing.assert_allclose(hidden.bias.numpy(), after, rtol=1e-6)


def test_a_second_fit_after_a_freeze_trains_all_again():
    aware = quantize_aware(tiny_cnn(), blobs()[0])
    aware.compile("adam", cross_entropy())
    aware.fit(*blobs(), verbose=0, callbacks=[FreezeRanges(aware, after=0.0)])
    gamma = aware.get_layer("stem_bn").gamma.numpy()
    aware.fit(*blobs(), verbose=0)
    assert np.abs(aware.get_layer("stem_bn").gamma.numpy() - gamma).max() > 0


def test_a_rounded_softmax_keeps_its_gradient_in_training():
    x, y = blobs(64, shape=(8,))
    aware = quantize_aware(tiny_mlp(softmax=True), x)
    aware.get_layer("last").kernel.assign(50 * aware.get_layer("last").kernel.numpy())
    for layer in fake_quantize_layers(aware):
        if layer.ranges != "fixed":
            layer.set_range(-100, 100)
    with tf.GradientTape() as tape:
        outputs = aware(x, training=True)
        losses = -tf.math.log(tf.gather(outputs, y, batch_dims=1))
    gradient = tape.gradient(losses, outputs)
    rounded = aware(x, training=False)
    assert np.mean(np.asarray(rounded) == 0) > 0.1 > 0.01 > np.mean(np.asarray(outputs) == 0)
    assert np.abs(gradient).max(-1).min() > 0
