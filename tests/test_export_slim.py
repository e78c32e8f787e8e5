import copy
import zipfile

import flatbuffers
import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from helpers import shared_path
from keras import layers

import tfcompress as tfc
from tfcompress.errors import ExportError, InvalidArgumentError, ModelError
from tfcompress.export import flatbuffer, slim_bytes, slim_file, slim_tflite
from tfcompress.export.converter import shared_converter
from tfcompress.export.endpoint import SIGNATURE, Endpoint

DELEGATES = [
    OpResolverType.AUTO,
    OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    OpResolverType.BUILTIN_REF,
]
REFERENCE = "models/resnet8_cifar10_int8.tflite"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A file with two inputs and two outputs, as the converter writes it."""
    first, second = keras.Input((4,), name="zeta"), keras.Input((6,), name="alpha")
    merged = layers.Concatenate()([layers.Dense(4)(first), layers.Dense(4)(second)])
    model = keras.Model([first, second], [layers.Dense(3, name="one")(merged), layers.Dense(2, name="another")(merged)])
    folder = tmp_path_factory.mktemp("saved")
    Endpoint(model).write_saved_model(folder / "model")
    return shared_converter().convert(folder / "model", signature=SIGNATURE, mode="float32")


def packed(model):
    """A model as bytes, by the plain builder."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(copy.deepcopy(model).Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def quantized(kernel, *, depthwise=False):
    """An unslimmed int8 file of one convolution with this kernel, and then a dense layer."""
    layer = layers.DepthwiseConv2D(3) if depthwise else layers.Conv2D(kernel.shape[-1], 3, activation="relu")
    model = keras.Sequential([keras.Input((8, 8, kernel.shape[2])), layer, layers.Flatten(), layers.Dense(3)])
    bias = np.linspace(-0.5, 0.5, layer.bias.shape[0])
    layer.set_weights([kernel, bias])
    rng = np.random.default_rng(0)
    # Signs only: all channels have the same largest value, so the same scale.
    model.layers[-1].kernel.assign(rng.choice([-0.25, 0.25], model.layers[-1].kernel.shape))
    return model


def convert_int8(model, tmp_path):
    pixels = np.random.default_rng(1).uniform(-1, 1, (20, *model.input_shape[1:])).astype("float32")
    return tfc.export_tflite(model, tmp_path / "plain.tflite", calibration=pixels, slim=False).path


def scales(content):
    """Numbers of scales of all constants of 8 and 32 bits that have any."""
    model = flatbuffer.parse(content)
    tensors = model.subgraphs[0].tensors
    constants = [tensor for tensor in tensors if model.buffers[tensor.buffer].data is not None]
    found = [tensor.quantization.scale for tensor in constants if tensor.quantization is not None]
    return sorted(len(scale) for scale in found if scale is not None)


def interpreter(content, delegate):
    made = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=delegate)
    made.allocate_tensors()
    return made


def run(made, x):
    made.set_tensor(made.get_input_details()[0]["index"], x)
    made.invoke()
    return made.get_tensor(made.get_output_details()[0]["index"])


def same_bits(before, after, inputs):
    for delegate in DELEGATES:
        first, second = interpreter(before, delegate), interpreter(after, delegate)
        for x in inputs:
            np.testing.assert_array_equal(run(first, x), run(second, x))


def test_reference_file_shrinks_and_stays_bit_identical():
    content = shared_path(REFERENCE).read_bytes()
    slim = slim_bytes(content)
    assert len(slim) < 86_100
    same_bits(content, slim, np.random.default_rng(0).integers(-128, 128, (40, 1, 32, 32, 3)).astype("int8"))


@pytest.mark.slow
def test_reference_file_on_a_thousand_images(tmp_path):
    data = tfc.load_dataset("cifar10", data_dir=shared_path("tfds"), download=False, input_range=(0, 255))
    result = slim_tflite(shared_path(REFERENCE), tmp_path / "slim.tflite")
    assert result.bytes_before == 98_496
    assert result.bytes_after == (tmp_path / "slim.tflite").stat().st_size <= 87_000
    images = np.concatenate([x for x, _ in data.batches("test", 100, limit=1000).as_numpy_iterator()])
    assert len(images) == 1000
    inputs = np.round(images - 128).astype("int8")[:, None]
    same_bits(shared_path(REFERENCE).read_bytes(), (tmp_path / "slim.tflite").read_bytes(), inputs)


@pytest.mark.parametrize("depthwise", [False, True])
def test_equal_scales_of_channels_become_one(depthwise, tmp_path):
    rng = np.random.default_rng(3)
    kernel = rng.uniform(-1, 1, (3, 3, 4, 1) if depthwise else (3, 3, 2, 4))
    kernel[0, 0, 0] = 1.0
    kernel[0, 0, :, 0] = 1.0
    content = convert_int8(quantized(kernel, depthwise=depthwise), tmp_path).read_bytes()
    slim = slim_bytes(content)
    assert scales(content)[-2:] == [4, 4]
    assert scales(slim)[-1] == 1
    shape = (300, *interpreter(content, DELEGATES[0]).get_input_details()[0]["shape"])
    same_bits(content, slim, rng.integers(-128, 128, shape).astype("int8"))


def test_scales_that_differ_stay(tmp_path):
    kernel = np.random.default_rng(3).uniform(-1, 1, (3, 3, 2, 4))
    content = convert_int8(quantized(kernel), tmp_path).read_bytes()
    assert 4 in scales(slim_bytes(content))


def test_scales_stay_where_the_inputs_are_floats():
    # The converter leaves kernels of less than 1,024 values in float.
    converter = tf.lite.TFLiteConverter.from_keras_model(quantized(np.ones((3, 3, 32, 8))))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    content = converter.convert()
    assert 8 in scales(content)
    assert scales(slim_bytes(content)) == scales(content)


def test_unused_tensors_and_operator_codes_go(converted):
    model = flatbuffer.parse(converted)
    spare = copy.deepcopy(model.subgraphs[0].tensors[0])
    spare.name = b"spare"
    graph = model.subgraphs[0]
    graph.tensors.insert(0, spare)
    for holder in [graph, *graph.operators]:
        for field in ("inputs", "outputs"):
            indices = getattr(holder, field)
            setattr(holder, field, np.where(indices >= 0, indices + 1, indices).astype("int32"))
    for entry in [*model.signatureDefs[0].inputs, *model.signatureDefs[0].outputs]:
        entry.tensorIndex += 1
    model.operatorCodes.insert(0, copy.deepcopy(model.operatorCodes[0]))
    model.operatorCodes[0].builtinCode = 99
    for operator in graph.operators:
        operator.opcodeIndex += 1
    assert slim_bytes(packed(model)) == slim_bytes(converted)


def test_buffers_behind_the_flatbuffer_are_moved_into_it(converted):
    model = flatbuffer.parse(converted)
    buffer = max((entry for entry in model.buffers if entry.data is not None), key=lambda entry: len(entry.data))
    data, buffer.data, buffer.offset, buffer.size = bytes(buffer.data), None, 1 << 20, len(bytes(buffer.data))
    buffer.offset = -(-len(packed(model)) // 16) * 16
    large = packed(model).ljust(buffer.offset, b"\0") + data
    assert slim_bytes(large) == slim_bytes(converted)
    with pytest.raises(ModelError, match="truncated"):
        slim_bytes(large[:-8])


def test_file_is_written_with_what_was_removed(converted, tmp_path):
    path, target = tmp_path / "model.tflite", tmp_path / "out" / "slim.tflite"
    path.write_bytes(converted)
    result = tfc.slim_tflite(path, target)
    assert target.read_bytes() == slim_bytes(converted)
    assert path.read_bytes() == converted
    assert (result.bytes_before, result.bytes_after) == (len(converted), target.stat().st_size)
    assert result.gzip_bytes_after < result.gzip_bytes_before
    assert result.checked == ("default", "none", "reference")
    names = [
        sum(bool(t.name) for t in flatbuffer.parse(c).subgraphs[0].tensors) for c in (converted, target.read_bytes())
    ]
    assert dict(result.removed)["tensor names"] == names[0] - names[1] > 0


def test_a_difference_is_an_error_and_no_file(converted, tmp_path, monkeypatch):
    def spoiled(content):
        model = flatbuffer.parse(content)
        kernel = max((buffer for buffer in model.buffers if buffer.data is not None), key=lambda b: len(b.data))
        kernel.data = kernel.data[::-1].copy()
        return packed(model)

    monkeypatch.setattr(slim_file, "slim_bytes", spoiled)
    (tmp_path / "model.tflite").write_bytes(converted)
    with pytest.raises(ExportError, match="gives other outputs with delegate default"):
        slim_tflite(tmp_path / "model.tflite", tmp_path / "slim.tflite")
    assert not (tmp_path / "slim.tflite").exists()


def test_wrong_paths(converted, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(converted)
    (tmp_path / "link.tflite").symlink_to(path)
    for same in (path, tmp_path / "link.tflite", tmp_path / "." / "model.tflite"):
        with pytest.raises(InvalidArgumentError, match="another file than"):
            slim_tflite(path, same)
    with pytest.raises(InvalidArgumentError, match="ends in .tflite"):
        slim_tflite(path, tmp_path / "slim.bin")
    with pytest.raises(ModelError, match="No TFLite file can be read at .*gone"):
        slim_tflite(tmp_path / "gone.tflite", tmp_path / "slim.tflite")
    (tmp_path / "cut.tflite").write_bytes(converted[: len(converted) // 2])
    with pytest.raises(ModelError):
        slim_tflite(tmp_path / "cut.tflite", tmp_path / "slim.tflite")
    assert not (tmp_path / "slim.tflite").exists()


def test_constants_and_operations_are_the_same(converted):
    before, after = flatbuffer.parse(converted), flatbuffer.parse(slim_bytes(converted))
    names = [
        [flatbuffer.op_name(model.operatorCodes[op.opcodeIndex]) for op in model.subgraphs[0].operators]
        for model in (before, after)
    ]
    assert names[0] == names[1]
    for old, new in zip(before.subgraphs[0].tensors, after.subgraphs[0].tensors, strict=True):
        old_data, new_data = before.buffers[old.buffer].data, after.buffers[new.buffer].data
        assert (old.type, list(old.shape)) == (new.type, list(new.shape))
        assert (b"" if old_data is None else bytes(old_data)) == (b"" if new_data is None else bytes(new_data))


def test_signature_stays_and_names_its_tensors(converted):
    slim = slim_bytes(converted)
    assert Interpreter(model_content=slim).get_signature_list() == {
        SIGNATURE: {"inputs": ["alpha", "zeta"], "outputs": ["another", "one"]}
    }
    model = flatbuffer.parse(slim)
    named = {tensor.name.decode() for tensor in model.subgraphs[0].tensors if tensor.name}
    assert named == {"alpha", "zeta", "another", "one"}
    runner = Interpreter(model_content=slim).get_signature_runner(SIGNATURE)
    original = Interpreter(model_content=converted).get_signature_runner(SIGNATURE)
    inputs = {"alpha": np.ones((1, 6), "float32"), "zeta": np.full((1, 4), 2, "float32")}
    for name, values in original(**inputs).items():
        np.testing.assert_array_equal(runner(**inputs)[name], values)


def test_buffers_stay_aligned(converted):
    slim = slim_bytes(converted)
    model = flatbuffer.parse(slim)
    start = np.frombuffer(slim, np.uint8).__array_interface__["data"][0]
    for buffer in model.buffers:
        if buffer.data is not None:
            assert buffer.data.size == 0 or bytes(buffer.data) in slim
            offset = buffer.data.__array_interface__["data"][0] - start
            assert offset % 16 == 0


def test_slimming_twice_changes_nothing(converted):
    once = slim_bytes(converted)
    assert len(once) < len(converted)
    assert slim_bytes(once) == once


def test_other_metadata_is_kept(converted):
    model = flatbuffer.parse(converted)
    model.metadata[0].name = b"written_by_hand"
    kept = flatbuffer.parse(slim_bytes(packed(model))).metadata
    assert [entry.name for entry in kept] == [b"written_by_hand"]


def test_appended_files_are_not_lost_silently(converted, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(converted)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "cat\ndog\n")
    with pytest.raises(ModelError, match="carries associated files"):
        slim_bytes(path.read_bytes())


@pytest.mark.parametrize("content", [b"", b"no flatbuffer at all", b"\x20\x00\x00\x00TFL3" + b"\xff" * 64])
def test_other_bytes_are_refused(content):
    with pytest.raises(ModelError, match="[Nn]ot a"):
        slim_bytes(content)
