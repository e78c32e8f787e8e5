import io
import struct
import zipfile

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.export import flatbuffer
from tfcompress.export.metadata import add_metadata
from tfcompress.export.sidecar import describe_file, normalization, reference_vectors
from tfcompress.measure.tflite_runner import DELEGATES, TFLiteRunner

CLASSES = ["cat", "dog", "élan"]


class Reader:
    """A flatbuffer table read by hand, from the description of the format alone."""

    def __init__(self, content, position=None):
        self.content = content
        self.position = self.number("<I", 0) if position is None else position

    def number(self, form, at):
        return struct.unpack_from(form, self.content, at)[0]

    def at(self, field):
        vtable = self.position - self.number("<i", self.position)
        if 4 + 2 * field >= self.number("<H", vtable):
            return None
        offset = self.number("<H", vtable + 4 + 2 * field)
        return self.position + offset if offset else None

    def scalar(self, field, form):
        return None if self.at(field) is None else self.number(form, self.at(field))

    def target(self, field):
        return self.at(field) + self.number("<I", self.at(field))

    def text(self, field):
        start = self.target(field)
        return self.content[start + 4 : start + 4 + self.number("<I", start)].decode()

    def table(self, field):
        return Reader(self.content, self.target(field))

    def tables(self, field):
        if self.at(field) is None:
            return []
        start = self.target(field)
        places = [start + 4 + 4 * index for index in range(self.number("<I", start))]
        return [Reader(self.content, place + self.number("<I", place)) for place in places]

    def floats(self, field):
        start = self.target(field)
        return list(struct.unpack_from(f"<{self.number('<I', start)}f", self.content, start + 4))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An int8 file of an image classifier with inputs in [-1, 1]."""
    model = keras.Sequential([keras.Input((6, 5, 3), name="image"), layers.Flatten(), layers.Dense(3, name="classes")])
    pixels = np.random.default_rng(0).uniform(-1, 1, (50, 6, 5, 3)).astype("float32")
    return tfc.export_tflite(model, tmp_path_factory.mktemp("metadata") / "net.tflite", calibration=pixels)


def metadata_of(content):
    model = flatbuffer.parse(content)
    entries = {entry.name: bytes(model.buffers[entry.buffer].data) for entry in model.metadata}
    return entries[b"TFLITE_METADATA"]


def test_metadata_read_back(exported):
    content = exported.path.read_bytes()
    described = add_metadata(
        content, name="net", description="three animals", class_names=CLASSES, normalization=(127.5, 127.5)
    )
    found = metadata_of(described)
    assert found[4:8] == b"M001"
    root = Reader(found)
    assert (root.text(0), root.text(1), root.text(7)) == ("net", "three animals", "1.0.0")
    (graph,) = root.tables(3)
    (image,), (classes,) = graph.tables(2), graph.tables(3)
    assert (image.text(0), classes.text(0)) == ("image", "classes")
    content_of_image = image.table(3)
    assert content_of_image.scalar(0, "<B") == 2  # ImageProperties
    assert content_of_image.table(1).scalar(0, "<B") == 1  # RGB
    size = content_of_image.table(1).table(1)
    assert (size.scalar(0, "<I"), size.scalar(1, "<I")) == (5, 6)  # width, height
    (unit,) = image.tables(4)
    assert unit.scalar(0, "<B") == 1  # NormalizationOptions
    assert (unit.table(1).floats(0), unit.table(1).floats(1)) == ([127.5], [127.5])
    (labels,) = classes.tables(6)
    assert (labels.text(0), labels.scalar(2, "<B")) == ("labels.txt", 2)  # TENSOR_AXIS_LABELS
    with zipfile.ZipFile(io.BytesIO(described)) as archive:
        assert archive.namelist() == ["labels.txt"]
        assert archive.read("labels.txt").decode().splitlines() == CLASSES
    assert add_metadata(content, name="a") == add_metadata(add_metadata(content, name="b"), name="a")
    with pytest.raises(ModelError, match="associated files already"):
        add_metadata(described, name="again")


def test_metadata_read_by_the_official_schema(exported):
    official = pytest.importorskip("tensorflow_lite_support.metadata.metadata_schema_py_generated")
    content = add_metadata(exported.path.read_bytes(), name="net", class_names=CLASSES, normalization=(0.0, 255.0))
    found = official.ModelMetadataT.InitFromObj(official.ModelMetadata.GetRootAs(metadata_of(content), 0))
    (image,) = found.subgraphMetadata[0].inputTensorMetadata
    (classes,) = found.subgraphMetadata[0].outputTensorMetadata
    assert (found.name, found.minParserVersion, image.name) == (b"net", b"1.0.0", b"image")
    assert isinstance(image.content.contentProperties, official.ImagePropertiesT)
    assert list(image.processUnits[0].options.std) == [255.0]
    assert classes.associatedFiles[0].type == official.AssociatedFileType.TENSOR_AXIS_LABELS


def test_metadata_changes_no_output(exported):
    content = exported.path.read_bytes()
    described = add_metadata(content, name="net", class_names=CLASSES, normalization=(127.5, 127.5))
    inputs = np.random.default_rng(1).integers(-128, 128, (20, 6, 5, 3)).astype("int8")
    for delegate in DELEGATES:
        expected = TFLiteRunner(content, delegate=delegate).predict_raw(inputs)
        np.testing.assert_array_equal(TFLiteRunner(described, delegate=delegate).predict_raw(inputs), expected)


def test_description(exported):
    content = exported.path.read_bytes()
    found = describe_file(content, "net.tflite", class_names=CLASSES, input_range=(-1, 1))
    runner = TFLiteRunner(content)
    scale, zero_point = runner.input_details["quantization"]
    assert found["inputs"] == [
        {
            "name": "image",
            "shape": [1, 6, 5, 3],
            "dtype": "int8",
            "scale": pytest.approx(scale),
            "zero_point": zero_point,
        }
    ]
    assert (found["bytes"], found["labels"]) == (len(content), CLASSES)
    assert (found["preprocessing"]["mean"], found["preprocessing"]["std"]) == (127.5, 127.5)
    for low, high in ((0, 1), (-1, 1), (0, 255)):
        mean, std = normalization((low, high))
        np.testing.assert_allclose([(0 - mean) / std, (255 - mean) / std], [low, high])


@pytest.mark.parametrize("delegate", ["default", "reference"])
def test_vectors_are_what_the_file_gives(exported, delegate):
    content = exported.path.read_bytes()
    pixels = np.random.default_rng(2).uniform(-1, 1, (3, 6, 5, 3)).astype("float32")
    for samples in (None, pixels):
        described, files = reference_vectors(content, delegate=delegate, samples=samples)
        arrays = {
            kind: np.frombuffer(files[described[kind][0]["file"]], "i1").reshape(described[kind][0]["shape"])
            for kind in ("inputs", "outputs")
        }
        assert len(arrays["inputs"]) == described["samples"] == len(arrays["outputs"])
        expected = TFLiteRunner(content, delegate=delegate).predict_raw(arrays["inputs"])
        np.testing.assert_array_equal(arrays["outputs"], expected)
    scale, zero_point = TFLiteRunner(content).input_details["quantization"]
    np.testing.assert_allclose((arrays["inputs"] - float(zero_point)) * scale, pixels, atol=scale)
    with pytest.raises(InvalidArgumentError):
        reference_vectors(content, delegate=delegate, samples=pixels[:, :4])
    with pytest.raises(InvalidArgumentError, match="1 array"):
        reference_vectors(content, delegate=delegate, samples=[pixels, pixels])
