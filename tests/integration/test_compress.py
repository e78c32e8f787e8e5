"""`compress`: a recipe on the model and data of its caller."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from helpers import CLOSE, blob_dataset, blobs, tiny_mlp

import tfcompress as tfc
from tfcompress.data import Augmentation
from tfcompress.errors import InvalidArgumentError, ModelError, RecipeError
from tfcompress.pipeline.inputs import data_key
from tfcompress.training.fit import fit

OWN = tfc.parse_recipe("""
data: {batch_size: 32}
train: {epochs: 2, learning_rate: 1.0e-2}
stages:
  - prune: {schedule: {constant_sparsity: {target_sparsity: 0.5}}, teach: {weight: 0.5}}
  - quantize: {}
export: [tflite]
""")
STUDENT = tfc.parse_recipe("""
data: {batch_size: 32}
train: {epochs: 2, learning_rate: 1.0e-2}
student: {model: mlp, widths: [8]}
stages: [distill]
""")


@pytest.fixture(scope="module")
def data():
    return blob_dataset(shape=(8,))


@pytest.fixture
def model():
    model, (x, y) = tiny_mlp(), blobs(shape=(8,))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=["accuracy"])
    model.fit(x, y, epochs=10, verbose=0)
    return model


def state(model):
    return [*model.get_weights(), *(variable.numpy() for variable in model.optimizer.variables)]


def test_a_model_is_its_own_student_and_teacher(model, data, tmp_path):
    before, config = [value.copy() for value in state(model)], model.to_json()
    result = tfc.compress(model, data, OWN, tmp_path, progress=False)
    for first, second in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(second, first)
    assert model.to_json() == config and all(layer.trainable for layer in model.layers)
    assert [row.stage for row in result.rows] == ["teacher", "01-prune", "02-quantize", "export-int8"]
    x, y = blobs(64, shape=(8,), seed=2)
    assert result.rows[0].accuracy == np.mean(model.predict(x, verbose=0).argmax(1) == y)
    assert np.mean(result.model.get_layer("second").kernel.numpy() == 0) == 0.5
    assert result.exports["int8"].is_file()
    # What was given trains on where it was.
    model.fit(x, y, verbose=0)


def test_a_model_teaches_the_student_of_a_recipe(model, data, tmp_path):
    before = [value.copy() for value in state(model)]
    result = tfc.compress(model, data, STUDENT, tmp_path, progress=False)
    for first, second in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(second, first)
    assert [row.stage for row in result.rows] == ["teacher", "01-distill"]
    assert result.model.count_params() == 8 * 8 + 8 + 8 * 4 + 4
    history = json.loads(result.metrics_path.read_text())["histories"]["01-distill"]
    assert history["distillation_loss"][1] < history["distillation_loss"][0]
    reloaded = keras.saving.load_model(tmp_path / "stages" / "00-teacher" / "model.keras", compile=False)
    x, _ = blobs(shape=(8,))
    np.testing.assert_allclose(reloaded(x), model(x), **CLOSE)


def test_results_of_another_model_or_other_data_are_not_reused(model, data, tmp_path):
    recipe = tfc.parse_recipe("{train: {epochs: 1}, stages: [{prune: {schedule: {constant_sparsity: "
                              "{target_sparsity: 0.5}}}}]}")  # fmt: skip
    tfc.compress(model, data, recipe, tmp_path, progress=False)
    others = [(tiny_mlp(), data), (model, dataclasses.replace(data, input_range=(0.0, 2.0)))]
    for other, its_data in others:
        with pytest.raises(RecipeError, match="00-teacher"):
            tfc.compress(other, its_data, recipe, tmp_path, progress=False)
    record = tmp_path / "stages" / "01-prune" / "stage.json"
    before = record.stat().st_mtime_ns
    tfc.compress(others[0][0], data, recipe, tmp_path, overwrite=True, progress=False)
    assert record.stat().st_mtime_ns != before


def test_what_cannot_be_compressed_is_refused_before_anything_is_written(model, data, tmp_path):
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    for given, message in [
        (Subclassed(name="own"), "'own' has no graph. Pass a functional model"),
        (keras.Sequential([keras.layers.Dense(4)], name="unbuilt"), "'unbuilt' has no graph"),
        (tiny_mlp(classes=5), r"'mlp' must be .* to one output \(None, 4\).* Received: .*\(None, 5\)"),
        (tiny_mlp(inputs=9), r"must be a model from one input \(None, 8\)"),
    ]:
        with pytest.raises(ModelError, match=message):
            tfc.compress(given, data, OWN, tmp_path / "out", progress=False)
    with pytest.raises(InvalidArgumentError, match="`data` must be a tfcompress Dataset"):
        tfc.compress(model, blobs(), OWN, tmp_path / "out")
    with pytest.raises(InvalidArgumentError, match="`model` must be a Keras model"):
        tfc.compress("model.keras", data, OWN, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_augmentation_of_the_data_is_part_of_its_key():
    images = blob_dataset(32)
    keys = {data_key(OWN.data, dataclasses.replace(images, augmentation=a)) for a in (None, Augmentation(shift=1))}
    assert len(keys) == 2


FEATURES = """
data: {batch_size: 32}
train: {epochs: 2, learning_rate: 1.0e-2}
stages:
  - prune_channels: {macs: 0.8, exclude: [last], teach: {features: [PAIR]}}
  - prune:
      schedule: {constant_sparsity: {target_sparsity: 0.5}}
      teach: {features: [{kind: similarity_preserving, teacher_layer: second, student_layer: second}], mixup: 0.2}
  - quantize: {teach: {features: [PAIR]}}
export: [tflite]
"""


@pytest.mark.slow
def test_features_are_learned_while_others_compress(model, data, tmp_path):
    pair = "{kind: hints, teacher_layer: first, student_layer: first, weight: 0.1}"
    result = tfc.compress(model, data, tfc.parse_recipe(FEATURES.replace("PAIR", pair)), tmp_path, progress=False)
    for stage in ("01-prune_channels", "02-prune", "03-quantize"):
        history = json.loads((tmp_path / "stages" / stage / "stage.json").read_text())["history"]
        assert all(loss > 0 for loss in history["feature_loss"]), stage
    assert result.exports["int8"].is_file()
    # A pruned student's features have fewer channels than its teacher's, and are projected.
    assert result.model.get_layer("first").kernel.shape[1] < model.get_layer("first").units


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            "{kind: hints, teacher_layer: frist, student_layer: first}",
            "stages.0.prune_channels.*the name of a layer.*frist",
        ),
        (
            "{kind: hints, teacher_layer: first, student_layer: frist}",
            "stages.0.prune_channels.*the name of a layer.*frist",
        ),
        ("{kind: attention_maps, teacher_layer: first, student_layer: first}", "a MultiHeadAttention where attention"),
        ("{kind: solution_flow, teacher_layer: first, student_layer: first}", "2 for SolutionFlow"),
    ],
    ids=["teacher", "student", "attention", "two-layers"],
)
def test_mistaken_features_are_named_before_anything_runs(model, data, tmp_path, pair, message):
    with pytest.raises(RecipeError, match=message):
        tfc.compress(model, data, tfc.parse_recipe(FEATURES.replace("PAIR", pair)), tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "stages").exists()


ASSISTED = """
data: {batch_size: 32}
train: {epochs: 2, learning_rate: 1.0e-2}
assistants:
  - {model: mlp, widths: [12], teach: {temperature: 2.0}}
  - model: mlp
    widths: [10]
    train: {epochs: 3}
    teach: {features: [{kind: similarity_preserving, teacher_layer: hidden1, student_layer: hidden1}]}
student: {model: mlp, widths: [8]}
stages: [distill]
"""


def test_each_assistant_learns_from_the_one_before(model, data, tmp_path):
    recipe = tfc.parse_recipe(ASSISTED)
    result = tfc.compress(model, data, recipe, tmp_path, progress=False)
    assert [row.stage for row in result.rows] == ["teacher", "assistant-1", "assistant-2", "01-distill"]
    assert tfc.parse_recipe(recipe.to_yaml()).assistants == recipe.assistants
    histories = [
        json.loads((tmp_path / "stages" / stage / "stage.json").read_text())["history"]
        for stage in ("00-assistant-1", "00-assistant-2", "01-distill")
    ]
    expected = [(False, 2), (True, 3), (False, 2)]
    assert [("feature_loss" in history, len(history["loss"])) for history in histories] == expected

    # The student has learned from the last assistant, as one does that is trained by hand.
    assistant = keras.saving.load_model(tmp_path / "stages" / "00-assistant-2" / "model.keras")
    keras.utils.set_random_seed(0)
    student = tfc.build_model("mlp", input_shape=(8,), num_classes=4, widths=[8])
    settings = tfc.TrainSettings(epochs=2, learning_rate=1e-2)
    by_hand = fit(student, data, settings, batch_size=32, seed=1, wrap=lambda one: tfc.Distiller(one, assistant)).model
    for one, two in zip(result.model.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("student: {model: mlp, widths: [8]}", ""), "student.*is missing; assistants teach a smaller one"),
        (("teacher_layer: hidden1", "teacher_layer: hidden9"), r"assistants.1.teach.*the name of a layer.*hidden9"),
        (("model: mlp, widths: [12]", "model: mlpp, widths: [12]"), "assistants.0.model.*must be one of"),
        (("widths: [12]", "sizes: [12]"), "assistants.0.sizes` is not a key"),
        (("epochs: 2, ", ""), "assistants.0.train.*is missing"),
    ],
    ids=["student", "layer", "family", "key", "train"],
)
def test_mistaken_assistants_are_named(model, data, tmp_path, change, message):
    assert change[0] in ASSISTED
    with pytest.raises(RecipeError, match=message):
        tfc.compress(model, data, tfc.parse_recipe(ASSISTED.replace(*change)), tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "stages").exists()
