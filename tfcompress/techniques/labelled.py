"""Labelled batches of the data that a user gives, and the loss that they stand for where none is given.

Invariant: what is given is used as it is or refused; no label and no output is read as something else. Left out: other
losses than cross-entropy on classes, which a user passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.data import Dataset
from tfcompress.errors import DataError, InvalidArgumentError
from tfcompress.training.fit import classification_loss

_BATCH = 32


def labelled_batches(model: keras.Model, data: Any, samples: int | None = None) -> Iterable[tuple[Any, Any]]:
    """Batches `(inputs, labels)` with at most `samples` samples in all.

    Args:
        model: The model that they are for.
        data: A `Dataset` (its train split), a `tf.data.Dataset` of batches `(x, y)`, or a tuple of arrays `(x, y)`. For
            several inputs x is a list or tuple of arrays, or a dictionary of them.
        samples: The most samples, at least 1; None takes all, and batches as they are.

    Raises:
        InvalidArgumentError: If it is none of these.
        DataError: If it gives no labels, or arrays of different lengths.
    """
    if isinstance(data, Dataset):
        return data.batches("train", _BATCH, limit=samples)
    if isinstance(data, tuple) and len(data) == 2:
        data = tf.data.Dataset.from_tensor_slices(_arrays(model, *data)).batch(_BATCH)
    if not isinstance(data, tf.data.Dataset):
        raise InvalidArgumentError(
            "data", "a tfcompress Dataset, a tf.data.Dataset of batches (x, y), or arrays (x, y)", type(data)
        )
    if not isinstance(data.element_spec, tuple) or len(data.element_spec) < 2:
        raise DataError(f"`data` must give (x, y). Received: {data.element_spec}.")
    batches = data if samples is None else data.unbatch().take(samples).batch(_BATCH)
    # A tuple of inputs would be taken for inputs and labels; `tf.data` knows no lists.
    return ((list(x) if isinstance(x, tuple) else x, y) for x, y, *_ in batches)


def _arrays(model: keras.Model, x: Any, y: Any) -> tuple[Any, Any]:
    """Arrays as `tf.data` takes them, which would make one array of a list of several inputs."""
    if isinstance(x, list | tuple) and len(model.inputs) > 1 and len(x) != len(model.inputs):
        raise DataError(f"`data` must give {len(model.inputs)} inputs for {model.name!r}. Received: {len(x)}.")
    x, y = _side(x, len(model.inputs) > 1), _side(y, len(model.outputs) > 1)
    lengths = [array.shape[0] if len(array.shape) else 0 for array in keras.tree.flatten((x, y))]
    if len(set(lengths)) != 1:
        raise DataError(f"`data` must have as many labels as samples, in every array. Received: {lengths} of them.")
    return x, y


def _side(value: Any, several: bool) -> Any:
    """The inputs or the labels: an array, or a tuple or dictionary of several."""
    if isinstance(value, dict):
        return {key: _side(one, False) for key, one in value.items()}
    if several and isinstance(value, list | tuple):
        return tuple(_side(one, False) for one in value)
    return value if hasattr(value, "shape") else np.asarray(value)


def loss_of_classes(model: keras.Model, batches: Sequence[tuple[Any, Any]]) -> Callable[[Any, Any], Any] | None:
    """Cross-entropy, if these are labels of classes for the single output of a model; None if they may be others.

    Args:
        model: The model.
        batches: `(inputs, labels)`; labels of classes are whole numbers, one for each vector of outputs.
    """
    shape = model.output_shape
    if not isinstance(shape, tuple) or isinstance(shape[0], tuple) or len(shape) < 2 or (shape[-1] or 0) < 2:
        return None
    for _, labels in batches:
        if not all(hasattr(labels, name) for name in ("dtype", "shape")):
            return None
        array = np.asarray(labels)
        array = array[..., 0] if array.ndim == len(shape) and array.shape[-1] == 1 else array
        is_one_each = array.ndim == len(shape) - 1 and all(
            size in (None, count) for size, count in zip(shape[1:-1], array.shape[1:], strict=True)
        )
        if not is_one_each or array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= shape[-1]:
            return None
    return classification_loss(model, int(shape[-1]))
