"""Augmentation against NumPy written out by hand: slices for shifts, `np.pad` for crops, `[::-1]` for flips."""

import numpy as np
import pytest
import tensorflow as tf

from tfcompress.data import Augmentation
from tfcompress.errors import InvalidArgumentError

IMAGES = np.random.default_rng(0).integers(1, 256, (40, 7, 9, 3), dtype=np.uint8)


def shifted(image, down, right, fill):
    height, width, _ = image.shape
    result = np.full_like(image, fill)
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                result[row, column] = image[row - down, column - right]
    return result


def cropped(image, top, left, pixels):
    padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode="reflect")
    return padded[top : top + image.shape[0], left : left + image.shape[1]]


def expected(augmentation, images, draws, fill):
    results = []
    for image, (flip, down, right, top, left) in zip(images, np.asarray(draws), strict=True):
        image = image[:, ::-1] if flip else image
        image = shifted(image, down, right, fill)
        results.append(cropped(image, top, left, augmentation.crop) if augmentation.crop else image)
    return np.stack(results)


@pytest.mark.parametrize("fill", [0, 17])
@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        Augmentation(flip=True),
        Augmentation(shift=3),
        Augmentation(shift=6),
        Augmentation(crop=2),
        Augmentation(crop=6),
        Augmentation(flip=True, shift=2, crop=3),
    ],
    ids=str,
)
def test_equals_numpy(augmentation, fill):
    draws = augmentation.draw(seed=3, epoch=5, size=len(IMAGES))
    actual = augmentation.apply(tf.constant(IMAGES), draws, fill=fill)
    assert actual.dtype == tf.uint8
    np.testing.assert_array_equal(actual, expected(augmentation, IMAGES, draws, fill))


def test_worked_by_hand():
    image = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32)[None, ..., None]

    def apply(augmentation, *draw):
        return augmentation.apply(tf.constant(image), tf.constant([draw]), fill=-1.0)[0, ..., 0].numpy().tolist()

    assert apply(Augmentation(flip=True), 1, 0, 0, 0, 0) == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    assert apply(Augmentation(shift=1), 0, 1, -1, 0, 0) == [[-1, -1, -1], [2, 3, -1], [5, 6, -1]]
    # Mirrored at the edge: the row above the first is the second. Top 0, left 2 of a border of 1.
    assert apply(Augmentation(crop=1), 0, 0, 0, 0, 2) == [[5, 6, 5], [2, 3, 2], [5, 6, 5]]


def test_draws_cover_their_ranges_evenly():
    draws = Augmentation(flip=True, shift=2, crop=1).draw(seed=0, epoch=0, size=6000).numpy()
    for column, values in enumerate([range(2), range(-2, 3), range(-2, 3), range(3), range(3)]):
        counts = np.array([(draws[:, column] == value).sum() for value in values])
        assert counts.sum() == 6000
        share = 6000 / len(values)
        assert np.abs(counts - share).max() < 5 * np.sqrt(share)
    correlation = np.corrcoef(draws.T) - np.eye(5)
    assert np.abs(correlation).max() < 0.07


def test_draws_depend_on_seed_and_epoch_only():
    augmentation = Augmentation(flip=True, shift=2)
    tf.random.set_seed(1)
    first = augmentation.draw(seed=7, epoch=2, size=50).numpy()
    tf.random.set_seed(2)
    np.testing.assert_array_equal(first, augmentation.draw(seed=7, epoch=2, size=50))
    assert (first != augmentation.draw(seed=7, epoch=3, size=50).numpy()).any()
    assert (first != augmentation.draw(seed=8, epoch=2, size=50).numpy()).any()
    # Not symmetric, so that seed 2 doesn't repeat at epoch 7 what seed 7 did at epoch 2.
    assert (first != augmentation.draw(seed=2, epoch=7, size=50).numpy()).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flip": 1}, r"`Augmentation.flip` must be True or False. Received: 1"),
        ({"shift": -1}, r"`Augmentation.shift` must be a whole number of pixels, at least 0. Received: -1"),
        ({"crop": 1.5}, r"`Augmentation.crop` must be a whole number of pixels, at least 0. Received: 1.5"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Augmentation(**arguments)


def test_must_fit_the_samples():
    Augmentation(shift=6, crop=6).check_fits((7, 9, 3))
    with pytest.raises(InvalidArgumentError, match=r"`Augmentation.shift` must be less than 7 pixels"):
        Augmentation(shift=7).check_fits((7, 9, 3))
    with pytest.raises(InvalidArgumentError, match=r"only images \(height, width, channels\) can be augmented"):
        Augmentation(flip=True).check_fits((8,))
