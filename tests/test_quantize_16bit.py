"""Activations of 16 bits: rounded as the file rounds, lowered to integers, run; against NumPy and LiteRT."""

import json

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from helpers import blob_dataset, tiny_mlp
from keras import layers as kl
from test_quantize_layers import NETWORKS, _network, _outputs, _snr_db

import tfcompress as tfc
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.export import flatbuffer
from tfcompress.export.converter import shared_converter
from tfcompress.export.endpoint import SIGNATURE, Endpoint
from tfcompress.export.lowering import integers_of_16_bits
from tfcompress.export.parity import run_file
from tfcompress.layers import FakeQuantize
from tfcompress.techniques.quantize import Quantize, quantize_aware
from tfcompress.techniques.quantize.activation_bits import EIGHT_BITS_ONLY
from tfcompress.techniques.quantize.ranges import RangeMethod, ValueCounts, choose_range
from tfcompress.techniques.quantize.removal import remove_fake_quantization

SAMPLES = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32")


def residual():
    """As ResNet-8: convolutions with BatchNormalization, a sum, a mean, a softmax; and what the converter refuses."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(4, 3, padding="same", name="stem")(inputs)))
    y = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(4, 3, padding="same", name="first")(x)))
    x = kl.ReLU()(kl.Add(name="sum")([x, kl.Conv2D(4, 3, padding="same", name="second")(y)]))
    x = kl.Concatenate()([x * 0.5, kl.DepthwiseConv2D(3, padding="same", activation="tanh")(x)])
    return keras.Model(inputs, kl.Dense(4, activation="softmax", name="head")(kl.GlobalAveragePooling2D()(x)))


def exported(aware, path, samples, **options):
    tfc.round_biases(aware)
    result = tfc.export_tflite(aware, path, mode="int16x8", calibration=samples, **options)
    assert result.audit.passed and result.parity.passed and result.parity.kind == "qat16"
    return result


def operations(path):
    """Each operation of a file with the types of what it reads and makes."""
    model = flatbuffer.parse(path.read_bytes())
    graph = model.subgraphs[0]

    def types(indices):
        return [flatbuffer.type_name(graph.tensors[index].type) for index in indices if index >= 0]

    return [
        (flatbuffer.op_name(model.operatorCodes[one.opcodeIndex]), types(one.inputs), types(one.outputs))
        for one in graph.operators
    ]


def ran(path, values):
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], values)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def test_rounding_equals_numpy_and_the_range_is_one_weight():
    layer = FakeQuantize(bits=16, initial_range=(-2.0, 1.0))
    values = np.random.default_rng(0).uniform(-2.5, 2.5, 10_000).astype("float32")
    scale = 2.0 / 32768  # The lowest integer is -32768.
    integers = np.clip(np.round(values.astype("float64") / scale), -32768, 32767)
    # float32 has 24 bits, so that it cannot tell on which side of a half some values are.
    apart = np.abs(np.asarray(layer(values)) / scale - integers)
    assert np.mean(apart > 0.02) < 0.01 and apart.max() < 1.02
    assert float(np.asarray(layer(np.zeros(1, "float32")))[0]) == 0.0
    assert [weight.name for weight in layer.weights] == ["range_maximum"]
    np.testing.assert_allclose(layer.step, scale, rtol=1e-6)
    layer.set_range(-1.0, 3.0)
    np.testing.assert_allclose(layer.step, 3.0 / 32767, rtol=1e-6)


@pytest.mark.parametrize("ranges", ["learned", "moving_average"])
def test_the_range_follows_training_in_both_directions(ranges):
    model = keras.Sequential([keras.Input((4,)), FakeQuantize(bits=16, ranges=ranges, momentum=0.5)])
    model.layers[0].set_range(-1.0, 1.0)
    values = np.array([[-8.0, 0.1, 0.2, 0.3]], "float32")
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(values, values, verbose=0)
    # What is clipped below zero widens the one range there is.
    assert float(model.layers[0].maximum) > 1.2


def test_squared_error_is_least_for_a_symmetric_range():
    counts = ValueCounts()
    counts.add(np.random.default_rng(0).normal(size=100_000))
    counts.add(np.array([-400.0]))
    low, high = choose_range(counts, RangeMethod(name="mse"), 16)
    # With so many steps nothing is worth clipping; with 256 the rare value is.
    assert low == -high and high > 396
    assert choose_range(counts, RangeMethod(name="mse"), 8)[0] > -380


def test_a_network_is_exported_in_16_bits_and_reloads(tmp_path):
    aware = quantize_aware(residual(), SAMPLES, activation_bits=16)
    aware.save(tmp_path / "aware.keras")
    reloaded = keras.saving.load_model(tmp_path / "aware.keras")
    np.testing.assert_array_equal(reloaded.predict(SAMPLES, verbose=0), aware.predict(SAMPLES, verbose=0))
    result = exported(reloaded, tmp_path / "model.tflite", SAMPLES)
    assert {one.dtype for one in result.audit.weights if one.role == "kernel"} == {"int8"}
    assert {one.dtype for one in result.audit.weights if one.role == "bias"} == {"int64"}
    assert all(agreement.snr_db > 70 for agreement in result.parity.agreements)
    assert {types[0] for _, _, types in operations(tmp_path / "model.tflite")} == {"int16"}


def test_a_dense_layer_is_integer_arithmetic(tmp_path):
    inputs = keras.Input((16,))
    dense = kl.Dense(5, name="dense", bias_initializer="random_normal")
    model = keras.Model(inputs, dense(inputs))
    samples = np.random.default_rng(0).uniform(-3, 3, (64, 16)).astype("float32")
    aware = quantize_aware(model, samples, activation_bits=16)
    path = tmp_path / "model.tflite"
    exported(aware, path, samples)
    kernel, bias = (weight.astype("float64") for weight in aware.get_layer("dense").get_weights())
    scales = [layer.step for layer in aware.layers if isinstance(layer, FakeQuantize)]
    unit = np.abs(kernel).max() / 127
    for sample in samples[:8]:
        integers = np.round(sample / scales[0]).astype("int64")
        sums = integers @ np.round(kernel / unit).astype("int64") + np.round(bias / (scales[0] * unit)).astype("int64")
        expected = np.clip(np.round(sums * (scales[0] * unit / scales[1])), -32768, 32767)
        # The runtime multiplies by factors of 15 bits.
        assert np.abs(ran(path, integers.astype("int16")[None])[0] - expected).max() <= 1


def test_lowered_in_8_bits_it_is_the_file_of_the_converter(tmp_path):
    # The same rounding, scales, kernels and biases by two ways; with 16 bits there is only ours.
    endpoint = Endpoint(quantize_aware(residual(), SAMPLES))
    endpoint.write_saved_model(tmp_path / "saved_model")
    contents = {
        mode: shared_converter().convert(tmp_path / "saved_model", signature=SIGNATURE, mode=mode, io="float32")
        for mode in ("float32", "int8")
    }
    lowered = integers_of_16_bits(contents["float32"], "float32")
    for kernels in ("default", "reference"):
        expected = run_file(contents["int8"], {"image": SAMPLES}, kernels)
        for name, actual in run_file(lowered, {"image": SAMPLES}, kernels).items():
            np.testing.assert_array_equal(actual, expected[name])


@pytest.mark.parametrize("use_bias", [True, False])
def test_sums_of_a_dense_layer_beyond_32_bits_do_not_overflow(tmp_path, use_bias):
    inputs = keras.Input((1024,))
    model = keras.Model(inputs, kl.Dense(2, kernel_initializer="ones", use_bias=use_bias)(inputs))
    samples = np.ones((8, 1024), "float32")
    path = tmp_path / "model.tflite"
    # The converter leaves biases out that are zero.
    exported(quantize_aware(model, samples, activation_bits=16), path, samples, io="float32")
    np.testing.assert_allclose(ran(path, samples[:1]).ravel(), 1024.0, rtol=1e-4)


def test_sums_and_biases_beyond_32_bits_do_not_overflow(tmp_path):
    inputs = keras.Input((3, 3, 256))
    conv = kl.Conv2D(2, 3, name="conv", kernel_initializer="ones", bias_initializer=keras.initializers.Constant(2000.0))
    model = keras.Model(inputs, conv(inputs))
    samples = np.ones((8, 3, 3, 256), "float32")
    path = tmp_path / "model.tflite"
    exported(quantize_aware(model, samples, activation_bits=16), path, samples, io="float32")
    found = operations(path)
    assert found[0] == ("QUANTIZE", ["float32"], ["int16"]) and found[-1] == ("DEQUANTIZE", ["int16"], ["float32"])
    # 2,304 products of 32767 * 127 are 2^33, and the bias is as large.
    np.testing.assert_allclose(ran(path, samples[:1]).ravel(), 2304.0 + 2000.0, rtol=1e-4)


def test_bits_by_patterns_of_names(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(4, 3, name="stem")(inputs)))
    x = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(4, 3, name="first")(x)))
    x = kl.Flatten()(kl.MaxPooling2D()(kl.Conv2D(4, 1, name="second")(x)))
    model = keras.Model(inputs, kl.Dense(3, activation="softmax", name="head")(x))
    aware = quantize_aware(model, SAMPLES, activation_bits={"first": 16, "head": 16, "*": 8})
    path = tmp_path / "model.tflite"
    exported(aware, path, SAMPLES)
    found = operations(path)
    convolutions = [(types[0], made[0]) for name, types, made in found if name == "CONV_2D"]
    # "first" with its BatchNormalization and ReLU, which are one operation in the file.
    assert convolutions == [("int8", "int8"), ("int16", "int16"), ("int8", "int8")]
    assert [made for name, _, made in found if name in ("FULLY_CONNECTED", "SOFTMAX")][-2:] == [["int16"], ["int16"]]
    between = {(types[0], made[0]) for name, types, made in found if name == "QUANTIZE"}
    assert {("int8", "int16"), ("int16", "int8")} <= between
    # Every operation but the conversions computes in one width.
    assert all(types[0] == made[0] for name, types, made in found if name != "QUANTIZE")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"activation_bits": 12}, "activation_bits.*8 or 16"),
        ({"activation_bits": {}}, "activation_bits.*8 or 16"),
        ({"activation_bits": 16, "weight_bits": 4}, "weight_bits.*none of 4"),
        ({"activation_bits": {"stem": 16}, "weight_bits": {"head": 4}}, "weight_bits.*none of 4"),
        ({"activation_bits": 16, "allow_float": ["head"]}, "allow_float.*integers alone"),
        ({"activation_bits": {"haed": 16}}, "fits a layer"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        quantize_aware(residual(), SAMPLES, **options)


def test_layers_without_16_bit_kernels_are_refused_by_name():
    inputs = keras.Input((8, 8, 2))
    swish = kl.Conv2D(3, 3, activation="hard_silu", name="swish")
    model = keras.Model(inputs, kl.Dense(2, name="head")(swish(inputs)))
    samples = np.ones((4, 8, 8, 2), "float32")
    with pytest.raises(ModelError, match=r"swish: the runtime has no 16-bit kernel.*activation_bits=\{'swish': 8"):
        quantize_aware(model, samples, activation_bits=16)
    quantize_aware(model, samples, activation_bits={"swish": 8, "*": 16})
    pictures = keras.Input((300, 300, 1))
    large = keras.Model(pictures, kl.GlobalAveragePooling2D(name="mean")(pictures))
    with pytest.raises(ModelError, match="mean: a mean over 90,000 numbers"):
        quantize_aware(large, np.ones((1, 300, 300, 1), "float32"), activation_bits=16)


def test_mode_and_bits_must_fit(tmp_path):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, kl.Dense(3)(inputs))
    samples = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    aware = quantize_aware(model, samples, activation_bits=16)
    with pytest.raises(ModelError, match="of 16 bits.*mode='int16x8'"):
        tfc.export_tflite(aware, tmp_path / "model.tflite", calibration=samples)
    with pytest.raises(ModelError, match="of 8 bits.*mode='int8'"):
        tfc.export_tflite(quantize_aware(model, samples), tmp_path / "model.tflite", mode="int16x8")
    assert not list(tmp_path.iterdir())
    plain = remove_fake_quantization(aware)
    np.testing.assert_array_equal(plain.predict(samples, verbose=0), model.predict(samples, verbose=0))


def test_the_stage_checks_and_takes_it():
    with pytest.raises(InvalidArgumentError, match=r"quantize\.activation_bits"):
        Quantize(activation_bits=4)
    stage = Quantize(activation_bits={"stem": 16})
    stage.check(residual(), 10)
    with pytest.raises(InvalidArgumentError, match="fits a layer"):
        Quantize(activation_bits={"haed": 16}).check(residual(), 10)


@pytest.mark.slow
def test_a_recipe_with_it_runs(tmp_path):
    recipe = tfc.parse_recipe(
        "stages: [{quantize: {activation_bits: {'*': 16}, train: {epochs: 1}}}]\n"
        "export: [{tflite: {mode: int16x8}}, {tflite: {mode: float32}}]"
    )
    result = tfc.compress(tiny_mlp(), blob_dataset(64, shape=(8,)), recipe, tmp_path, progress=False)
    exports = json.loads(result.metrics_path.read_text())["export"]
    assert {mode: export["parity"]["kind"] for mode, export in exports.items()} == {
        "int16x8": "qat16",
        "float32": "float32",
    }


@pytest.mark.slow
def test_a_network_trains_and_is_exported(tmp_path):
    model = residual()
    aware = quantize_aware(model, SAMPLES, activation_bits=16)
    aware.compile(keras.optimizers.Adam(1e-3), "mse")
    ranges = [layer for layer in aware.layers if isinstance(layer, FakeQuantize)]
    before = [float(layer.maximum) for layer in ranges]
    goal = model.predict(SAMPLES, verbose=0)[:, ::-1]
    history = aware.fit(SAMPLES, goal, epochs=10, verbose=0).history["loss"]
    assert history[-1] < history[0] and before != [float(layer.maximum) for layer in ranges]
    exported(aware, tmp_path / "model.tflite", SAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_layer(name, tmp_path):
    model, inputs = _network(name)
    names = [layer.name for layer in model.layers if _activation(layer) in EIGHT_BITS_ONLY]
    aware = quantize_aware(model, inputs, activation_bits={**dict.fromkeys(names, 8), "*": 16})
    for expected, actual in zip(_outputs(model, inputs), _outputs(aware, inputs), strict=True):
        assert _snr_db(expected, actual) > 25
    exported(aware, tmp_path / "model.tflite", inputs)


def _activation(layer):
    return getattr(getattr(layer, "activation", None), "__name__", "")
