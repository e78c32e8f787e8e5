import io
import zipfile
import zlib

import numpy as np
import pytest
import tensorflow as tf
from helpers import shared_path

import tfcompress as tfc
from tfcompress.errors import ModelError
from tfcompress.export import flatbuffer, slim_bytes
from tfcompress.export.arena import activation_arena

REFERENCE = "models/resnet8_cifar10_int8.tflite"


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A float file: 64 inputs, 48 hidden, 16 outputs."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(64, 48)).astype("float32"), rng.normal(size=(48, 16)).astype("float32")
    bias = rng.normal(size=48).astype("float32")

    @tf.function(input_signature=[tf.TensorSpec((1, 64))])
    def network(x):
        return tf.tanh(x @ first + bias) @ second

    converter = tf.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function()], network)
    path = tmp_path_factory.mktemp("ledger") / "dense.tflite"
    path.write_bytes(converter.convert())
    return path


def test_parts_sum_to_the_file_and_hold_what_they_say(dense):
    ledger = tfc.size_ledger(dense)
    assert sum(ledger.parts.values()) == ledger.file_bytes == dense.stat().st_size
    # Each vector with the 4 bytes of its length.
    assert ledger.parts["weights"] == 4 * (64 * 48 + 48 * 16) + 2 * 4
    assert ledger.parts["biases"] % 4 == 0 and ledger.parts["biases"] >= 4 * 48 + 4
    assert ledger.parts["quantization"] < 100
    assert all(count > 0 for count in ledger.parts.values())
    assert "weights" in "".join(ledger.lines())
    # Random floats: no value twice, so the table alone takes more than the weights.
    assert ledger.huffman_bytes > 5 * (64 * 48 + 48 * 16) > ledger.entropy_bytes
    slim = dense.with_name("slim.tflite")
    slim.write_bytes(slim_bytes(dense.read_bytes()))
    smaller = tfc.size_ledger(slim)
    assert sum(smaller.parts.values()) == slim.stat().st_size
    assert (smaller.parts["weights"], smaller.parts["metadata"]) == (ledger.parts["weights"], 0)


def test_reference_file():
    path = shared_path(REFERENCE)
    ledger = tfc.size_ledger(path)
    assert sum(ledger.parts.values()) == 98_496
    kernels = 432 + 2 * 2304 + 4608 + 9216 + 512 + 18432 + 36864 + 2048 + 640
    assert ledger.parts["weights"] == kernels + 10 * 4
    assert ledger.parts["biases"] == 4 * (3 * 16 + 3 * 32 + 3 * 64 + 10) + 10 * 4
    assert ledger.parts["quantization"] > 2 * 4 * 336
    # Each kernel by itself, its values counted by NumPy.
    model = flatbuffer.parse(path.read_bytes())
    entropy = 0.0
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None and tensor.type == flatbuffer.schema.TensorType.INT8:
            share = np.unique(np.frombuffer(bytes(data), "int8"), return_counts=True)[1] / len(data)
            entropy -= len(data) * (share * np.log2(share)).sum() / 8
    assert ledger.entropy_bytes == pytest.approx(entropy)
    assert entropy < ledger.huffman_bytes < kernels
    # Two maps of 32x32x16 live at once, and a third one for the shortcut.
    assert ledger.arena.peak_bytes == 3 * 32 * 32 * 16


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_bytes_in_an_apk_are_those_of_a_zip_file(dense, method):
    ledger = tfc.size_ledger(dense)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method, compresslevel=9) as archive:
        archive.write(dense, f"assets/{dense.name}")
    size = len(target.getvalue()) - 22  # the record at the end of any archive
    if method == zipfile.ZIP_DEFLATED:
        assert ledger.apk_deflated_bytes == size
        assert ledger.apk_deflated_bytes > len(zlib.compress(dense.read_bytes(), 9))
    else:
        assert size <= ledger.apk_stored_bytes < size + 4


def test_appended_files_are_metadata(dense, tmp_path):
    path = tmp_path / "labelled.tflite"
    path.write_bytes(dense.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "cat\ndog\n")
    plain, labelled = tfc.size_ledger(dense), tfc.size_ledger(path)
    added = path.stat().st_size - dense.stat().st_size
    assert labelled.parts == plain.parts | {"metadata": plain.parts["metadata"] + added}


def test_arena_of_a_chain_is_its_largest_pair(dense):
    arena = activation_arena(dense.read_bytes())
    # 64 -> 48 -> 48 -> 16 floats: the first pair is the largest.
    assert arena.peak_bytes == arena.planned_bytes == 4 * (64 + 48)
    assert arena.num_tensors == len({64, 48, "tanh", 16})


def test_arena_is_between_what_lives_at_once_and_all():
    content = shared_path(REFERENCE).read_bytes()
    arena = activation_arena(content)
    graph = flatbuffer.parse(content).subgraphs[0]
    sizes = [int(np.prod(tensor.shape)) for tensor in graph.tensors]
    adds = [operator for operator in graph.operators if len(operator.inputs) == 2]
    assert max(sizes[op.outputs[0]] + sum(sizes[index] for index in op.inputs) for op in adds) <= arena.peak_bytes
    assert arena.peak_bytes <= arena.planned_bytes < sum(sizes)


def test_inspect_shows_it(dense):
    found = tfc.inspect(dense)
    assert found.ledger == tfc.size_ledger(dense)
    assert f"weights {found.ledger.parts['weights']:,}" in str(found).replace("\n", " ")


def test_wrong_files(tmp_path):
    with pytest.raises(ModelError, match="No TFLite file can be read"):
        tfc.size_ledger(tmp_path / "gone.tflite")
    (tmp_path / "text.tflite").write_text("text")
    with pytest.raises(ModelError, match="Not a TFLite model"):
        tfc.size_ledger(tmp_path / "text.tflite")
