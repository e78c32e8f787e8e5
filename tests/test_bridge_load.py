"""`load`: every kind of path and object becomes a functional model that predicts the same."""

import shutil
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from absl import logging
from keras import layers

import tfcompress
from tfcompress.bridge.load import load, load_with_notes
from tfcompress.bridge.recognize import Kind, recognize
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.trace import trace

TOLERANCE = 1e-5
REFERENCE = Path(__file__).resolve().parents[2] / "shared/models/resnet8_cifar10.h5"


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
    "tk.h5": (Kind.TF_KERAS_H5_MODEL, "Keras 3 read it"),
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
    assert "hard_sigmoid" in " ".join(notes)
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
    assert "since Keras 3 does not read it" in notes[0]
    x = images().reshape(-1, 4)
    assert np.allclose(model(x), original(x), atol=TOLERANCE)


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
    assert logged == ["tk.h5 was written by Keras 2; Keras 3 read it."]


def test_arguments_that_do_not_go_together(folder):
    for source, into in ((folder / "k3.keras", network(keras)), (network(keras), network(keras)), (folder, "net")):
        with pytest.raises(InvalidArgumentError, match="`into` must be"):
            load(source, into=into)
    with pytest.raises(InvalidArgumentError, match="`source` must be a Keras model"):
        load(42)
    with pytest.raises(ModelError, match="holds weights without a model"):
        load(folder)


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the MLPerf Tiny reference model is not here")
def test_the_reference_model_of_keras_2():
    model = load(REFERENCE)
    original = tf_keras.models.load_model(REFERENCE, compile=False)
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
