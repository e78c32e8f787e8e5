import json
import os
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from helpers import blob_dataset, blobs, tiny_cnn
from keras import layers

from tfcompress import files
from tfcompress.errors import DataError, ExportError, InvalidArgumentError, ModelError
from tfcompress.export import export_tflite, parity
from tfcompress.export import tflite as exporter
from tfcompress.export.converter import ConverterProcess
from tfcompress.export.endpoint import InputSpec, model_in_float32
from tfcompress.export.samples import collect
from tfcompress.export.sidecar import describe_file
from tfcompress.measure.tflite_runner import TFLiteRunner


@keras.saving.register_keras_serializable("test_export")
class FakeQuant(layers.Layer):
    is_fake_quantized = True

    def __init__(self, low, high, **options):
        super().__init__(**options)
        self.low, self.high = low, high

    def call(self, x):
        return tf.quantization.fake_quant_with_min_max_args(x, self.low, self.high)


@keras.saving.register_keras_serializable("test_export")
class FakeQuantConv(layers.Conv2D):
    is_fake_quantized = True

    def call(self, x):
        kernel = tf.convert_to_tensor(self.kernel)
        limit = tf.reduce_max(tf.abs(kernel), axis=(0, 1, 2))
        kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel(kernel, -limit, limit, narrow_range=True)
        return tf.nn.conv2d(x, kernel, 1, "SAME")


def fake_quantized(*, output=True):
    inputs = keras.Input((8, 8, 1), name="image")
    x = FakeQuant(0.0, 1.0)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(FakeQuantConv(8, 3, padding="same", use_bias=False)(x)))
    x = FakeQuant(0.0, 2.0)(x)
    y = FakeQuant(-3.0, 3.0)(layers.BatchNormalization()(FakeQuantConv(8, 3, padding="same", use_bias=False)(x)))
    x = FakeQuant(0.0, 3.0)(layers.ReLU()(layers.Add()([x, y])))
    x = FakeQuant(0.0, 3.0)(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Flatten(name="scores")(FakeQuantConv(4, 1, padding="same", use_bias=False)(x))
    return keras.Model(inputs, FakeQuant(-2.0, 2.0, name="scores_range")(x) if output else x)


def sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(4, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(8, activation="relu"),
            layers.Dense(4, name="scores"),
        ]
    )


def with_batch_norm():
    """Statistics as after training, which a fresh BatchNormalization does not have."""
    model = tiny_cnn(softmax=True)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(keras.random.normal(layer.moving_mean.shape, stddev=0.1))
            layer.moving_variance.assign(keras.random.uniform(layer.moving_variance.shape, 0.5, 2.0))
    return model


def nested():
    inputs = keras.Input((8, 8, 1), name="image")
    return keras.Model(inputs, layers.Dense(3, name="scores")(tiny_cnn()(inputs)))


def two_inputs():
    first, second = keras.Input((4,), name="zeta"), keras.Input((6,), name="alpha")
    merged = layers.Concatenate()([layers.Dense(4)(first), layers.Dense(4)(second)])
    return keras.Model([first, second], [layers.Dense(3, name="one")(merged), layers.Dense(2, name="another")(merged)])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "model.tflite"


def assert_nothing_written(path):
    assert not path.parent.exists() or list(path.parent.iterdir()) == []


@pytest.mark.parametrize("build", [sequential, with_batch_norm, nested])
def test_int8_after_training_passes_the_gate(build, path):
    model = build()
    x, _ = blobs(64)
    before = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    result = export_tflite(model, path, calibration=x)
    assert result.audit.passed and result.audit.float_ops == () and result.audit.quantize_ops == ()
    assert result.parity.kind == "ptq" and result.parity.samples == 64
    assert [a.delegate for a in result.parity.agreements] == ["default", "none", "reference"]
    assert result.file_bytes == path.stat().st_size and result.gzip_bytes == files.gzip_size(path)
    assert os.listdir(path.parent) == ["model.tflite"]
    interpreter = Interpreter(model_path=str(path))
    (signature,) = interpreter.get_signature_list().values()
    assert signature == {"inputs": ["image"], "outputs": [model.outputs[0]._keras_history.operation.name]}
    details = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    assert [detail["dtype"] for detail in details] == [np.int8, np.int8]
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_float32_equals_keras(path):
    model = with_batch_norm()
    x, _ = blobs(64)
    result = export_tflite(model, path, mode="float32", calibration=x)
    assert min(agreement.snr_db for agreement in result.parity.agreements) > 100
    np.testing.assert_allclose(TFLiteRunner(path).predict(x), model.predict(x, verbose=0), atol=1e-5)
    json.dumps(result.to_dict(), allow_nan=False)


def test_fake_quant_layers_bring_their_own_ranges(path):
    result = export_tflite(fake_quantized(), path)
    assert result.parity.kind == "qat" and "range of the input quantization: 'image' in [0, 1]" in result.parity.inputs
    assert min(agreement.within_1 for agreement in result.parity.agreements) > 0.98
    assert result.audit.passed and set(result.audit.ops) == {"ADD", "CONV_2D", "MEAN", "RESHAPE"}


def test_fake_quant_layers_are_found_in_nested_models_and_calibration_only_compares(path):
    model = keras.Sequential([keras.Input((8, 8, 1), name="image"), fake_quantized()])
    result = export_tflite(model, path, calibration=blobs(32)[0] * 100)
    assert (result.parity.kind, result.parity.inputs, result.parity.samples) == ("qat", "calibration data", 32)


def test_a_missing_fake_quant_is_named(path):
    with pytest.raises(ExportError, match="output 'scores' is float32 where int8 was asked for; remedy: a fake-quant"):
        export_tflite(fake_quantized(output=False), path)
    assert_nothing_written(path)


def test_fake_quant_in_a_float_file_is_refused(path):
    with pytest.raises(ModelError, match="has fake-quant layers.*mode='int8'"):
        export_tflite(fake_quantized(), path, mode="float32")


def test_float32_borders_give_the_same_values(path):
    model, x = fake_quantized(), blobs(64)[0]
    export_tflite(model, path, calibration=x)
    result = export_tflite(model, path.with_name("float_io.tflite"), io="float32", calibration=x)
    assert set(result.audit.ops) >= {"QUANTIZE", "DEQUANTIZE"} and result.audit.float_ops == ()
    assert result.parity.agreements[0].equal is not None
    np.testing.assert_array_equal(TFLiteRunner(path).predict(x), TFLiteRunner(result.path).predict(x))


def test_operations_without_int8_kernels_are_an_error(path):
    path.parent.mkdir()
    path.write_bytes(b"what was here before")
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, layers.Flatten()(keras.ops.square(layers.Conv2D(2, 1, activation="elu")(inputs))))
    with pytest.raises(ExportError, match="not what mode 'int8' promises") as caught:
        export_tflite(model, path, calibration=blobs(16)[0])
    assert any(cause.startswith("ELU") for cause in caught.value.causes)
    assert any(cause.startswith("SQUARE") for cause in caught.value.causes)
    assert path.read_bytes() == b"what was here before" and os.listdir(path.parent) == ["model.tflite"]
    result = export_tflite(model, path, calibration=blobs(16)[0], audit=False)
    assert len(result.audit.findings) >= 2 and not result.audit.passed


def test_a_crash_of_the_converter_leaves_no_file(path, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    crashing = ConverterProcess([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"])
    monkeypatch.setattr(exporter, "shared_converter", lambda: crashing)
    with pytest.raises(ExportError, match="crashed .SIGSEGV."):
        export_tflite(sequential(), path, calibration=blobs(16)[0])
    assert_nothing_written(path)
    assert list(scratch.iterdir()) == []


def test_a_file_that_disagrees_is_not_written(path, monkeypatch):
    run = parity.run_file
    monkeypatch.setattr(parity, "run_file", lambda *arguments: {name: -y for name, y in run(*arguments).items()})
    with pytest.raises(ExportError, match="does not agree with its Keras model.*\n.*SNR .*; remedy: calibrate"):
        export_tflite(tiny_cnn(), path, calibration=blobs(16)[0])
    assert_nothing_written(path)


def test_slimming_keeps_every_bit(path):
    model, x = with_batch_norm(), blobs(32)[0]
    slim = export_tflite(model, path, calibration=x)
    full = export_tflite(model, path.with_name("full.tflite"), calibration=x, slim=False)
    assert slim.file_bytes < 0.8 * full.file_bytes
    for delegate in ("default", "none"):
        one, other = (TFLiteRunner(result.path, delegate=delegate).predict(x) for result in (slim, full))
        np.testing.assert_array_equal(one, other)


def test_several_inputs_and_outputs_keep_their_names(path):
    rng = np.random.default_rng(0)
    data = {"zeta": rng.normal(size=(40, 4)), "alpha": rng.normal(size=(40, 6))}
    result = export_tflite(two_inputs(), path, calibration=data)
    assert {agreement.output for agreement in result.parity.agreements} == {"one", "another"}
    (signature,) = Interpreter(model_path=str(path)).get_signature_list().values()
    assert signature == {"inputs": ["alpha", "zeta"], "outputs": ["another", "one"]}


def test_a_tensor_that_is_given_twice_has_two_names(path):
    inputs = keras.Input((6,), name="x")
    hidden = layers.Dense(4, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, [hidden, layers.Dense(2, name="last")(hidden), hidden])
    samples = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    result = export_tflite(model, path, calibration=samples)
    described = describe_file(path.read_bytes(), path.name)["outputs"]
    assert sorted(output["shape"][-1] for output in described) == [2, 4, 4]
    names = {output["name"] for output in described}
    assert len(names) == 3 and {agreement.output for agreement in result.parity.agreements} == names


def test_mixed_precision_is_exported_in_float32(path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = tiny_cnn()
    finally:
        keras.config.set_dtype_policy("float32")
    result = export_tflite(model, path, mode="float32")
    assert "CAST" not in result.audit.ops
    assert {layer.dtype_policy.name for layer in model.layers} == {"mixed_float16"}
    with model_in_float32(model):
        np.testing.assert_allclose(TFLiteRunner(path).predict(blobs(8)[0]), model(blobs(8)[0]), atol=1e-5)


@pytest.mark.parametrize(
    "layer, message",
    [
        (layers.LSTM(4, stateful=True, name="lstm"), "'lstm' of model .* is stateful.* with `stateful=False`"),
        (layers.Dense(4, dtype="float16", name="half"), "'half' has float16 variables.*dtype policy 'float32'"),
    ],
    ids=["stateful", "float16"],
)
def test_layers_that_no_file_holds_are_refused_by_name(layer, message, path):
    inputs = keras.Input(batch_shape=(1, 5, 3))
    with pytest.raises(ModelError, match=message):
        export_tflite(keras.Model(inputs, layers.Dense(2)(layer(inputs))), path, mode="float32")
    assert_nothing_written(path)


def test_a_dataset_calibrates_with_one_split_and_compares_with_another(path):
    result = export_tflite(sequential(), path, calibration=blob_dataset())
    assert (result.parity.samples, result.parity.inputs) == (64, "validation split")


@pytest.mark.parametrize("kind", ["dataset", "batches", "pairs", "generator", "array"])
def test_samples_come_in_many_forms(kind):
    x, y = blobs(48)
    sources = {
        "dataset": lambda: blob_dataset(48),
        "batches": lambda: tf.data.Dataset.from_tensor_slices(x).batch(20),
        "pairs": lambda: tf.data.Dataset.from_tensor_slices((x, y)).batch(20),
        "generator": lambda: (x[start : start + 16] for start in range(0, 48, 16)),
        "array": lambda: x,
    }
    spec = InputSpec("image", (8, 8, 1), "float32")
    (everything,) = collect(sources[kind](), [spec], 1000).values()
    # A training split comes shuffled.
    np.testing.assert_array_equal(np.sort(everything.sum((1, 2, 3))), np.sort(x.sum((1, 2, 3))))
    assert collect(sources[kind](), [spec], 30)["image"].shape == (30, 8, 8, 1)


@pytest.mark.parametrize(
    "data, message",
    [
        (np.full((4, 8, 8, 1), np.nan), "NaN or infinite in 4 of 4 samples"),
        (
            np.where(np.arange(6).reshape(6, 1, 1, 1) == 3, np.inf, np.zeros((6, 8, 8, 1))),
            "in 1 of 6 .* first in sample 3",
        ),
        (np.zeros((4, 8, 8)), r"must have the shape \(batch, 8, 8, 1\). Received: \(4, 8, 8\)"),
        (np.zeros((0, 8, 8, 1)), "holds no sample"),
        ([], "holds no sample"),
        ([["a"]], "no array of numbers"),
        ({"pixels": np.zeros((4, 8, 8, 1))}, "lacks the inputs"),
        (None, "needs `calibration` data"),
    ],
)
def test_bad_calibration_data_is_an_error(data, message, path):
    with pytest.raises(DataError, match=message):
        export_tflite(tiny_cnn(), path, calibration=data)
    assert_nothing_written(path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mode": "int16"}, "`mode` must be one of"),
        ({"io": "uint8"}, "`io` must be one of"),
        ({"parity_samples": -1}, "`parity_samples` must be a number of samples"),
        ({"class_names": ["a", "b"]}, "`class_names` must be 4 names"),
        ({"calibration": 3}, "`calibration` must be a Dataset"),
    ],
)
def test_wrong_arguments_are_refused(options, message, path):
    with pytest.raises(InvalidArgumentError, match=message):
        export_tflite(tiny_cnn(), path, **options)
    with pytest.raises(InvalidArgumentError, match="ends in .tflite"):
        export_tflite(tiny_cnn(), path.with_suffix(".bin"))


def test_models_that_cannot_be_exported_say_what_to_do(path):
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ModelError, match=r"keras.Model\(inputs, model\(inputs\)\)"):
        export_tflite(Subclassed(), path, mode="float32")
    open_shape = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 1)])
    with pytest.raises(ModelError, match="all sizes but the batch must be known"):
        export_tflite(open_shape, path, mode="float32")


def test_class_names_are_written_beside_the_file_and_skipped_parity_is_said(path):
    names = ["a", "b", "c", "d"]
    result = export_tflite(tiny_cnn(), path, mode="float32", class_names=names, parity_samples=0)
    assert result.labels_path == path.with_name("model.labels.txt")
    assert result.labels_path.read_text() == "a\nb\nc\nd\n"
    assert result.parity.samples == 0 and result.parity.inputs.startswith("skipped")


def test_calibration_reaches_the_converter_evenly_spread_and_limited(monkeypatch, path):
    seen = {}

    class Converter:
        def start(self):
            pass

        def convert(self, saved_model, *, calibration, **_):
            with np.load(Path(calibration)) as arrays:
                seen.update({name: arrays[name] for name in arrays.files})
            raise ExportError("enough")

    monkeypatch.setattr(exporter, "shared_converter", Converter)
    x = np.broadcast_to(np.linspace(0, 1, 2000)[:, None, None, None], (2000, 8, 8, 1))
    with pytest.raises(ExportError, match="enough"):
        export_tflite(tiny_cnn(), path, calibration=x)
    (samples,) = seen.values()
    assert samples.shape == (500, 8, 8, 1) and samples.dtype == np.float32
    assert (samples[0, 0, 0, 0], samples[-1, 0, 0, 0]) == (0.0, 1.0)
