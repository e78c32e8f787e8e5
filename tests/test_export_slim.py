import zipfile

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from helpers import shared_path
from keras import layers

from tfcompress.errors import ModelError
from tfcompress.export import flatbuffer, slim_tflite
from tfcompress.export.converter import shared_converter
from tfcompress.export.endpoint import SIGNATURE, Endpoint

DELEGATES = [OpResolverType.AUTO, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A file with two inputs and two outputs, as the converter writes it."""
    first, second = keras.Input((4,), name="zeta"), keras.Input((6,), name="alpha")
    merged = layers.Concatenate()([layers.Dense(4)(first), layers.Dense(4)(second)])
    model = keras.Model([first, second], [layers.Dense(3, name="one")(merged), layers.Dense(2, name="another")(merged)])
    folder = tmp_path_factory.mktemp("saved")
    Endpoint(model).write_saved_model(folder / "model")
    return shared_converter().convert(folder / "model", signature=SIGNATURE, mode="float32")


def interpreter(content, delegate):
    made = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=delegate)
    made.allocate_tensors()
    return made


def run(made, x):
    made.set_tensor(made.get_input_details()[0]["index"], x)
    made.invoke()
    return made.get_tensor(made.get_output_details()[0]["index"])


def test_reference_file_shrinks_and_stays_bit_identical():
    content = shared_path("models/resnet8_cifar10_int8.tflite").read_bytes()
    slim = slim_tflite(content)
    assert len(slim) < 88_000
    inputs = np.random.default_rng(0).integers(-128, 128, (200, 1, 32, 32, 3)).astype("int8")
    for delegate in DELEGATES:
        before, after = interpreter(content, delegate), interpreter(slim, delegate)
        for x in inputs:
            np.testing.assert_array_equal(run(before, x), run(after, x))


def test_constants_and_operations_are_the_same(converted):
    before, after = flatbuffer.parse(converted), flatbuffer.parse(slim_tflite(converted))
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
    slim = slim_tflite(converted)
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
    slim = slim_tflite(converted)
    model = flatbuffer.parse(slim)
    start = np.frombuffer(slim, np.uint8).__array_interface__["data"][0]
    for buffer in model.buffers:
        if buffer.data is not None:
            assert buffer.data.size == 0 or bytes(buffer.data) in slim
            offset = buffer.data.__array_interface__["data"][0] - start
            assert offset % 16 == 0


def test_slimming_twice_changes_nothing(converted):
    once = slim_tflite(converted)
    assert len(once) < len(converted)
    assert slim_tflite(once) == once


def test_other_metadata_is_kept(converted):
    model = flatbuffer.parse(converted)
    model.metadata[0].name = b"written_by_hand"
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    kept = flatbuffer.parse(slim_tflite(bytes(builder.Output()))).metadata
    assert [entry.name for entry in kept] == [b"written_by_hand"]


def test_appended_files_are_not_lost_silently(converted, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(converted)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "cat\ndog\n")
    with pytest.raises(ModelError, match="carries associated files"):
        slim_tflite(path.read_bytes())


@pytest.mark.parametrize("content", [b"", b"no flatbuffer at all", b"\x20\x00\x00\x00TFL3" + b"\xff" * 64])
def test_other_bytes_are_refused(content):
    with pytest.raises(ModelError, match="[Nn]ot a"):
        slim_tflite(content)
