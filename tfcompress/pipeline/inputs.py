"""What a run starts from, and what it is known by: the data of a recipe, and the keys of data and models.

Invariant: two runs with equal keys see equal weights, and equal samples as far as these were in memory; where data lies
is no part of its key. Left out: building and training models (`execute.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcompress import files
from tfcompress.data import Augmentation, Dataset, from_folder, load_dataset
from tfcompress.errors import InvalidArgumentError
from tfcompress.recipe import DataSpec, ModelSpec

SAMPLES_IN_KEY = 64


def load_data(spec: DataSpec) -> Dataset:
    """The data that a recipe names.

    Raises:
        DataError: If it is missing or unusable.
        InvalidArgumentError: If a key does not fit this data.
    """
    augmentation = None if spec.augment is None else Augmentation(**dataclasses.asdict(spec.augment))
    if spec.folder is not None and spec.image_size is not None:
        if spec.limit_train is not None:
            raise InvalidArgumentError("data.limit_train", "left out for `name: folder`", spec.limit_train)
        return from_folder(
            spec.folder,
            image_size=spec.image_size,
            validation=spec.validation_fraction,
            input_range=spec.input_range,
            augmentation=augmentation,
            unlabelled=spec.unlabelled,
        )
    return load_dataset(
        str(spec.name),
        data_dir=spec.data_dir,
        download=spec.download,
        input_range=spec.input_range,
        augmentation=augmentation,
        validation_fraction=spec.validation_fraction,
        limit_train=spec.limit_train,
        image_size=spec.image_size,
        unlabelled=spec.unlabelled,
    )


def data_key(spec: DataSpec, data: Dataset) -> str:
    """What data is known by: how it was asked for, its sizes, and its samples.

    Of a set that is read from elsewhere (TFDS, a folder) the first samples of each split stand for all of them.
    """
    asked = {
        name: value
        for name, value in dataclasses.asdict(spec).items()
        if name not in ("data_dir", "download", "folder", "unlabelled")
    }
    # The data of a caller of `compress` is not what the recipe asked for.
    given: list[Any] = [
        data.name,
        data.sizes,
        data.input_range,
        data.augmentation and dataclasses.asdict(data.augmentation),
    ]
    samples = []
    for split in data.sizes:
        limit = None if data.splits[split].resident else SAMPLES_IN_KEY
        samples += [np.asarray(part).tobytes() for batch in data.batches(split, 256, limit=limit) for part in batch]
    if data.unlabelled is not None:
        given += [data.unlabelled.size, data.unlabelled.key(None if data.unlabelled.resident else SAMPLES_IN_KEY)]
    return files.content_key(plain(asked), plain(given), *samples)


def model_key(model: keras.Model) -> str:
    """What a model is known by: its structure and weights."""
    return files.content_key(model.to_json(), *(weight.tobytes() for weight in model.get_weights()))


def model_file_key(path: Path) -> str:
    """What a model file, or the folder of a SavedModel, is known by: its content."""
    if path.name == "saved_model.pb":
        path = path.parent
    return files.folder_key(path) if path.is_dir() else files.file_key(path)


def teacher_file_key(path: Path, spec: ModelSpec) -> str:
    """What a teacher file is known by: its content, and what the recipe says about its inputs and outputs."""
    chosen = {name: list(value) for name in ("resize", "class_map") if (value := getattr(spec, name)) is not None}
    # Only what is set, so that runs of earlier versions go on.
    return files.content_key(model_file_key(path), list(spec.input_range or ()), *([chosen] if chosen else []))


def plain(value: Any) -> Any:
    """`value` with mappings and tuples as JSON has them."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return value
