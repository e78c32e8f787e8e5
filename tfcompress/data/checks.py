"""Whether data can be learned from: shapes, labels, finite values, non-empty splits.

Invariant: what passes here trains without a surprise from the data; what doesn't is a `DataError` that names the data
set, the split, what is wrong and what to do. Arrays are checked in full. Streams are checked by their first sample when
they are opened, and each sample's label on the way through, where TensorFlow reports it as its own
`InvalidArgumentError` with our message. Left out: whether labels are true, and whether classes are balanced.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfcompress.errors import DataError

_CHUNK = 4096  # samples looked at together, so that a check doesn't double the memory


def check_samples(x: np.ndarray, where: str) -> None:
    """Checks the inputs of one split.

    Args:
        x: Shape `(samples, ...)`.
        where: Data set and split, as messages start.

    Raises:
        DataError: If `x` isn't numeric, has no samples or no features, or holds NaN or infinity.
    """
    if x.dtype.kind not in "biuf":
        raise DataError(f"{where}: x must hold integers or floating-point numbers. Received: dtype {x.dtype}.")
    if x.ndim < 2:
        raise DataError(
            f"{where}: x must have the shape (samples, ...), such as (samples, height, width, channels). "
            f"Received: {x.shape}."
        )
    if len(x) == 0:
        raise DataError(f"{where}: the split is empty. Give it at least one sample. Received: x of shape {x.shape}.")
    if x.size == 0:
        raise DataError(f"{where}: each sample is empty. Received: x of shape {x.shape}.")
    if x.dtype.kind != "f":
        return
    for start in range(0, len(x), _CHUNK):
        chunk = x[start : start + _CHUNK]
        finite = np.isfinite(chunk).reshape(len(chunk), -1).all(axis=1)
        if not finite.all():
            first = start + int(np.argmin(finite))
            raise DataError(
                f"{where}: x holds NaN or infinity, first in sample {first}. Remove or repair such samples; "
                "`numpy.isfinite(x)` finds them."
            )


def check_labels(y: np.ndarray, samples: int, num_classes: int | None, where: str) -> np.ndarray:
    """Checks the labels of one split.

    Args:
        y: Whole numbers of shape `(samples,)` or `(samples, 1)`.
        samples: Number of samples that the labels belong to.
        num_classes: Labels must be below it; None allows any that are not negative.
        where: Data set and split, as messages start.

    Returns:
        The labels, int32 of shape `(samples,)`.

    Raises:
        DataError: If the shape, the type or a label is wrong.
    """
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise DataError(
            f"{where}: y must hold one class number for each sample, shape (samples,); one-hot labels become that by "
            f"`y.argmax(-1)`. Received: shape {y.shape}."
        )
    if len(y) != samples:
        raise DataError(f"{where}: x and y must have the same length. Received: {samples} and {len(y)}.")
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{where}: y must hold whole numbers (class numbers from 0). Received: dtype {y.dtype}.")
    wrong = (y < 0) if num_classes is None else (y < 0) | (y >= num_classes)
    if wrong.any():
        first = int(np.argmax(wrong))
        allowed = "0 or above" if num_classes is None else f"in [0, {num_classes - 1}]"
        raise DataError(
            f"{where}: labels must be {allowed}. Received: {y[first]} in sample {first}, "
            f"{int(wrong.sum())} wrong labels in all."
        )
    return y.astype(np.int32)


def check_sizes(name: str, sizes: Mapping[str, int]) -> None:
    """Raises `DataError` if one of the splits, by name and number of samples, is empty."""
    empty = [split for split, size in sizes.items() if size < 1]
    if empty:
        raise DataError(
            f"Data set {name!r}: the {empty[0]} split is empty. Give it samples, or a larger fraction. "
            f"Received: {dict(sizes)} samples."
        )


def check_some_labelled(name: str, labelled: int, unlabelled: int) -> None:
    """Raises `DataError` unless some training samples keep their labels and some don't."""
    if not (labelled and unlabelled):
        raise DataError(
            f"Data set {name!r}: of the training samples some must have labels, and some none where `unlabelled` is a "
            f"share. Give another share. Received: {labelled} samples with labels and {unlabelled} without."
        )


def check_labels_in_stream(stream: tf.data.Dataset, num_classes: int, where: str) -> tf.data.Dataset:
    """The same samples `(x, y)`, with each label checked as it passes.

    Args:
        stream: Samples `(x, y)`, y a scalar.
        num_classes: Labels must be in [0, num_classes).
        where: Data set and split, as the message starts.

    Returns:
        Samples `(x, y)` with y int32. Reading a wrong label raises `tf.errors.InvalidArgumentError`.
    """
    message = f"{where}: labels must be in [0, {num_classes - 1}]. Leave samples without a class out of the split."

    def checked(x, y):
        right = tf.debugging.Assert((y >= 0) & (y < num_classes), [message, "Received:", y])
        # Graph code, but also run as it stands by `tf.data.experimental.enable_debug_mode`, where Assert gives None.
        with tf.control_dependencies([] if right is None else [right]):
            return tf.identity(x), tf.cast(y, tf.int32)

    return stream.map(checked, num_parallel_calls=tf.data.AUTOTUNE)


def check_first_sample(stream: tf.data.Dataset, where: str) -> None:
    """Raises `DataError` if the first sample of `stream` can't be read, or there is none."""
    try:
        first = next(iter(stream.take(1)), None)
    except tf.errors.OpError as error:
        raise DataError(f"{where}: the first sample can't be read: {error.message}") from error
    if first is None:
        raise DataError(f"{where}: the split is empty, though its description promises samples.")
