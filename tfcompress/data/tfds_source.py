"""A `Dataset` from a TensorFlow Datasets (TFDS) name.

Invariant: with `download=False` nothing is looked up outside of `data_dir`: prepared files are found by their place
and read by what stands beside them, without the network and without TFDS's download code. Samples are streamed by TFDS
and kept, if at all, by tf.data as uint8. Left out: sets that aren't supervised image classification.

Reference:
    TensorFlow Datasets, https://www.tensorflow.org/datasets/catalog/overview#image_classification
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfcompress.data.augment import Augmentation
from tfcompress.data.checks import check_first_sample, check_labels_in_stream, check_sizes, check_some_labelled
from tfcompress.data.dataset import Dataset, check_limit
from tfcompress.data.images import check_image_size, resize
from tfcompress.data.split import UNLABELLED, Split
from tfcompress.errors import DataError, InvalidArgumentError

_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.-]+))?(:(?P<version>\d+\.\d+\.\d+))?")


def load_tfds(
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
    """Opens an image classification set of TFDS.

    Training and test samples are those of the official splits "train" and "test"; the validation samples are the last
    ones of "train". Samples are read when they are used. Splits of up to 256 MB (as uint8) stay in memory after their
    first pass.

    Args:
        name: "name", "name/config", "name:version" or "name/config:version", such as "cifar10" or "mnist:3.0.1".
        data_dir: Folder of prepared data. None takes the environment variable TFDS_DATA_DIR, or
            `~/tensorflow_datasets`.
        download: Download and prepare the data if `data_dir` doesn't have it. False never touches the network.
        input_range: The (low, high) that pixels (0 to 255) are mapped to.
        augmentation: Random changes of training images, or None.
        validation_fraction: Share of "train" that becomes the validation split, in (0, 1).
        limit_train: Train on this many samples only, the first ones; None takes all.
        image_size: Resize images to this (height, width) in pixels, or to a square. Needed where they vary in size.
        unlabelled: Training samples without labels: the name of an official split, such as "unlabelled" of "stl10",
            or the share of the training samples whose labels are left out, the last ones, in (0, 1). None has none.

    Returns:
        The data.

    Raises:
        DataError: If the data is missing or can't be read, isn't supervised image classification, has no official
            train and test splits, or has images of varying size and no `image_size` is given.
        InvalidArgumentError: If another argument is out of its range.

    Example:
        >>> data = load_tfds("mnist", data_dir="~/data", download=False)  # doctest: +SKIP
        >>> data.sizes  # doctest: +SKIP
        {'train': 54000, 'validation': 6000, 'test': 10000}
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InvalidArgumentError(
            "name", "'digits' or a TFDS name such as 'mnist', 'name/config' or 'name:1.0.0'", name
        )
    if isinstance(validation_fraction, bool) or not 0 < validation_fraction < 1:
        raise InvalidArgumentError("validation_fraction", "a number in (0, 1)", validation_fraction)
    size = None if image_size is None else check_image_size(image_size)
    builder = _open(match, data_dir, download)
    num_classes, class_names = _check_features(name, builder.info, size)
    slices, sizes = _slices(name, builder.info, validation_fraction, limit_train)
    if unlabelled is not None:
        _slice_unlabelled(name, builder.info, unlabelled, slices, sizes)
    splits = {}
    for split, part in slices.items():
        where = f"Data set {name!r}, {split} split"
        stream, labelled = _stream(builder, part, size), split != "unlabelled"
        stream = check_labels_in_stream(stream, num_classes, where) if labelled else _without_labels(stream)
        check_first_sample(stream, where)
        splits[split] = Split(stream, size=sizes[split], labelled=labelled)
    return Dataset(
        name=name,
        unlabelled=splits.pop("unlabelled", None),
        splits=splits,
        num_classes=num_classes,
        class_names=class_names,
        input_range=input_range,
        stored_range=(0.0, 255.0),
        augmentation=augmentation,
    )


def _open(match: re.Match[str], data_dir: str | os.PathLike | None, download: bool) -> Any:
    """The TFDS builder of prepared data, after preparing it if need be and allowed."""
    tfds = _import_tfds()
    root = Path(data_dir if data_dir is not None else tfds.core.constants.get_default_data_dir()).expanduser()
    prepared = _find_prepared(root, match)
    if prepared is None and not download:
        raise DataError(_missing(root, match))
    if prepared is None:
        return _prepare(tfds, match[0], root)
    return tfds.builder_from_directory(prepared)


def _import_tfds() -> Any:
    try:
        import importlib_resources  # noqa: F401  TFDS needs it and doesn't declare it.
        import tensorflow_datasets
    except ImportError as error:
        raise DataError(
            f"TensorFlow Datasets can't be imported: {error}. Run: pip install tensorflow-datasets importlib_resources"
        ) from error
    return tensorflow_datasets


def _find_prepared(root: Path, match: re.Match[str]) -> Path | None:
    """The folder of the wanted, or else the newest, prepared version: `root/name[/config]/version`."""
    folder = root / match["name"] / (match["config"] or "")
    versions = []
    for info in folder.glob("*.*.*/dataset_info.json"):
        numbers = info.parent.name.split(".")
        if all(number.isdecimal() for number in numbers) and match["version"] in (None, info.parent.name):
            versions.append((tuple(int(number) for number in numbers), info.parent))
    return max(versions)[1] if versions else None


def _missing(root: Path, match: re.Match[str]) -> str:
    wanted = "/".join(part for part in (match["name"], match["config"], match["version"] or "VERSION") if part)
    beside = sorted(path.parent.name for path in root.glob("*/*.*.*/") if path.is_dir())
    there = f" That folder has: {', '.join(dict.fromkeys(beside))}." if beside else ""
    return (
        f"Data set {match[0]!r} is not prepared: there is no {str(root / wanted / 'dataset_info.json')!r}, and "
        f"download is off.{there} Set data_dir to where it is prepared, or download=True to download it once."
    )


def _prepare(tfds: Any, name: str, root: Path) -> Any:
    try:
        builder = tfds.builder(name, data_dir=root, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        close = difflib.get_close_matches(name, [*tfds.list_builders(), "digits"], n=3)
        hint = f" Did you mean {' or '.join(repr(n) for n in close)}?" if close else ""
        raise DataError(
            f"TFDS has no data set {name!r}.{hint} `tensorflow_datasets.list_builders()` lists all of them."
        ) from error
    try:
        builder.download_and_prepare()
    except (OSError, tfds.download.DownloadError) as error:
        raise DataError(
            f"Data set {name!r} could not be downloaded and prepared in {str(root)!r}: {error}. Check the network and "
            "the space on disk, or set data_dir to where it is prepared."
        ) from error
    return builder


def _check_features(name: str, info: Any, size: tuple[int, int] | None) -> tuple[int, tuple[str, ...]]:
    """The number of classes and their names, once `info` is known to describe supervised image classification."""
    tfds = _import_tfds()
    keys = info.supervised_keys
    features = (
        [info.features[key] for key in keys] if keys and len(keys) == 2 and set(keys) <= set(info.features) else []
    )
    if [type(feature) for feature in features] != [tfds.features.Image, tfds.features.ClassLabel]:
        raise DataError(
            f"Data set {name!r} is not supervised image classification (an image and a class label). Received: "
            f"supervised keys {keys}."
        )
    image, label = features
    if image.dtype != np.uint8:
        raise DataError(f"Data set {name!r}: images must be stored as uint8. Received: {image.dtype}.")
    if None in image.shape and size is None:
        raise DataError(
            f"Data set {name!r}: images vary in size. Pass the size to bring them to, such as image_size=(96, 96). "
            f"Received: images of shape {image.shape} and no image_size."
        )
    return label.num_classes, tuple(label.names)


def _slices(
    name: str, info: Any, validation_fraction: float, limit_train: int | None
) -> tuple[dict[str, str], dict[str, int]]:
    """The TFDS slice of each split, such as "train[54000:]", and its number of samples."""
    missing = [split for split in ("train", "test") if split not in info.splits]
    if missing:
        raise DataError(
            f"Data set {name!r} has no official {missing[0]!r} split; it has {', '.join(sorted(info.splits))}. Load it "
            "with `tensorflow_datasets.load`, split it yourself and pass it to `from_arrays` or `from_folder`."
        )
    total = info.splits["train"].num_examples
    first_held = total - round(total * validation_fraction)
    sizes = {"train": first_held, "validation": total - first_held, "test": info.splits["test"].num_examples}
    check_sizes(name, sizes)
    check_limit(limit_train, first_held)
    sizes["train"] = limit_train or first_held
    return {"train": f"train[:{sizes['train']}]", "validation": f"train[{first_held}:]", "test": "test"}, sizes


def _slice_unlabelled(
    name: str, info: Any, unlabelled: float | str, slices: dict[str, str], sizes: dict[str, int]
) -> None:
    """Adds the slice "unlabelled": an official split, or the last ones of the training samples."""
    if isinstance(unlabelled, str):
        others = sorted(set(info.splits) - {"train", "test"})
        if unlabelled not in others:
            what = f"one of the splits {', '.join(others)}, or " if others else ""
            raise InvalidArgumentError("unlabelled", f"None, {what}a share in (0, 1) for {name!r}", unlabelled)
        slices["unlabelled"], sizes["unlabelled"] = unlabelled, info.splits[unlabelled].num_examples
    elif isinstance(unlabelled, bool) or not 0 < unlabelled < 1:
        raise InvalidArgumentError("unlabelled", "None, the name of a split, or a share in (0, 1)", unlabelled)
    else:
        size = sizes["train"]
        sizes["unlabelled"] = round(size * unlabelled)
        sizes["train"] = kept = size - sizes["unlabelled"]
        slices["train"], slices["unlabelled"] = f"train[:{kept}]", f"train[{kept}:{size}]"
    check_some_labelled(name, sizes["train"], sizes["unlabelled"])


def _without_labels(stream: tf.data.Dataset) -> tf.data.Dataset:
    return stream.map(lambda x, y: (x, tf.constant(UNLABELLED, tf.int32)), num_parallel_calls=tf.data.AUTOTUNE)


def _stream(builder: Any, part: str, size: tuple[int, int] | None) -> tf.data.Dataset:
    """Samples `(image uint8, label)` of a slice, in one fixed order."""
    tfds = _import_tfds()
    # Without TFDS's own cache, which would be a second one.
    config = tfds.ReadConfig(try_autocache=False, skip_prefetch=True)
    stream = builder.as_dataset(split=part, as_supervised=True, shuffle_files=False, read_config=config)
    if size is not None:
        stream = stream.map(lambda x, y: (resize(x, size), y), num_parallel_calls=tf.data.AUTOTUNE)
    return stream
