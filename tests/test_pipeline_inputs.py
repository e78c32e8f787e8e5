"""What a recipe says of its data reaches the data."""

import pytest
from helpers import blobs

from tfcompress import build_model
from tfcompress.data import from_arrays
from tfcompress.errors import InvalidArgumentError, RecipeError
from tfcompress.pipeline.inputs import data_key, load_data
from tfcompress.pipeline.plan import plan_run
from tfcompress.recipe import AugmentSpec, DataSpec, parse_recipe


def test_keys_reach_the_data():
    spec = DataSpec(
        name="digits", input_range=(-1.0, 1.0), augment=AugmentSpec(shift=1), validation_fraction=0.2, limit_train=50
    )
    data = load_data(spec)
    assert data.sizes["train"] == 50
    assert data.sizes["validation"] == pytest.approx(0.2 * (1797 - 359), abs=5)  # rounded for each of ten classes
    assert data.input_range == (-1.0, 1.0) and data.augmentation.shift == 1


def test_a_size_that_the_data_cannot_have_is_an_error():
    with pytest.raises(InvalidArgumentError, match="`image_size` must be None for 'digits'"):
        load_data(DataSpec(name="digits", image_size=(16, 16)))


def test_key_of_data_in_memory_covers_every_sample():
    x, y = blobs(200, shape=(8,))
    test = blobs(40, shape=(8,), seed=2)

    def key(labels, test):
        return data_key(DataSpec(), from_arrays(x, labels, validation=blobs(40, shape=(8,), seed=1), test=test))

    changed = y.copy()
    changed[150] = (changed[150] + 1) % 4
    assert key(y, test) == key(y, test)
    assert len({key(y, test), key(changed, test), key(y, blobs(40, shape=(8,), seed=3))}) == 3


TWICE = """
data: {name: digits, batch_size: 64}
teacher: {model: cnn, width: 4, depth: 1, train: {epochs: 1}}
stages: [{quantize: {train: {epochs: 1}}}, {quantize: {train: {epochs: 1}}}]
"""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"`stages.1.quantize` must be the only stage of its kind"),
        (
            ["stages=[{quantize: {train: {epochs: 1, steps_per_execution: 4}}}]"],
            "a divisor of the 21 steps of an epoch",
        ),
        (
            ["data.batch_size=63", "stages=[{quantize: {train: {epochs: 1, strategy: mirrored}}}]"],
            r"`stages.0.quantize` cannot be applied. `batch_size` must be a multiple of 2 .* Received: 63",
        ),
        (
            ["stages=[{distill: {temperature: 8, train: {epochs: 1}, teach: {kind: hard_labels}}}]"],
            r"`stages.0.distill.teach` must be left out: `distill` teaches by itself",
        ),
    ],
)
def test_what_cannot_work_is_known_before_training(overrides, message):
    recipe = parse_recipe(TWICE, overrides)
    with pytest.raises(RecipeError, match=message):
        plan_run(recipe, load_data(recipe.data))


def test_a_teacher_of_another_range_is_not_compressed_on_this_one(tmp_path):
    teacher = build_model("cnn", input_shape=(8, 8, 1), num_classes=10, width=4, depth=1)
    teacher.save(tmp_path / "t.keras")
    source = f"{{file: {tmp_path / 't.keras'}, input_range: [0, 255]}}"
    recipe = parse_recipe(TWICE, [f"teacher={source}", "stages=[{quantize: {train: {epochs: 1}}}]"])
    with pytest.raises(RecipeError, match=r"`teacher.input_range` must be left out where the teacher itself"):
        plan_run(recipe, load_data(recipe.data))
