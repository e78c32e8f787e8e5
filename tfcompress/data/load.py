"""Data by name, as recipes name it.

Invariant: "digits" is the embedded set and never needs the network; every other name is a TFDS name. Left out: arrays
and folders, which are not known by a name.
"""

from __future__ import annotations

import os

from tfcompress.data.augment import Augmentation
from tfcompress.data.dataset import Dataset
from tfcompress.data.digits import load_digits
from tfcompress.data.tfds_source import load_tfds
from tfcompress.errors import InvalidArgumentError


def load_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    download: bool = True,
    input_range: tuple[float, float] = (0.0, 1.0),
    augmentation: Augmentation | None = None,
    validation_fraction: float = 0.1,
    limit_train: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    unlabelled: float | str | None = None,
) -> Dataset:
    """Loads a data set by name.

    Args:
        name: "digits" for the embedded digits, or the TFDS name of an image classification set, such as "mnist".
        data_dir: Folder of prepared TFDS data. None takes the environment variable TFDS_DATA_DIR, or
            `~/tensorflow_datasets`. "digits" needs none.
        download: Download and prepare a TFDS set that `data_dir` doesn't have. False never touches the network.
        input_range: The (low, high) that pixels are mapped to.
        augmentation: Random changes of training images, or None.
        validation_fraction: Share of the training samples that becomes the validation split, in (0, 1).
        limit_train: Train on this many samples only, the first ones; None takes all.
        image_size: Resize the images of a TFDS set to this (height, width) in pixels, or to a square.
        unlabelled: Training samples without labels, which only a student under a teacher sees (`Dataset.taught`): the
            name of a split of a TFDS set, such as "unlabelled" of "stl10", or the share of the training samples
            whose labels are left out, in (0, 1). None has none.

    Returns:
        The data.

    Raises:
        DataError: If the data is missing, can't be read, or isn't image classification.
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> load_dataset("digits", limit_train=500).sizes
        {'train': 500, 'validation': 143, 'test': 359}
    """
    if not isinstance(name, str):
        raise InvalidArgumentError("name", "'digits' or a TFDS name such as 'mnist'", name)
    if name != "digits":
        return load_tfds(
            name,
            data_dir=data_dir,
            download=download,
            input_range=input_range,
            augmentation=augmentation,
            validation_fraction=validation_fraction,
            limit_train=limit_train,
            image_size=image_size,
            unlabelled=unlabelled,
        )
    if image_size is not None:
        raise InvalidArgumentError("image_size", "None for 'digits', whose images are 8x8", image_size)
    if isinstance(unlabelled, str):
        raise InvalidArgumentError("unlabelled", "None or a share in (0, 1) for 'digits'", unlabelled)
    return load_digits(
        input_range=input_range,
        augmentation=augmentation,
        validation_fraction=validation_fraction,
        limit_train=limit_train,
        unlabelled=unlabelled,
    )
