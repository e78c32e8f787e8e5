import json
import re

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from helpers import shared_path
from keras import layers

import tfcompress as tfc
from tfcompress.errors import ExportError, InvalidArgumentError, ModelError
from tfcompress.export import audit_tflite, flatbuffer
from tfcompress.export.audit import constants
from tfcompress.export.converter import shared_converter
from tfcompress.export.endpoint import SIGNATURE, Endpoint
from tfcompress.graph.trace import replay, trace
from tfcompress.layers import LeftInFloat
from tfcompress.techniques.quantize import quantize_aware
from tfcompress.techniques.quantize.removal import remove_fake_quantization


@pytest.fixture(scope="module")
def convert(tmp_path_factory):
    """Converts a model of the input (4, 4, 2) as it is, with no gate."""

    def converted(model, mode="int8", io="int8"):
        folder = tmp_path_factory.mktemp("saved")
        Endpoint(model).write_saved_model(folder / "model")
        samples = np.random.default_rng(0).normal(size=(16, 4, 4, 2)).astype("float32")
        np.savez(folder / "samples.npz", **{f"input:{model.inputs[0].name}": samples})
        return shared_converter().convert(
            folder / "model", signature=SIGNATURE, mode=mode, io=io, calibration=folder / "samples.npz"
        )

    return converted


def with_operation(operation):
    inputs = keras.Input((4, 4, 2), name="image")
    return keras.Model(inputs, layers.Flatten()(operation(layers.Conv2D(3, 1, name="conv")(inputs))))


def test_a_reference_int8_file_passes():
    audit = audit_tflite(shared_path("models/resnet8_cifar10_int8.tflite").read_bytes())
    assert audit.passed and audit.float_ops == () and audit.quantize_ops == ()
    assert audit.ops == {
        "ADD": 3, "AVERAGE_POOL_2D": 1, "CONV_2D": 9, "FULLY_CONNECTED": 1, "RESHAPE": 1, "SOFTMAX": 1,
    }  # fmt: skip
    kernels = [constant for constant in audit.weights if constant.role == "kernel"]
    assert sum(int(np.prod(kernel.shape)) for kernel in kernels) == 77_360
    assert {kernel.dtype for kernel in kernels} == {"int8"}


def test_a_float_file_passes_as_float_only():
    content = shared_path("models/resnet_large_cifar10_float.tflite").read_bytes()
    assert audit_tflite(content, mode="float32").passed
    audit = audit_tflite(content, mode="int8")
    assert not audit.passed and len(audit.float_ops) == sum(audit.ops.values())
    with pytest.raises(ExportError, match="CONV_2D .* computes in float; remedy: "):
        audit.raise_if_failed("model.tflite")


@pytest.mark.parametrize(
    "name, operation, remedy",
    [
        ("ELU", layers.ELU(), "use ReLU"),
        ("SQUARE", keras.ops.square, "x \\* x"),
        ("NEG", keras.ops.negative, "0.0 - x"),
    ],
)
def test_operations_that_stay_float_are_named_with_their_remedy(convert, name, operation, remedy):
    audit = audit_tflite(convert(with_operation(operation)))
    assert len(audit.float_ops) == 1 and audit.float_ops[0].startswith(f"{name} (float32 -> float32)")
    assert len(audit.quantize_ops) == 2
    # The cause comes before the conversions that surround it.
    assert audit.findings[0].startswith(name) and "DEQUANTIZE" in audit.findings[-2] + audit.findings[-1]
    with pytest.raises(ExportError, match=rf"{name} .*computes in float; remedy: .*{remedy}"):
        audit.raise_if_failed()


def test_conversions_are_expected_at_float_borders_only(convert):
    content = convert(with_operation(layers.ReLU()), io="float32")
    audit = audit_tflite(content, io="float32")
    assert audit.passed and len(audit.quantize_ops) == 2
    assert len(audit_tflite(content, io="int8").findings) == 4  # both conversions, the input and the output
    assert not audit_tflite(convert(with_operation(layers.ReLU())), io="float32").passed


def test_custom_operations_are_no_part_of_the_runtime(convert):
    model = flatbuffer.parse(convert(with_operation(layers.ReLU()), mode="float32"))
    for code in model.operatorCodes:
        if flatbuffer.op_name(code) == "RESHAPE":
            code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
            code.customCode = b"FlexReshape"
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    audit = audit_tflite(bytes(builder.Output()), mode="float32")
    assert audit.ops["FlexReshape"] == 1 and len(audit.flex_ops) == 1
    assert "FlexReshape" in audit.findings[0] and "no operation of the LiteRT runtime" in audit.findings[0]


def test_zeros_of_a_kernel_are_counted(convert):
    model = with_operation(layers.ReLU())
    kernel = np.arange(1, 7, dtype="float32").reshape(1, 1, 2, 3)
    kernel[0, 0, 0, :] = 0
    model.get_layer("conv").kernel.assign(kernel)
    for mode in ("int8", "float32"):
        found = audit_tflite(convert(model, mode), mode=mode).weights
        (weights,) = [constant for constant in found if constant.role == "kernel"]
        assert (weights.op, weights.shape, weights.dtype, weights.zeros) == ("CONV_2D", (3, 1, 1, 2), mode, 0.5)
        assert weights.num_bytes == (6 if mode == "int8" else 24)


def test_int4_values_are_counted_in_halves_of_bytes(convert):
    model = flatbuffer.parse(convert(with_operation(layers.ReLU())))
    (kernel,) = [tensor for tensor in model.subgraphs[0].tensors if list(tensor.shape) == [3, 1, 1, 2]]
    kernel.type = schema.TensorType.INT4
    model.buffers[kernel.buffer].data = np.array([0x10, 0x0F, 0x00], np.uint8)  # 0, 1, -1, 0, 0, 0
    (found,) = [constant for constant in constants(model) if constant.role == "kernel"]
    assert (found.dtype, found.zeros) == ("int4", pytest.approx(4 / 6))


def test_result_fits_json(convert):
    audit = audit_tflite(convert(with_operation(layers.ReLU())))
    assert json.loads(json.dumps(audit.to_dict()))["passed"] is True


def test_wrong_arguments_are_refused():
    with pytest.raises(InvalidArgumentError, match="`mode` must be one of"):
        audit_tflite(b"", mode="int16")
    with pytest.raises(InvalidArgumentError, match="`io` must be one of"):
        audit_tflite(b"", io="uint8")
    with pytest.raises(ModelError, match="Not a TFLite model: 3 bytes"):
        audit_tflite(b"abc")


def rounded_around(*operations, allow_float):
    """A quantization-aware model with operations between its layers that stay in float, and samples for it."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2), name="image")
    x = inputs
    for number, operation in enumerate(operations):
        x = operation(layers.Conv2D(4, 3, padding="same", name=f"conv_{number}")(x))
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))
    samples = np.random.default_rng(0).normal(size=(64, 8, 8, 2)).astype("float32")
    return quantize_aware(model, samples, allow_float=allow_float), samples


def steps(x):
    return layers.LSTM(8, return_sequences=True, name="steps")(layers.Reshape((8, 32))(x))


@pytest.mark.parametrize(
    "operation, pattern, some",
    [
        (layers.GroupNormalization(2, name="group"), "group", {"NEG", "SQUARE", "RSQRT"}),
        # Operations of `keras.ops` leave no name in the file, and a loop has a graph of its own.
        (lambda x: keras.ops.std(keras.ops.cos(x), axis=1), "[cs][ot][sd]*", {"COS", "SQRT"}),
        (steps, "steps", {"WHILE", "TANH", "LOGISTIC"}),
    ],
)
def test_what_was_left_in_float_passes_and_is_named(operation, pattern, some, tmp_path):
    aware, samples = rounded_around(operation, allow_float=[pattern])
    aware.save(tmp_path / "aware.keras")
    loaded = keras.models.load_model(tmp_path / "aware.keras")
    result = tfc.export_tflite(loaded, tmp_path / "model.tflite", calibration=samples, parity_samples=16)
    audit = result.audit
    assert audit.passed and some <= {line.split()[0] for line in audit.left_in_float}
    assert len(audit.float_ops) == len(audit.left_in_float)
    assert all(
        re.search(r" computes in float, since layer '(group|cos|std|steps)", line) for line in audit.left_in_float
    )
    # Nobody told the audit: all of it is a finding.
    plain = audit_tflite(result.path.read_bytes())
    assert sum("computes in float; remedy" in finding for finding in plain.findings) == len(audit.float_ops)
    assert audit.to_dict()["left_in_float"] == audit.left_in_float


def test_what_was_not_left_in_float_still_fails(tmp_path):
    names = ("one", "two")
    operations = [layers.ELU(name="one"), lambda x: layers.Conv2D(2, 1)(layers.ELU(name="two")(x))]
    aware, samples = rounded_around(*operations, allow_float=names)
    result = tfc.export_tflite(aware, tmp_path / "model.tflite", calibration=samples, parity_samples=0)
    assert [line.rpartition("layer ")[2] for line in result.audit.left_in_float] == [
        "'one' was left in float", "'two' was left in float",
    ]  # fmt: skip

    def without_mark(index, call, args, kwargs):
        return args[0] if call.operation.name == "two_in_float" else call.operation(*args, **kwargs)

    with pytest.raises(ExportError, match="ELU .*two_1/Elu' computes in float; remedy") as failed:
        tfc.export_tflite(replay(trace(aware), without_mark), tmp_path / "other.tflite", calibration=samples)
    # The operation and the conversions around it; those of the other one are as they should be.
    assert [cause.split()[0] for cause in failed.value.causes] == ["ELU", "DEQUANTIZE", "QUANTIZE"]
    assert not (tmp_path / "other.tflite").exists()
    assert not any(isinstance(layer, LeftInFloat) for layer in remove_fake_quantization(aware).layers)


def test_a_border_in_float_is_to_be_asked_for(tmp_path):
    aware, samples = rounded_around(layers.ReLU(), allow_float=["head"])
    with pytest.raises(ExportError, match="output 'head' is float32 where int8 was asked for; .*io='float32'"):
        tfc.export_tflite(aware, tmp_path / "model.tflite", calibration=samples)
    result = tfc.export_tflite(aware, tmp_path / "model.tflite", calibration=samples, io="float32")
    assert len(result.audit.left_in_float) == 1 and "'head' was left in float" in result.audit.left_in_float[0]
