"""The embedded data set: 1,797 real handwritten digits of 8x8 pixels.

Invariant: no network, no seed and no other package changes a pixel or a split; the same 359 digits are always the test.
Left out: the larger training part of the UCI set, which is not needed to show the whole path in minutes.

Source and licence (CC BY 4.0) are in `digits.LICENSE.md` beside this file.

Reference:
    Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
    https://doi.org/10.24432/C50P49
"""

from __future__ import annotations

from importlib import resources

import numpy as np

from tfcompress.data.arrays import array_split
from tfcompress.data.augment import Augmentation
from tfcompress.data.dataset import Dataset, check_limit
from tfcompress.data.holdout import hold_out, leave_out_labels

_TEST_FRACTION = 0.2
_STORED_RANGE = (0.0, 16.0)  # a pixel counts the black ones among 4x4 of the original scan


def load_digits(
    *,
    input_range: tuple[float, float] = (0.0, 1.0),
    augmentation: Augmentation | None = None,
    validation_fraction: float = 0.1,
    limit_train: int | None = None,
    unlabelled: float | None = None,
) -> Dataset:
    """Loads the embedded digits: 8x8 pixels, one channel, ten classes.

    Args:
        input_range: The (low, high) that pixels are mapped to.
        augmentation: Random changes of training images, or None.
        validation_fraction: Share of each class's training samples that becomes the validation split, in (0, 1).
        limit_train: Train on this many samples only, the first ones; None takes all.
        unlabelled: Share of each class of these whose labels are left out, in (0, 1); None leaves out none.

    Returns:
        The data: 359 test samples; the others are training and validation samples.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> load_digits().sizes
        {'train': 1295, 'validation': 143, 'test': 359}
    """
    with resources.files("tfcompress.data").joinpath("digits.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        images, labels = stored["images"][..., np.newaxis], stored["labels"].astype(np.int32)
    remaining, test = hold_out(labels, _TEST_FRACTION)
    kept, held = hold_out(labels[remaining], validation_fraction, name="validation_fraction")
    train, validation = remaining[kept], remaining[held]
    check_limit(limit_train, len(train))
    chosen = {"train": train[:limit_train], "validation": validation, "test": test}
    arrays = {split: (images[indices], labels[indices]) for split, indices in chosen.items()}
    if unlabelled is not None:
        arrays["train"], arrays["unlabelled"] = leave_out_labels("digits", *arrays["train"], unlabelled)
    splits = {split: array_split(*pair) for split, pair in arrays.items()}
    return Dataset(
        name="digits",
        unlabelled=splits.pop("unlabelled", None),
        splits=splits,
        num_classes=10,
        class_names=tuple("0123456789"),
        input_range=input_range,
        stored_range=_STORED_RANGE,
        augmentation=augmentation,
    )
