"""A `Dataset` from NumPy arrays.

Invariant: the arrays are checked in full before anything is built, and the samples keep the order in which they came.
Left out: arrays larger than memory; write those as a TFDS set or a folder of images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfcompress.data.augment import Augmentation
from tfcompress.data.checks import check_labels, check_samples, check_sizes
from tfcompress.data.dataset import Dataset, check_range
from tfcompress.data.holdout import hold_out, leave_out_labels
from tfcompress.data.split import UNLABELLED, Split
from tfcompress.errors import DataError, InvalidArgumentError

Arrays = tuple[np.ndarray, np.ndarray]


def from_arrays(
    x: np.ndarray,
    y: np.ndarray,
    *,
    validation: float | Arrays = 0.1,
    test: float | Arrays = 0.2,
    name: str = "arrays",
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    input_range: tuple[float, float] | None = None,
    augmentation: Augmentation | None = None,
    unlabelled: float | np.ndarray | None = None,
) -> Dataset:
    """Makes a `Dataset` of arrays.

    uint8 values are taken for pixels, and 0 to 255 is mapped to `input_range`. Other values reach the model as they
    are, as float32.

    Args:
        x: Samples, shape `(samples, ...)`; images `(samples, height, width, channels)`.
        y: Class of each sample, whole numbers from 0, shape `(samples,)` or `(samples, 1)`.
        validation: Samples for validation, as another `(x, y)`, or the share of each class of the training samples
            to hold out, in (0, 1). The choice is fixed: no seed changes it.
        test: The same for testing; held out first.
        name: What reports call the data.
        num_classes: Number of classes, at least 2. None counts `class_names`, or takes the largest training label
            plus 1.
        class_names: One name for each class. None names them by their numbers.
        input_range: What uint8 pixels are mapped to, (0, 1) if None. For other types, the range that the values must
            lie in; None takes the smallest and the largest training value.
        augmentation: Random changes of training images, or None.
        unlabelled: Training samples that have no labels, shape `(samples, ...)`, or the share of each class of the
            training samples whose labels are left out, in (0, 1), as of `validation`; only a student under a teacher
            sees them (`Dataset.taught`). None has no such samples.

    Returns:
        The data, with the arrays copied into TensorFlow once.

    Raises:
        DataError: If shapes don't fit, labels are out of range, a split is empty, or a value isn't finite.
        InvalidArgumentError: If another argument is out of its range.

    Example:
        >>> x = np.arange(40, dtype=np.float32).reshape(20, 2)
        >>> data = from_arrays(x, np.arange(20) % 2)
        >>> data.sizes
        {'train': 14, 'validation': 2, 'test': 4}
    """
    x, y = np.asarray(x), np.asarray(y)
    given, fractions = {}, {}
    for split, source in (("test", test), ("validation", validation)):
        if isinstance(source, (int, float)):
            fractions[split] = source
        else:
            given[split] = _pair(split, source)
    classes = _count_classes(num_classes, class_names)
    checked = {"train": _check(f"Data set {name!r}, train split", x, y, classes)}
    if classes is None:
        classes = max(2, 1 + int(checked["train"][1].max()))
    for split, pair in given.items():
        checked[split] = _check(f"Data set {name!r}, {split} split", *pair, classes)
    for split, fraction in fractions.items():
        x, y = checked["train"]
        kept, held = hold_out(y, fraction, name=split)
        checked["train"], checked[split] = (x[kept], y[kept]), (x[held], y[held])
    check_sizes(name, {split: len(y) for split, (_, y) in checked.items()})
    if unlabelled is not None and not isinstance(unlabelled, (int, float)):
        checked["unlabelled"] = _without_labels(f"Data set {name!r}, unlabelled samples", np.asarray(unlabelled))
    _check_alike(name, checked)
    input_range, stored_range = _ranges(name, checked, input_range)
    if isinstance(unlabelled, (int, float)):
        checked["train"], checked["unlabelled"] = leave_out_labels(name, *checked["train"], unlabelled)
    splits = {split: array_split(*arrays) for split, arrays in checked.items()}
    return Dataset(
        name=name,
        unlabelled=splits.pop("unlabelled", None),
        splits=splits,
        num_classes=classes,
        class_names=tuple(class_names) if class_names is not None else tuple(str(i) for i in range(classes)),
        input_range=input_range,
        stored_range=stored_range,
        augmentation=augmentation,
    )


def _pair(split: str, given: object) -> Arrays:
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise InvalidArgumentError(split, "a number in (0, 1) or a pair (x, y) of arrays", type(given).__name__)
    return np.asarray(given[0]), np.asarray(given[1])


def _count_classes(num_classes: int | None, class_names: Sequence[str] | None) -> int | None:
    if num_classes is None:
        return None if class_names is None else len(class_names)
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise InvalidArgumentError("num_classes", "a whole number, at least 2", num_classes)
    return num_classes


def _without_labels(where: str, x: np.ndarray) -> Arrays:
    return _check_values(where, x), np.full(len(x), UNLABELLED, np.int32)


def _check(where: str, x: np.ndarray, y: np.ndarray, num_classes: int | None) -> Arrays:
    x = _check_values(where, x)
    return x, check_labels(y, len(x), num_classes, where)


def _check_values(where: str, x: np.ndarray) -> np.ndarray:
    check_samples(x, where)
    if x.dtype != np.uint8:
        # Before the check for infinity is over: a float64 beyond float32's range becomes infinite only here.
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        check_samples(x, where)
    return x


def _check_alike(name: str, checked: dict[str, Arrays]) -> None:
    """All splits must hold samples of the same shape, in the same kind of numbers."""
    train = checked["train"][0]
    for split, (x, _) in checked.items():
        if x.shape[1:] != train.shape[1:]:
            raise DataError(
                f"Data set {name!r}, {split} split: samples must have the shape of the training samples, "
                f"{train.shape[1:]}. Received: {x.shape[1:]}."
            )
        if x.dtype != train.dtype:
            raise DataError(
                f"Data set {name!r}, {split} split: uint8 pixels and other numbers are scaled differently; use one "
                f"type in all splits. Received: {x.dtype} here and {train.dtype} for training."
            )


def _ranges(
    name: str, checked: dict[str, Arrays], input_range: tuple[float, float] | None
) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """The range that inputs end in, and the stored range that is mapped to it (None: values stay as they are)."""
    if input_range is not None:
        check_range("input_range", input_range)
    train = checked["train"][0]
    if train.dtype == np.uint8:
        return input_range or (0.0, 1.0), (0.0, 255.0)
    if input_range is None:
        low, high = float(train.min()), float(train.max())
        return (low, high if high > low else low + 1.0), None
    for split, (x, _) in checked.items():
        low, high = float(x.min()), float(x.max())
        if low < input_range[0] or high > input_range[1]:
            raise DataError(
                f"Data set {name!r}, {split} split: values must lie in input_range {input_range}; scale them, or pass "
                f"the range that they have. Received: values from {low:g} to {high:g}."
            )
    return input_range, None


def array_split(x: np.ndarray, y: np.ndarray) -> Split:
    """The `Split` that holds checked arrays: x of shape `(samples, ...)` as stored, y int32 of shape `(samples,)`."""
    labelled = bool((y != UNLABELLED).all())
    return Split(tf.data.Dataset.from_tensor_slices((x, y)), size=len(y), resident=True, labelled=labelled)
