import json
import shutil
import subprocess
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import blob_dataset, shared_path, tiny_mlp
from keras import layers

import tfcompress as tfc
from tfcompress.errors import ExportError, InvalidArgumentError, ModelError
from tfcompress.export.android import android_files
from tfcompress.export.edgetpu import edgetpu_violations
from tfcompress.export.microcontroller import arena_estimate, resolver_methods
from tfcompress.measure.tflite_runner import TFLiteRunner

CLASSES = ["cat", "dog", '$élan"']


def small(*, classes=3):
    return keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Conv2D(4, 3, activation="relu"),
            layers.DepthwiseConv2D(3),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(classes, name="classes"),
        ]
    )


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).uniform(0, 1, (50, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def exported(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("bundle") / "pet net.tflite"
    return tfc.export_tflite(small(), path, calibration=pixels, class_names=CLASSES)


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """A float file with an operation that neither target has."""

    @tf.function(input_signature=[tf.TensorSpec((2, 4), name="a"), tf.TensorSpec((2, 4), name="b")])
    def network(a, b):
        return {"out": tf.math.atan2(a, b)}

    converter = tf.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function()], network)
    path = tmp_path_factory.mktemp("floats") / "floats.tflite"
    path.write_bytes(converter.convert())
    return path


def check_vectors(folder, stem, delegate):
    """The outputs in the folder are what the file in the folder gives for its inputs."""
    described = json.loads((folder / f"{stem}.json").read_text())
    vectors = described["vectors"]
    arrays = {
        kind: [np.fromfile(folder / entry["file"], entry["dtype"]).reshape(entry["shape"]) for entry in vectors[kind]]
        for kind in ("inputs", "outputs")
    }
    runner = TFLiteRunner(folder / f"{stem}.tflite", delegate=delegate)
    np.testing.assert_array_equal(runner.predict_raw(arrays["inputs"]), arrays["outputs"][0])
    return described


def test_android(exported, pixels, tmp_path):
    folder = tmp_path / "android"
    bundle = tfc.write_bundle(exported, folder, "android", input_range=(0, 1), samples=pixels[:2])
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == list(bundle.files)
    described = check_vectors(folder, "pet net", "default")
    assert described["labels"] == CLASSES == (folder / "pet net.labels.txt").read_text().splitlines()
    with zipfile.ZipFile(folder / "pet net.tflite") as archive:
        assert archive.read("pet net.labels.txt").decode().splitlines() == CLASSES
    kotlin = (folder / "PetNet.kt").read_text()
    scale, zero_point = TFLiteRunner(exported.path).input_details["quantization"]
    written = kotlin.partition("quantize(input0, ")[2].partition(")")[0].split("f, ")
    assert np.float32(written[0]) == np.float32(scale) and int(written[1]) == zero_point
    assert 'inputs.getValue("image").writeInt8(' in kotlin
    assert kotlin.count("{") == kotlin.count("}") and kotlin.count("(") == kotlin.count(")")
    assert "litert:2" in (folder / "README.md").read_text()


def test_android_with_float_inputs_and_several(floats, tmp_path):
    tfc.write_bundle(floats, tmp_path / "a", "android")
    kotlin = (tmp_path / "a" / "Floats.kt").read_text()
    assert "fun run(input0: FloatArray, input1: FloatArray): FloatArray" in kotlin
    assert "quantize(" not in kotlin


def test_android_refuses_types_that_its_kotlin_does_not_know():
    tensor = {"name": "x", "shape": [1, 2], "dtype": "int16", "scale": 0.5, "zero_point": 0}
    described = {"file": "a.tflite", "bytes": 1, "inputs": [tensor], "outputs": [tensor], "preprocessing": None}
    with pytest.raises(ExportError, match="'x' is int16; remedy: int8 or float32"):
        android_files(described, "a", None)


def test_kotlin_of_odd_names():
    tensor = {"name": 'a$b"c', "shape": [1, 2], "dtype": "float32", "scale": None, "zero_point": None}
    described = {"file": "1$.tflite", "bytes": 1, "inputs": [tensor], "outputs": [tensor], "preprocessing": None}
    kotlin = android_files(described, "1$", None)["Model1.kt"]
    assert r'createInputBuffer("a\$b\"c")' in kotlin
    assert r'"1\$.tflite"' in kotlin


@pytest.mark.parametrize(("language", "standard"), [("c", "c11"), ("c++", "c++11"), ("c++", "c++20")])
def test_microcontroller_array_compiles_and_holds_the_file(exported, tmp_path, language, standard):
    compiler = shutil.which("g++" if language == "c++" else "gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is at hand")
    folder = tmp_path / "mcu"
    tfc.write_bundle(exported, folder, "microcontroller")
    check_vectors(folder, "pet_net", "reference")
    (tmp_path / "main.cc").write_text(
        '#include <stdint.h>\n#include <stdio.h>\n#include "pet_net_model.h"\n'
        "int main(void) {\n"
        "  if ((uintptr_t)pet_net_model % 16) return 1;\n"
        "  return fwrite(pet_net_model, 1, pet_net_model_len, stdout) != pet_net_model_len;\n}\n"
    )
    program = tmp_path / "program"
    sources = [str(folder / "pet_net_model.cc"), str(tmp_path / "main.cc")]
    flags = ["-Wall", "-Wextra", "-Werror", f"-std={standard}", "-I", str(folder), "-o", str(program)]
    built = subprocess.run([compiler, *flags, "-x", language, *sources], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    read_back = subprocess.run([str(program)], capture_output=True, check=True).stdout
    assert read_back == exported.path.read_bytes() == (folder / "pet_net.tflite").read_bytes()


def test_microcontroller_operations_and_arena(exported, floats, tmp_path):
    content = exported.path.read_bytes()
    expected = ["AddConv2D", "AddDepthwiseConv2D", "AddFullyConnected", "AddMaxPool2D", "AddReshape"]
    assert resolver_methods(content) == expected
    arena = arena_estimate(content)
    # The first convolution holds its input and its output.
    assert arena % 1024 == 0 and 8 * 8 * 3 + 6 * 6 * 4 < arena < 16 * 1024
    tfc.write_bundle(exported, tmp_path / "mcu", "microcontroller")
    header = (tmp_path / "mcu" / "pet_net_ops.h").read_text()
    assert "MicroMutableOpResolver<5>" in header and f"kPetNetArenaBytes = {arena};" in header
    assert all(f"resolver.{method}()" in header for method in expected)
    with pytest.raises(ExportError, match="no operation ATAN2; remedy"):
        tfc.write_bundle(floats, tmp_path / "floats", "microcontroller")
    assert not (tmp_path / "floats").exists()


def test_edgetpu(exported, floats, pixels, tmp_path):
    assert edgetpu_violations(exported.path.read_bytes()) == ()
    tfc.write_bundle(exported, tmp_path / "tpu", "edgetpu")
    check_vectors(tmp_path / "tpu", "pet net", "reference")
    found = "\n".join(edgetpu_violations(floats.read_bytes()))
    for reason in ("ATAN2 (operation", "no such operation", "a tensor of float32"):
        assert reason in found
    with pytest.raises(ExportError, match="breaks rules of the Edge TPU") as caught:
        tfc.write_bundle(floats, tmp_path / "floats", "edgetpu")
    assert caught.value.causes == edgetpu_violations(floats.read_bytes())
    assert all("remedy: " in cause for cause in caught.value.causes)


def test_edgetpu_rules_of_single_operations(pixels, tmp_path):
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, strides=2, activation="relu")(inputs)
    x = layers.Softmax()(keras.ops.mean(x, axis=-1, keepdims=True) + x)
    model = keras.Model(inputs, x[:, ::2])
    path = tfc.export_tflite(model, tmp_path / "rules.tflite", calibration=pixels, parity_samples=0).path
    found = "\n".join(edgetpu_violations(path.read_bytes()))
    assert "averages channels whose number is no multiple of 4" in found
    assert "has a stride that is not 1" in found
    assert "SOFTMAX (operation" in found and "more than one dimension" in found


def test_edgetpu_names_the_free_batch_of_the_reference_file():
    found = edgetpu_violations(shared_path("models/resnet8_cifar10_int8.tflite").read_bytes())
    assert found and all("unknown size [-1, " in line for line in found)


def test_wrong_arguments(exported, tmp_path):
    with pytest.raises(InvalidArgumentError, match="`target` must be one of"):
        tfc.write_bundle(exported, tmp_path / "a", "ios")
    with pytest.raises(InvalidArgumentError, match="lower one first"):
        tfc.write_bundle(exported, tmp_path / "a", input_range=(1, 0))
    with pytest.raises(InvalidArgumentError, match="3 names of one line"):
        tfc.write_bundle(exported, tmp_path / "a", class_names=["cat"])
    with pytest.raises(ModelError, match="No TFLite file can be read"):
        tfc.write_bundle(tmp_path / "gone.tflite", tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(InvalidArgumentError, match="a new or empty folder"):
        tfc.write_bundle(exported, tmp_path / "full")
    assert not (tmp_path / "a").exists()
    (tmp_path / "empty").mkdir()
    assert (tfc.write_bundle(exported, tmp_path / "empty").folder / "pet net.tflite").exists()


def test_target_of_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("export: [{tflite: {mode: float32, target: microcontroller}}]\n")
    earlier = tmp_path / "run" / "export" / "model_float32_microcontroller" / "of_an_earlier_run.txt"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("old")
    result = tfc.compress(tiny_mlp(softmax=True), blob_dataset(shape=(8,)), recipe, tmp_path / "run", progress=False)
    path = result.exports["float32"]
    assert (earlier.parent / "model_float32.tflite").read_bytes() == path.read_bytes()
    assert "model_float32_ops.h" in {file.name for file in earlier.parent.iterdir()}
    assert not earlier.exists()
    described = json.loads(path.with_suffix(".json").read_text())
    assert (described["bytes"], described["inputs"][0]["shape"]) == (path.stat().st_size, [1, 8])
