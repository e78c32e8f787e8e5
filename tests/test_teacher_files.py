"""Teacher files of a recipe: SavedModels, and inputs and classes of their own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.errors import RecipeError
from tfcompress.measure.metrics import Metrics
from tfcompress.pipeline import execute
from tfcompress.pipeline.inputs import teacher_file_key
from tfcompress.pipeline.plan import plan_run

RECIPE = """
data: {name: digits, limit_train: 64}
train: {epochs: 1}
teacher: {file: large}
student: {model: mlp, widths: [4]}
stages: [distill: {}]
"""
CLASSES = [11, 3, 0, 1, 2, 4, 5, 6, 7, 8]


@pytest.fixture(scope="module")
def data():
    return tfc.load_dataset("digits", limit_train=64)


def large(shape=(4, 6, 1), classes=12):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(classes)], name="large")


def test_a_saved_model_of_another_size_range_and_order_teaches(data, tmp_path, monkeypatch):
    # The student's figures cost a conversion, and are tested with the pipeline.
    monkeypatch.setattr(execute, "keras_row", lambda stage, *_: Metrics(stage=stage, accuracy=0.5))
    model = large()
    model.export(tmp_path / "large", verbose=False)
    own = f"{{file: {tmp_path / 'large'}, resize: [4, 6], class_map: {CLASSES}, input_range: [-1, 1]}}"
    recipe = tfc.parse_recipe(RECIPE, [f"teacher={own}"])
    assert tfc.parse_recipe(recipe.to_yaml()) == recipe
    result = tfc.run(recipe, tmp_path / "run", progress=False)
    x, y = next(iter(data.batches("test", 1000)))
    expected = model(tf.image.resize(x, (4, 6), antialias=True) * 2 - 1).numpy()[:, CLASSES].argmax(1) == y.numpy()
    teacher, _ = result.rows
    np.testing.assert_allclose(teacher.accuracy, expected.mean(), atol=1e-6)
    assert teacher.file_bytes is None
    # A second run has nothing to do, and another order of classes is another teacher.
    assert tfc.run(recipe, tmp_path / "run", progress=False).rows == result.rows
    other = tfc.parse_recipe(RECIPE, [f"teacher={own}", f"teacher.class_map={CLASSES[::-1]}"])
    with pytest.raises(RecipeError, match="00-teacher"):
        tfc.run(other, tmp_path / "run", progress=False)


def test_a_key_is_of_the_content_and_of_what_the_recipe_says(tmp_path):
    file = tmp_path / "model.tflite"
    file.write_bytes(b"content")
    specs = [{}, {"resize": [4, 6]}, {"class_map": [4, 6]}, {"input_range": [4, 6]}]
    keys = set()
    for spec in specs:
        recipe = tfc.parse_recipe("{}", [f"teacher={{file: x.tflite, {str(spec)[1:-1]}}}"])
        keys.add(teacher_file_key(file, recipe.teacher))
    assert len(keys) == len(specs)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher.class_map=null"], r"`teacher.file` must be a model from one input \(None, 4, 6, 1\) to one output"),
        (
            ["teacher.resize=null"],
            r"Received: a model from \[\(None, 4, 6, 1\)\] to .* has `resize: \[height, width\]`",
        ),
        (["teacher.class_map=[0, 1]"], "`teacher.class_map` must be a list of 10 indices, .* Received: 2"),
        (["teacher.class_map.0=12"], "`teacher.class_map` must be indices below 12, .* Received: 12"),
        (["student=null"], "`student` is missing; .* only a Keras model can be compressed"),
        (["student={file: large.keras, resize: [4, 6]}"], "`student.resize` must be left out"),
        (["student={file: large.keras, class_map: [1, 0]}"], "`student.class_map` must be left out"),
        (["student=null", "teacher.file=large.keras"], "`teacher.resize` must be left out where the teacher itself"),
        (["student=null", "teacher.file=eight.keras", "teacher.resize=null"], "`teacher.class_map` must be left out"),
    ],
)
def test_mistakes_name_their_key(overrides, message, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    large().save("large.keras")
    large((8, 8, 1)).save("eight.keras")
    large().export("large", verbose=False)
    own = f"teacher={{file: large, resize: [4, 6], class_map: {CLASSES}}}"
    plan_run(tfc.parse_recipe(RECIPE, [own]), data)
    with pytest.raises(RecipeError, match=message):
        plan_run(tfc.parse_recipe(RECIPE, [own, *overrides]), data)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("{file: t.keras, resize: [0, 4]}", "`teacher.resize` must be a height and a width of at least 1"),
        ("{file: t.keras, resize: 4}", "`teacher.resize` must be a list of 2 values or null"),
        ("{file: t.keras, class_map: [1, 1]}", "`teacher.class_map` must be a list of different indices"),
        ("{file: t.keras, class_map: [0.5]}", "`teacher.class_map.0` must be an integer"),
        ("{model: mlp, resize: [4, 4]}", "`teacher.resize` must be left out unless `file: <path>`"),
        ("{model: mlp, class_map: [0]}", "`teacher.class_map` must be left out unless `file: <path>`"),
    ],
)
def test_values_out_of_range(teacher, message):
    with pytest.raises(RecipeError, match=message):
        tfc.parse_recipe(RECIPE, [f"teacher={teacher}"])
