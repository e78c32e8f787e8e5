"""Every mode gives a file of its types that passes its gate; recurrent layers are fused or unrolled; errors say why."""

import typing

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from helpers import blobs, tiny_cnn
from keras import layers

from tfcompress.errors import ExportError, InvalidArgumentError, ModelError
from tfcompress.export import audit_tflite, export_tflite, flatbuffer, gate
from tfcompress.export.converter import shared_converter
from tfcompress.export.int4 import best_scales, pack_halves
from tfcompress.export.modes import GATES, IO_TYPES, MODES, REMEDIES
from tfcompress.export.parity import reference_samples
from tfcompress.export.repair import lstm_mismatches, repair
from tfcompress.measure.tflite_runner import TFLiteRunner
from tfcompress.recipe.specs import ExportSpec


def wide():
    """Kernels large enough for every mode: the converter leaves those below 1,024 values in float."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(4, name="scores"),
        ]
    )


def recurrent(*inner):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((5, 3), name="x"), *inner, layers.Dense(4, name="scores")])


def sequences(count=64):
    return np.random.default_rng(0).normal(size=(count, 5, 3)).astype("float32")


def test_the_table_is_complete():
    assert {mode.kind for mode in MODES.values()} | {"qat", "qat16"} == set(GATES) == set(REMEDIES)
    hints = typing.get_type_hints(ExportSpec)
    assert set(typing.get_args(hints["mode"])) == set(MODES)
    io = [typing.get_args(part) for part in typing.get_args(hints["io"])]
    assert {name for part in io for name in part} == set(IO_TYPES)


@pytest.mark.parametrize(
    "mode, weights, io",
    [
        ("float32", {"float32"}, np.float32),
        ("float16", {"float16"}, np.float32),
        ("dynamic", {"float32", "int8"}, np.float32),
        ("int8", {"int8"}, np.int8),
        ("int8_float_io", {"int8"}, np.float32),
        ("int16x8", {"int8"}, np.int16),
        ("int4", {"int8", "int4"}, np.int8),
    ],
)
def test_each_mode_writes_its_types_and_agrees(mode, weights, io, tmp_path):
    model, x = wide(), blobs(64)[0]
    path = tmp_path / "model.tflite"
    result = export_tflite(model, path, mode=mode, calibration=x)
    assert result.audit.passed and result.parity.kind == MODES[mode].kind and result.parity.notes == ()
    interpreter = Interpreter(model_path=str(path))
    assert interpreter.get_input_details()[0]["dtype"] == interpreter.get_output_details()[0]["dtype"] == io
    found = {constant.dtype for constant in result.audit.weights if len(constant.shape) > 1}
    assert found == weights
    # Independent of the gate: power of the Keras outputs over that of the difference.
    expected = model.predict(x, verbose=0).astype("float64")
    least = {"float32": 80, "float16": 50, "dynamic": 25, "int8": 25, "int8_float_io": 25, "int16x8": 30, "int4": 8}
    for kernels in ("default", "none", "reference"):
        noise = TFLiteRunner(path, delegate=kernels).predict(x) - expected
        assert 10 * np.log10((expected**2).sum() / (noise**2).sum()) > least[mode]


def test_each_kernel_set_is_in_the_report(tmp_path):
    result = export_tflite(tiny_cnn(), tmp_path / "model.tflite", mode="int8", calibration=blobs(100)[0])
    agreements = {agreement.delegate: agreement for agreement in result.parity.agreements}
    assert list(agreements) == ["default", "none", "reference"]
    assert (agreements["default"].samples, agreements["reference"].samples) == (100, 64)
    assert [kernel.delegate for kernel in result.parity.kernels] == [
        "default against none",
        "default against reference",
    ]


def test_reference_kernels_get_fewer_samples_of_a_large_network():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    content = shared_file(model)
    assert reference_samples(content, 1000) == 64 and reference_samples(content, 5) == 5
    parsed = flatbuffer.parse(content)
    for operator in parsed.subgraphs[0].operators:
        for tensor in (
            parsed.subgraphs[0].tensors[operator.inputs[1]],
            parsed.subgraphs[0].tensors[operator.outputs[0]],
        ):
            tensor.shape = np.array([100_000, 10_000], np.int32)
    from tfcompress.export.packing import pack

    assert reference_samples(pack(parsed), 1000) == 2


def shared_file(model):
    import tempfile
    from pathlib import Path

    path = Path(tempfile.mkdtemp()) / "model.tflite"
    return export_tflite(model, path, mode="float32", parity_samples=0).path.read_bytes()


def test_kernels_that_cannot_run_the_file_are_named(tmp_path, monkeypatch):
    run = shared_converter().invoke

    def invoke(content, resolver):
        if resolver == "BUILTIN_REF":
            raise ExportError("LiteRT refused the file (RuntimeError).", ["no such kernel"])
        run(content, resolver)

    monkeypatch.setattr(shared_converter(), "invoke", invoke)
    result = export_tflite(tiny_cnn(), tmp_path / "model.tflite", mode="float32")
    assert [agreement.delegate for agreement in result.parity.agreements] == ["default", "none"]
    (note,) = result.parity.notes
    assert note.startswith("not run with the reference kernels") and "no such kernel" in note


def test_a_file_cut_in_half_is_an_error_of_every_reader(tmp_path):
    content = shared_file(tiny_cnn())
    half = content[: len(content) // 2]
    with pytest.raises(ModelError):
        TFLiteRunner(half)
    with pytest.raises(ModelError):
        audit_tflite(half, mode="float32")
    with pytest.raises(ExportError, match="LiteRT refused the file"):
        shared_converter().invoke(half, "AUTO")


def test_a_crash_of_the_runtime_is_an_error_and_nothing_is_written(tmp_path, monkeypatch):
    def crash(*_):
        raise ExportError("LiteRT crashed (SIGABRT) when it should run the file in LiteRT.")

    monkeypatch.setattr(gate.shared_converter(), "invoke", crash)
    with pytest.raises(ExportError, match="does not run with delegate 'default'.*\n.*SIGABRT"):
        export_tflite(tiny_cnn(), tmp_path / "model.tflite", mode="float32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "mode, io, message",
    [("int8_float_io", "int8", "one of float32 in mode 'int8_float_io'"), ("int8", "int16", "one of int8, float32")],
)
def test_a_mode_has_its_own_borders(mode, io, message, tmp_path):
    with pytest.raises(InvalidArgumentError, match=message):
        export_tflite(tiny_cnn(), tmp_path / "model.tflite", mode=mode, io=io, calibration=blobs(8)[0])


@pytest.mark.parametrize("mode, cause", [("dynamic", "fewer than 1,024 values"), ("int4", "no weight is int4")])
def test_a_file_without_the_weights_of_its_mode_is_refused(mode, cause, tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(4)])
    with pytest.raises(ExportError, match=cause):
        export_tflite(model, tmp_path / "model.tflite", mode=mode, calibration=blobs(16)[0])


def test_scales_of_four_bits_lose_least():
    rows = np.random.default_rng(0).normal(size=(5, 200)) * np.array([[1e-3], [0.1], [1.0], [5.0], [0.0]])
    scales = best_scales(rows)

    def error(scale):
        return ((np.clip(np.round(rows / scale[:, None]), -7, 7) * scale[:, None] - rows) ** 2).sum(1)

    largest = np.maximum(np.abs(rows).max(1), 1e-30)
    for share in (0.5, 0.75, 1.0):
        assert (error(scales) <= error(largest * share / 7) + 1e-12).all()
    assert (error(scales) < error(largest / 7))[:4].all()


def test_halves_of_bytes_hold_two_values():
    packed = pack_halves(np.array([1, -1, 7, -7, 3], np.int8))
    assert packed.tolist() == [0xF1, 0x97, 0x03]


def test_an_lstm_is_one_fused_operation(tmp_path):
    model = recurrent(layers.LSTM(8, name="memory"))
    nodes = len(model.get_layer("memory")._inbound_nodes)
    result = export_tflite(model, tmp_path / "model.tflite", calibration=sequences())
    assert set(result.audit.ops) == {"UNIDIRECTIONAL_SEQUENCE_LSTM", "STRIDED_SLICE", "FULLY_CONNECTED"}
    assert result.notes == ("layer 'memory' is a fused UNIDIRECTIONAL_SEQUENCE_LSTM, by way of tf_keras",)
    assert min(agreement.snr_db for agreement in result.parity.agreements) > 28
    assert len(model.get_layer("memory")._inbound_nodes) == nodes


@pytest.mark.parametrize(
    "inner, words",
    [
        ((layers.GRU(4, name="memory"),), "unrolled over its 5 steps"),
        ((layers.Bidirectional(layers.LSTM(4), name="memory"),), "fused"),
        pytest.param((layers.Bidirectional(layers.GRU(4), name="memory"),), "unrolled", marks=pytest.mark.slow),
        pytest.param((layers.LSTM(4, activation="relu", name="memory"),), "unrolled", marks=pytest.mark.slow),
        pytest.param(
            (layers.TimeDistributed(layers.Dense(4)), layers.SimpleRNN(4, name="memory")),
            "unrolled",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_recurrent_layers_are_integers_throughout(inner, words, tmp_path):
    model = recurrent(*[type(layer).from_config(layer.get_config()) for layer in inner])
    result = export_tflite(model, tmp_path / "model.tflite", calibration=sequences())
    assert result.audit.passed and result.audit.float_ops == ()
    assert any(words in note and "memory" in note for note in result.notes)
    # The converter's own file of a Bidirectional LSTM has 10 to 20 dB; see `repair.py`.
    assert min(agreement.snr_db for agreement in result.parity.agreements) > 25


def test_a_recurrent_layer_of_many_steps_says_what_to_use(tmp_path):
    model = keras.Sequential([keras.Input((300, 2)), layers.GRU(2, name="long")])
    with pytest.raises(ModelError, match="'long' .GRU.* at most 256 steps.*Use an LSTM.*Received: 300 steps"):
        export_tflite(model, tmp_path / "model.tflite", calibration=np.zeros((4, 300, 2)))


def test_modes_of_floats_keep_the_loop(tmp_path):
    result = export_tflite(recurrent(layers.GRU(4)), tmp_path / "model.tflite", mode="float32")
    assert "WHILE" in result.audit.ops and result.notes == ()


def test_a_file_without_mistakes_is_not_touched():
    content = shared_file(tiny_cnn())
    assert repair(content) is content and lstm_mismatches(flatbuffer.parse(content)) == []


def test_sparse_encoding_is_kept_only_where_it_runs_and_saves(tmp_path):
    model = wide()
    result = export_tflite(model, tmp_path / "dense.tflite", calibration=blobs(16)[0], sparse=True)
    assert any(note.startswith("sparse encoding was left out") for note in result.notes)
    assert result.parity.passed and result.path.is_file()
