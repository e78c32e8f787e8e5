"""`load`: every kind of path and object becomes a functional model that predicts the same."""

import shutil
import subprocess
import sys
import warnings

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from absl import logging
from helpers import shared_path
from keras import layers

import tfcompress
from tfcompress.bridge.load import load, load_with_notes
from tfcompress.bridge.recognize import Kind, recognize
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.trace import trace

TOLERANCE = 1e-5


def images(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(count, 8, 8, 3)).astype("float32")


def network(library, hard: bool = False):
    """The same small network in either Keras, with weights that are no longer the initial ones."""
    inputs = library.Input((8, 8, 3), name="image")
    x = library.layers.Conv2D(4, 3, strides=2, name="conv")(inputs)
    x = library.layers.BatchNormalization(name="norm")(x)
    x = library.layers.Activation("hard_sigmoid" if hard else "relu", name="act")(x)
    x = library.layers.GlobalAveragePooling2D(name="pool")(x)
    x = library.layers.Dropout(0.5, name="drop")(x)
    model = library.Model(inputs, library.layers.Dense(5, activation="softmax", name="classes")(x), name="net")
    rng = np.random.default_rng(1)
    for layer in model.layers:
        layer.set_weights([rng.uniform(0.1, 0.9, size=np.shape(w)).astype(w.dtype) for w in layer.get_weights()])
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The network in files of all kinds."""
    folder = tmp_path_factory.mktemp("models")
    ours, theirs = network(keras), network(tf_keras)
    ours.save(folder / "k3.keras")
    ours.save(folder / "k3.h5")
    ours.save(folder / "k3", zipped=False)
    ours.save_weights(folder / "k3.weights.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save(folder / "tk.keras")
        theirs.save(folder / "tk.h5")
        theirs.save(folder / "tk", save_format="tf")
        network(tf_keras, hard=True).save(folder / "hard.h5")
    theirs.save_weights(folder / "tk.weights.h5")
    theirs.save_weights(folder / "legacy.h5")
    theirs.save_weights(str(folder / "checkpoint"))
    (folder / "alone").mkdir()
    for part in folder.glob("checkpoint.*"):
        shutil.copy(part, folder / "alone")
    return folder


def largest_difference(model, other) -> float:
    return float(np.max(np.abs(np.asarray(model(images())) - np.asarray(other(images())))))


MODELS = {
    "k3.keras": (Kind.KERAS_ARCHIVE, ""),
    "k3.h5": (Kind.H5_MODEL, ""),
    "k3": (Kind.KERAS_FOLDER, ""),
    "tk.keras": (Kind.TF_KERAS_ARCHIVE, "read with tf_keras"),
    "tk.h5": (Kind.TF_KERAS_H5_MODEL, "read with tf_keras"),
    "tk": (Kind.TF_KERAS_SAVED_MODEL, "SavedModel of Keras 2"),
}
WEIGHTS = {
    "k3.weights.h5": Kind.H5_WEIGHTS,
    "tk.weights.h5": Kind.H5_WEIGHTS,
    "legacy.h5": Kind.LEGACY_H5_WEIGHTS,
    "checkpoint": Kind.CHECKPOINT,
    "checkpoint.index": Kind.CHECKPOINT,
    "alone": Kind.CHECKPOINT,
    "tk/variables/variables": Kind.CHECKPOINT,
}


@pytest.mark.parametrize("name", MODELS)
def test_files_of_all_kinds(name, folder):
    kind, note = MODELS[name]
    assert recognize(folder / name).kind is kind
    model, notes = load_with_notes(folder / name)
    assert hasattr(model, "operations") and not model.compiled
    assert note in " ".join(notes) and bool(notes) == bool(note)
    assert largest_difference(model, network(keras)) < TOLERANCE
    assert largest_difference(model, network(tf_keras)) < TOLERANCE


@pytest.mark.parametrize("name", ["k3.keras", "tk.keras", "k3.h5", "tk.h5"])
def test_the_suffix_does_not_matter(name, folder, tmp_path):
    path = shutil.copy(folder / name, tmp_path / "model.bin")
    assert largest_difference(load(path), network(keras)) < TOLERANCE


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_all_kinds(name, folder):
    assert recognize(folder / name).kind is WEIGHTS[name]
    into = keras.models.clone_model(network(keras))
    before = into.get_weights()
    model, notes = load_with_notes(folder / name, into=into)
    assert largest_difference(model, network(keras)) < TOLERANCE
    assert "into a copy of model 'net'" in notes[-1]
    assert all(np.array_equal(one, other) for one, other in zip(before, into.get_weights(), strict=True))


def test_weights_for_a_subclassed_model(tmp_path):
    original = Block()
    original(images())
    original.save_weights(tmp_path / "block.weights.h5")
    model = load(tmp_path / "block.weights.h5", into=Block(), input_shape=(8, 8, 3))
    assert largest_difference(model, original) < TOLERANCE
    assert hasattr(model, "operations")


@pytest.mark.parametrize("name", ["k3.weights.h5", "legacy.h5", "checkpoint"])
def test_weights_that_do_not_fit(name, folder):
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(7, 3, name="conv")(inputs))
    with pytest.raises(ModelError, match=f"The weights in .*{name}.* do not fit model"):
        load(folder / name, into=keras.Model(inputs, layers.Dense(5, name="classes")(x)))


def test_weights_for_a_part_of_them_are_refused(folder):
    inputs = keras.Input((8, 8, 3))
    with pytest.raises(ModelError, match="it has 1[0-9][0-9] values, and the model 112"):
        load(folder / "k3.weights.h5", into=keras.Model(inputs, layers.Conv2D(4, 3)(inputs)))


def test_a_function_of_keras_2_that_keras_3_has_otherwise(folder):
    model, notes = load_with_notes(folder / "hard.h5")
    assert "read with tf_keras" in notes[0]
    assert largest_difference(model, network(tf_keras, hard=True)) < TOLERANCE
    # Keras 3 reads it without a word, and computes something else.
    silent = keras.models.load_model(folder / "hard.h5", compile=False)
    assert largest_difference(silent, network(tf_keras, hard=True)) > 1e-3


def test_a_file_that_keras_3_rejects_goes_through_tf_keras(tmp_path):
    inputs = tf_keras.Input((4,))
    original = tf_keras.Model(inputs, tf_keras.layers.Dense(3)(inputs) ** 2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original.save(tmp_path / "power.h5")
    model, notes = load_with_notes(tmp_path / "power.h5")
    assert "read with tf_keras" in notes[0]
    x = images().reshape(-1, 4)
    assert np.allclose(model(x), original(x), atol=TOLERANCE)


def test_what_keras_3_reads_otherwise_is_compared(tmp_path):
    """Keras 3 reads a file of Keras 2 without the `training` of its calls."""
    inputs = tf_keras.Input((3,))
    original = tf_keras.Model(inputs, tf_keras.layers.BatchNormalization()(inputs, training=False))
    original.save(tmp_path / "frozen.h5")
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(8, 3)).astype("float32")
    silent = keras.models.load_model(tmp_path / "frozen.h5", compile=False)
    assert np.max(np.abs(silent(x, training=True) - original(x, training=True))) > 1
    try:
        model = load(tmp_path / "frozen.h5")
    except ModelError as error:
        assert "training" in str(error)
    else:
        assert np.allclose(model(x, training=True), original(x, training=True), atol=TOLERANCE)


def test_what_tf_keras_cannot_read_keras_3_may(tmp_path):
    """A class that is registered with Keras 3 only; the note says that nothing was compared."""

    class Scaled(layers.Dense):
        def call(self, inputs):
            return super().call(inputs) * 2.0

    inputs = tf_keras.Input((4,))
    tf_keras.Model(inputs, tf_keras.layers.Dense(2, name="Scaled")(inputs)).save(tmp_path / "own.h5")
    with h5py.File(tmp_path / "own.h5", "r+") as file:
        config = file.attrs["model_config"].replace('"class_name": "Dense"', '"class_name": "Scaled"')
        file.attrs["model_config"] = config
    with pytest.raises(ModelError, match="Unknown layer: 'Scaled'"):
        load(tmp_path / "own.h5")
    model, notes = load_with_notes(tmp_path / "own.h5", custom_objects={"Scaled": Scaled})
    assert type(model.layers[-1]) is Scaled
    assert "nothing compared it" in notes[0]


FRESH = """
import sys, numpy as np, tfcompress
for path in sys.argv[1:3]:
    model = tfcompress.load(path)
    x = np.linspace(0.1, 1.0, 8, dtype="float32").reshape(2, 4)
    np.testing.assert_allclose(model(x), np.load(sys.argv[3]), atol=1e-5)
"""


def test_what_to_tf_keras_made_is_read_in_another_process(tmp_path):
    inputs = keras.Input((4,))
    x = layers.Dense(4, activation="celu")(inputs)
    model = keras.Model(inputs, keras.ops.log(x[:, 1:] * 0.1 + 9.0))
    twin = tfcompress.to_tf_keras(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin.save(tmp_path / "twin.keras")
        twin.save(tmp_path / "twin.h5")
    np.save(tmp_path / "expected.npy", model(np.linspace(0.1, 1.0, 8, dtype="float32").reshape(2, 4)))
    arguments = [str(tmp_path / name) for name in ("twin.keras", "twin.h5", "expected.npy")]
    done = subprocess.run([sys.executable, "-c", FRESH, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_weights_for_a_model_with_a_lambda_and_a_vocabulary(tmp_path):
    lookup = layers.StringLookup()
    lookup.adapt(np.array(["a", "b", "c", "c"]))
    inputs = keras.Input((2,), dtype="string")
    x = layers.Embedding(5, 3)(lookup(inputs))
    part = keras.Input((2, 3))
    doubled = keras.Model(part, layers.Lambda(lambda x: x * 2.0, output_shape=(2, 3))(part))
    original = keras.Model(inputs, doubled(x))
    original.save_weights(tmp_path / "text.weights.h5")
    model = load(tmp_path / "text.weights.h5", into=original)
    words = tf.constant([["a", "c"], ["b", "z"]])
    assert np.allclose(model(words), original(words)) and model is not original
    assert model.layers[2] is not original.layers[2]


def test_operations_in_h5_files_of_keras_3(tmp_path):
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.ops.relu(inputs)).save(tmp_path / "operation.h5")
    with pytest.raises(ModelError, match="no layer 'Relu'.* save the model as a `.keras` file"):
        load(tmp_path / "operation.h5")


def test_a_functional_model_is_given_back_as_it_is():
    model = network(keras)
    assert load_with_notes(model) == (model, ())


def test_sequential_models():
    built = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    model = load(built)
    assert model.weights[0] is built.weights[0] and not isinstance(model, keras.Sequential)
    assert load(keras.Sequential([layers.Dense(2)]), input_shape=(4,)).output_shape == (None, 2)
    with pytest.raises(ModelError, match="has no input shape yet"):
        load(keras.Sequential([layers.Dense(2)]))


class Block(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.out = layers.Conv2D(3, 3), layers.Dense(2)

    def call(self, inputs):
        return self.out(keras.ops.mean(self.conv(inputs), axis=(1, 2)))


class LegacyBlock(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.conv, self.drop, self.out = (
            tf_keras.layers.Conv2D(3, 3),
            tf_keras.layers.Dropout(0.5),
            tf_keras.layers.Dense(2),
        )

    def call(self, inputs, training=False):
        return self.out(tf.reduce_mean(self.drop(tf.nn.relu(self.conv(inputs)), training=training), axis=(1, 2)))


def test_subclassed_models():
    block = Block()
    model, notes = load_with_notes(block, input_shape=(8, 8, 3))
    assert "was traced into a functional model" in notes[0]
    assert largest_difference(model, block) < TOLERANCE


def test_a_subclassed_model_within_a_functional_one():
    inputs = keras.Input((8, 8, 3))
    original = keras.Model(inputs, keras.ops.relu(Block()(inputs)))
    assert [call.operation.name for call in trace(load(original)).calls if "conv" in call.operation.name]
    assert largest_difference(load(original), original) < TOLERANCE


def test_models_of_tf_keras():
    original = network(tf_keras)
    model, notes = load_with_notes(original)
    assert "was converted to Keras 3" in notes[0]
    assert largest_difference(model, original) < TOLERANCE
    block = LegacyBlock()
    block(images())
    model, notes = load_with_notes(block)
    assert "was traced" in notes[0]
    assert largest_difference(model, block) < TOLERANCE
    assert any(isinstance(layer, layers.Dropout) for layer in model.layers)


def test_layers_of_equal_names_are_told_apart():
    def part(name):
        return keras.Sequential([keras.Input((4,)), layers.Dense(4, name="dense")], name=name)

    inputs = keras.Input((4,))
    original = keras.Model(inputs, layers.Add()([part("a")(inputs), part("b")(inputs)]))
    model, notes = load_with_notes(original)
    assert "Two layers were named 'dense'" in notes[0]
    x = images().reshape(-1, 4)
    assert np.allclose(model(x), original(x), atol=TOLERANCE)
    assert {call.operation.name for call in trace(model).calls} >= {"dense", "dense_1"}


def test_custom_objects_and_lambdas_by_consent(tmp_path):
    class Scaled(layers.Dense):
        def call(self, inputs):
            return super().call(inputs) * 2.0

    inputs = keras.Input((4,))
    keras.Model(inputs, Scaled(2)(inputs)).save(tmp_path / "own.keras")
    keras.Model(inputs, layers.Lambda(lambda x: x * 3.0, output_shape=(4,))(inputs)).save(tmp_path / "lambda.keras")
    with pytest.raises(ModelError, match=r"custom_objects=\{'Scaled': ...\}"):
        load(tmp_path / "own.keras")
    assert type(load(tmp_path / "own.keras", custom_objects={"Scaled": Scaled}).layers[-1]) is Scaled
    with pytest.raises(ModelError, match="allow_lambda=True"):
        load(tmp_path / "lambda.keras")
    assert np.allclose(load(tmp_path / "lambda.keras", allow_lambda=True)(np.ones((1, 4))), 3.0)


def test_notes_are_logged(folder, monkeypatch):
    logged = []
    monkeypatch.setattr(logging, "info", lambda text, *args: logged.append(text % args))
    tfcompress.load(folder / "tk.h5")
    assert logged == list(load_with_notes(folder / "tk.h5")[1])
    assert logged[0] == "tk.h5 was written by Keras 2 and read with tf_keras."


def test_arguments_that_do_not_go_together(folder):
    for source, into in ((folder / "k3.keras", network(keras)), (network(keras), network(keras)), (folder, "net")):
        with pytest.raises(InvalidArgumentError, match="`into` must be"):
            load(source, into=into)
    with pytest.raises(InvalidArgumentError, match="`source` must be a Keras model"):
        load(42)
    with pytest.raises(ModelError, match="holds weights without a model"):
        load(folder)


def test_the_reference_model_of_keras_2():
    path = shared_path("models/resnet8_cifar10.h5")
    model = load(path)
    original = tf_keras.models.load_model(path, compile=False)
    x = np.random.default_rng(0).uniform(0, 255, size=(4, 32, 32, 3)).astype("float32")
    assert np.allclose(model(x), original(x), atol=TOLERANCE)


def test_a_lambda_of_keras_2_needs_consent_too(tmp_path):
    inputs = tf_keras.Input((4,))
    tf_keras.Model(inputs, tf_keras.layers.Lambda(lambda x: x * 2.0, name="twice")(inputs)).save(tmp_path / "tk.keras")
    with pytest.raises(ModelError, match="allow_lambda=True"):
        load(tmp_path / "tk.keras")
    assert np.allclose(load(tmp_path / "tk.keras", allow_lambda=True)(np.ones((1, 4))), 2.0)


def test_layers_that_the_applications_define_for_themselves(tmp_path):
    from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

    inputs = keras.Input((4,))
    model = keras.Model(inputs, CustomScaleLayer(0.5, name="scale")([inputs, keras.layers.Dense(4)(inputs)]))
    model.save(tmp_path / "model.keras")
    x = np.ones((2, 4), "float32")
    np.testing.assert_allclose(load(tmp_path / "model.keras")(x), model([x]), rtol=1e-5)
