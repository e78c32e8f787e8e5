"""Post-training corrections: means, learned integers and the whole, against NumPy and the exported file."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import blob_dataset, blobs, tiny_cnn, tiny_mlp

import tfcompress as tfc
from tfcompress.errors import DataError, InvalidArgumentError, ModelError
from tfcompress.export import flatbuffer
from tfcompress.techniques.quantize import quantize_aware
from tfcompress.techniques.quantize.bias_correction import correct_biases
from tfcompress.techniques.quantize.learned_rounding import learn_rounding
from tfcompress.techniques.quantize.side_by_side import side_by_side
from tfcompress.training.copying import copy_model


def model_with_statistics(softmax=False):
    keras.utils.set_random_seed(3)
    model, rng = tiny_cnn(softmax=softmax), np.random.default_rng(0)
    for layer in model.layers:
        for weight in layer.weights:
            if weight.name in ("bias", "beta", "moving_mean"):
                weight.assign(rng.normal(scale=0.3, size=weight.shape))
    return model


def error(model, quantized, x):
    return float(np.mean((np.asarray(quantized(x)) - np.asarray(model(x))) ** 2))


def channel_means(model, layer, x):
    values = np.asarray(keras.Model(model.input, model.get_layer(layer).output)(x), np.float64)
    return values.reshape(-1, values.shape[-1]).mean(0)


@pytest.fixture(scope="module")
def float_model():
    return model_with_statistics()


@pytest.fixture(scope="module")
def four_bits(float_model):
    """Rounded to the nearest of 4-bit integers; tests copy it."""
    return quantize_aware(float_model, blobs(256)[0], weight_bits=4)


def test_means_are_corrected_layer_by_layer(float_model, four_bits):
    x = blobs(256)[0]
    corrected = copy_model(four_bits)
    assert correct_biases(corrected, [x[:100], x[100:]]) == ["stem", "middle", "depthwise", "hidden", "classes"]
    # Sums of `stem` are corrected after their normalization, those of `depthwise` and `classes` are its own.
    for layer in ("stem_bn", "depthwise", "classes"):
        exact = channel_means(float_model, layer, x)
        before = np.abs(channel_means(four_bits, layer, x) - exact).max()
        after = np.abs(channel_means(corrected, layer, x) - exact).max()
        assert after < 1e-5 < 100 * 1e-5 < before
    assert error(float_model, corrected, x) < 0.7 * error(float_model, four_bits, x)
    for name in ("stem", "middle", "depthwise", "hidden", "classes"):
        np.testing.assert_array_equal(corrected.get_layer(name).kernel, four_bits.get_layer(name).kernel)


def test_a_layer_without_bias_or_offset_is_left_out():
    inputs = keras.Input((8,))
    x = keras.layers.Dense(4, use_bias=False, activation="relu", name="bare")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="last")(x))
    batches = [blobs(64, shape=(8,))[0]]
    assert correct_biases(quantize_aware(model, batches[0]), batches) == ["last"]


def integers(kernel, layer, bits):
    """A kernel in units of its step, and the step."""
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    axes = (0, 1) if depthwise else tuple(range(kernel.ndim - 1)) if layer.per_channel else None
    step = np.abs(kernel).max(axes, keepdims=True) / (2 ** (bits - 1) - 1)
    return kernel / step, np.broadcast_to(step, kernel.shape)


def test_learned_integers_do_better_on_other_samples():
    x, other = blobs(256, shape=(8,))[0], blobs(256, shape=(8,), seed=9)[0]
    keras.utils.set_random_seed(3)
    model = tiny_mlp()
    nearest = quantize_aware(model, x, weight_bits=4)
    learned = copy_model(nearest)
    names = learn_rounding(learned, [x[:128], x[128:]], iterations=200, seed=0)
    assert {"first", "second"} <= set(names)
    assert error(model, learned, other) < 0.8 * error(model, nearest, other)
    for name in names:
        original, layer = model.get_layer(name).kernel.numpy(), learned.get_layer(name)
        kernel = layer.kernel.numpy()
        learned_integers, step = integers(kernel, layer, 4)
        np.testing.assert_allclose(learned_integers, np.round(learned_integers), atol=1e-4)
        inside = np.abs(original) < 7 * step
        # Up or down, and no further.
        moved = (np.abs(kernel - original) / step)[inside]
        assert 0.501 < moved.max() < 1.0001


def test_same_seed_same_integers_and_zeros_stay():
    x = blobs(256, shape=(8,))[0]
    keras.utils.set_random_seed(3)
    masked = tiny_mlp()
    mask = np.arange(256).reshape(16, 16) % 4 == 0
    masked.get_layer("second").kernel.assign(masked.get_layer("second").kernel.numpy() * mask)
    masked = quantize_aware(masked, x, weight_bits=4)
    copies = [copy_model(masked) for _ in range(2)]
    for copy in copies:
        assert "second" in learn_rounding(copy, [x], iterations=200, seed=0)
    for one, two in zip(copies[0].get_weights(), copies[1].get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert np.all(copies[0].get_layer("second").kernel.numpy()[~mask] == 0)


@pytest.mark.slow
@pytest.mark.parametrize("weight_bits", [4, 8])
def test_the_file_holds_the_learned_integers(float_model, tmp_path, weight_bits):
    x = blobs(256)[0]
    quantized = tfc.quantize_post_training(
        float_model, x, weight_bits=weight_bits, learned_rounding=True, rounding_steps=10
    )
    result = tfc.export_tflite(quantized, tmp_path / "model.tflite", calibration=x, slim=False)
    assert min(agreement.within_1 for agreement in result.parity.agreements) > 0.995
    for name in ("stem", "middle", "depthwise", "hidden"):
        layer = quantized.get_layer(name)
        found, _ = integers(layer.kernel.numpy(), layer, weight_bits)
        np.testing.assert_allclose(found, np.round(found), atol=1e-3)
    found, _ = integers(quantized.get_layer("middle").kernel.numpy(), quantized.get_layer("middle"), weight_bits)
    # TFLite has the output channels first.
    expected = np.moveaxis(np.round(found), -1, 0).astype("int8").ravel()
    model = flatbuffer.parse(result.path.read_bytes())
    stored = [np.frombuffer(bytes(buffer.data), "int8") for buffer in model.buffers if buffer.data is not None]
    if weight_bits == 4:
        low = [(part.astype("uint8") & 15).astype("int16") for part in stored]
        high = [(part.astype("uint8") >> 4).astype("int16") for part in stored]
        pairs = [np.stack([one, two], 1).ravel() for one, two in zip(low, high, strict=True)]
        stored = [np.where(part > 7, part - 16, part).astype("int8") for part in pairs]
    assert any(np.array_equal(part, expected) for part in stored)


def test_all_of_it_beats_nearest_rounding(float_model):
    x, other = blobs(256)[0], blobs(256, seed=9)[0]
    before = [weight.copy() for weight in float_model.get_weights()]
    quantized = tfc.quantize_post_training(float_model, tf.data.Dataset.from_tensor_slices(x).batch(50))
    nearest = quantize_aware(float_model, x)
    for expected, actual in zip(before, float_model.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert error(float_model, quantized, other) < error(float_model, nearest, other)
    assert quantized.input_shape == float_model.input_shape and quantized.output_shape == float_model.output_shape


def test_float_run_does_not_see_corrections(float_model, four_bits):
    """The float inputs of the last layer are those of the float model, whatever visitors do to earlier ones."""
    x = blobs(64)[0]
    changed, seen = copy_model(four_bits), {}

    def spoil(visit):
        seen[visit.layer.name] = np.concatenate([np.asarray(part) for part in visit.float_inputs])
        visit.layer.kernel.assign(0 * visit.layer.kernel.numpy())

    side_by_side(changed, [x[:30], x[30:]], spoil)
    expected = keras.Model(float_model.input, float_model.get_layer("hidden").output)(x)
    np.testing.assert_allclose(seen["classes"], expected, rtol=1e-4, atol=1e-5)


def test_recipe_stage_needs_no_training(tmp_path):
    keras.utils.set_random_seed(0)
    recipe = tfc.parse_recipe("stages: [{quantize_post_training: {method: percentile}}]\nexport: [tflite]")
    result = tfc.compress(tiny_mlp(), blob_dataset(64, shape=(8,)), recipe, tmp_path / "out", progress=False)
    assert result.exports["int8"].is_file()
    assert any(getattr(layer, "is_fake_quantized", False) for layer in result.model.layers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_bits": 3}, "`quantize_post_training.weight_bits` must be 4 or 8, or patterns"),
        ({"method": "entropy"}, "must be one of .*percentile.*Received: 'entropy'"),
        ({"equalize": "all"}, "`quantize_post_training.equalize` must be one of .*Received: 'all'"),
        ({"rounding_steps": 0}, "must be at least 1. Received: 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        tfc.quantize_post_training(tiny_mlp(), np.zeros((4, 8), "float32"), **arguments)


def test_what_cannot_be_quantized_is_an_error():
    with pytest.raises(DataError, match="at least one batch"):
        tfc.quantize_post_training(tiny_mlp(), np.zeros((0, 8), "float32"))
    with pytest.raises(DataError, match="finite activations"):
        tfc.quantize_post_training(tiny_mlp(), np.full((4, 8), np.nan, "float32"))
    with pytest.raises(ModelError, match="ReLU6 between"):
        inputs = keras.Input((8,))
        x = keras.layers.Dense(4, activation="relu6", name="first")(inputs)
        tfc.quantize_post_training(
            keras.Model(inputs, keras.layers.Dense(2)(x)), np.zeros((4, 8), "float32"), equalize="exact"
        )
