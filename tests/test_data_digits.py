"""The embedded digits against their source, and their fixed splits."""

from pathlib import Path

import numpy as np
import pytest

import tfcompress.data
from tfcompress.data import load_dataset
from tfcompress.errors import InvalidArgumentError

FOLDER = Path(tfcompress.data.__file__).parent


def values(data, split):
    (pair,) = list(data.batches(split, 2000))
    return pair[0].numpy(), pair[1].numpy()


def test_file_is_small_and_its_source_is_named():
    assert (FOLDER / "digits.npz").stat().st_size <= 200_000
    licence = (FOLDER / "digits.LICENSE.md").read_text()
    for part in ("Optical Recognition of Handwritten Digits", "Alpaydin", "Kaynak", "UCI", "CC BY 4.0"):
        assert part in licence


def test_equals_its_source():
    source = pytest.importorskip("sklearn.datasets").load_digits()
    with np.load(FOLDER / "digits.npz", allow_pickle=False) as stored:
        assert stored["images"].dtype == np.uint8
        np.testing.assert_array_equal(stored["images"], source.images)
        np.testing.assert_array_equal(stored["labels"], source.target)


def test_splits_are_complete_disjoint_and_stratified():
    data = load_dataset("digits")
    assert data.sizes == {"train": 1295, "validation": 143, "test": 359}
    assert (data.input_shape, data.num_classes, data.class_names) == ((8, 8, 1), 10, tuple("0123456789"))
    parts = {split: values(data, split) for split in data.sizes}
    counts = {split: np.bincount(y, minlength=10) for split, (_, y) in parts.items()}
    # The class counts that the UCI repository gives for this part.
    total = np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    np.testing.assert_array_equal(sum(counts.values()), total)
    assert np.abs(counts["test"] - 0.2 * total).max() <= 0.5
    assert np.abs(counts["validation"] - 0.1 * (total - counts["test"])).max() <= 0.5
    pictures = {split: {x.tobytes() for x in part} for split, (part, _) in parts.items()}
    assert len(pictures["test"]) == 359
    assert not pictures["test"] & (pictures["train"] | pictures["validation"])
    assert not pictures["validation"] & pictures["train"]
    stacked = np.concatenate([x for x, _ in parts.values()])
    assert (stacked.min(), stacked.max()) == (0.0, 1.0)


def test_nothing_moves_the_test_split():
    plain = load_dataset("digits")
    other = load_dataset("digits", validation_fraction=0.3, limit_train=100, input_range=(0.0, 16.0), data_dir="/none")
    assert other.sizes["train"] == 100
    np.testing.assert_array_equal(values(plain, "test")[1], values(other, "test")[1])
    np.testing.assert_allclose(values(plain, "test")[0] * 16, values(other, "test")[0])


def test_first_samples_are_of_all_classes():
    _, labels = next(iter(load_dataset("digits").batches("train", 100)))
    assert np.bincount(labels, minlength=10).min() >= 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit_train": 1296}, r"`limit_train` must be None or a whole number from 1 to 1295"),
        ({"limit_train": 0}, r"`limit_train` must be .* Received: 0"),
        ({"validation_fraction": 1.5}, r"`validation_fraction` must be a number in \(0, 1\)"),
        ({"image_size": 16}, r"`image_size` must be None for 'digits'"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        load_dataset("digits", **arguments)
