"""Random inputs of a file: its own types, whole ranges, and indices of the tables that they look up."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.export import flatbuffer
from tfcompress.export.random_inputs import random_tensors
from tfcompress.export.sidecar import reference_vectors
from tfcompress.measure.tflite_runner import TFLiteRunner


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A file that looks up tables of 50 and of 7 rows, and has an int8 input."""
    many, few = keras.Input((6,), dtype="int32", name="many"), keras.Input((6,), dtype="int32", name="few")
    pixels = keras.Input((12,), name="pixels")
    x = [layers.Flatten()(layers.Embedding(rows, 4)(one)) for rows, one in ((50, many), (7, few))]
    model = keras.Model([many, few, pixels], layers.Dense(3, name="scores")(layers.Concatenate()([*x, pixels])))
    rng = np.random.default_rng(1)
    samples = {"many": rng.integers(0, 50, (40, 6)), "few": rng.integers(0, 7, (40, 6)), "pixels": rng.random((40, 12))}
    path = tmp_path_factory.mktemp("file") / "model.tflite"
    return tfc.export_tflite(model, path, calibration=samples).path.read_bytes()


def test_each_input_has_numbers_of_its_own_kind(content):
    runner = TFLiteRunner(content)
    arrays = random_tensors(content, runner.inputs, np.random.default_rng(0), samples=200)
    names = flatbuffer.input_names(flatbuffer.parse(content))
    by_name = {names[details["index"]]: array for details, array in zip(runner.inputs, arrays, strict=True)}
    assert {name: (a.shape, a.dtype.name) for name, a in by_name.items()} == {
        "many": ((200, 6), "int32"), "few": ((200, 6), "int32"), "pixels": ((200, 12), "int8"),
    }  # fmt: skip
    assert {name: (a.min(), a.max()) for name, a in by_name.items()} == {
        "many": (0, 49), "few": (0, 6), "pixels": (-128, 127),
    }  # fmt: skip
    assert np.isfinite(runner.predict_raw(arrays)).all()
    assert [a.shape[0] for a in random_tensors(content, runner.inputs, np.random.default_rng(0))] == [1, 1, 1]


def test_vectors_and_slimming_look_up_more_than_the_first_row(content, tmp_path, monkeypatch):
    described, files = reference_vectors(content, delegate="none")
    tokens = [np.frombuffer(files[entry["file"]], "<i4") for entry in described["inputs"] if entry["dtype"] == "int32"]
    assert [len(set(array.tolist())) > 3 for array in tokens] == [True, True]
    (tmp_path / "model.tflite").write_bytes(content)
    result = tfc.slim_tflite(tmp_path / "model.tflite", tmp_path / "slim.tflite")
    assert set(result.checked) >= {"default", "none"}
    seen = []

    def noted(*args, **kwargs):
        seen.append(random_tensors(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr("tfcompress.export.slim_file.random_tensors", noted)
    tfc.slim_tflite(tmp_path / "model.tflite", tmp_path / "slim.tflite")
    assert max(array.max() for arrays in seen for array in arrays if array.dtype == np.int32) > 6


def test_floats_and_truth_values(tmp_path):
    inputs = [
        {"shape": [1, 5], "dtype": np.float32, "quantization": (0.0, 0), "index": 0},
        {"shape": [1, 3], "dtype": np.bool_, "quantization": (0.0, 0), "index": 1},
    ]
    model = keras.Sequential([keras.Input((5,)), layers.Dense(2)])
    content = tfc.export_tflite(model, tmp_path / "float.tflite", mode="float32").path.read_bytes()
    floats, truths = random_tensors(content, inputs, np.random.default_rng(0), samples=100)
    assert floats.dtype == np.float32 and -1 <= floats.min() < -0.9 and 0.9 < floats.max() < 1
    assert truths.dtype == np.bool_ and truths.shape == (100, 3) and not truths.any()
