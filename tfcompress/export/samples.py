"""Input samples as arrays, from whatever a user calls calibration data.

Invariant: what comes out has one float32 array `(samples, ...)` per model input, of the model's shapes, finite. Left
out: labels, which are dropped. Which samples: random ones of a `Dataset`, evenly spread ones of an array, otherwise the
first ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfcompress.data import Dataset
from tfcompress.errors import DataError, InvalidArgumentError
from tfcompress.export.endpoint import InputSpec

_BATCH = 100


def collect(source: Any, specs: Sequence[InputSpec], limit: int, *, split: str = "train") -> dict[str, np.ndarray]:
    """Up to `limit` samples for each input of a model.

    Args:
        source: A `Dataset` (its split `split` is read), batches `x` or `(x, y)` in a `tf.data.Dataset` or any other
            iterable, or arrays: one `(samples, ...)`, or for several inputs a list in their order or a dict by name.
        specs: The inputs of the model.
        limit: Number of samples to take at most, at least 1.
        split: Which split of a `Dataset` to read.

    Returns:
        Float32 arrays `(samples, ...)` by input name; inputs that are no floats in Keras keep their own type.

    Raises:
        DataError: If there is no sample, a shape is not the model's, or a value is NaN or infinite.
        InvalidArgumentError: If `source` is none of the above.
    """
    parts: dict[str, list[np.ndarray]] = {spec.name: [] for spec in specs}
    count = 0
    for batch in _batches(source, specs, limit, split):
        named = _by_name(batch, specs)
        rows = min(len(array) for array in named.values())
        for name, array in named.items():
            parts[name].append(array[: min(rows, limit - count)])
        count += rows
        if count >= limit:
            break
    if count == 0:
        raise DataError("The calibration data holds no sample. Give at least one batch; 100 to 500 samples are usual.")
    return {name: _checked(np.concatenate(arrays), name) for name, arrays in parts.items()}


def for_ranges_and_figures(
    source: Any, specs: Sequence[InputSpec], ranges: int, figures: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Samples that show the ranges of a model, and samples that a file of it is measured with.

    Args:
        source: As `collect` takes it. A `Dataset` gives its training split for the ranges and its validation split for
            the figures; anything else gives evenly spread ones of the same samples.
        specs: The inputs of the model.
        ranges: Number of samples for the ranges at most.
        figures: Number of samples for the figures at most.

    Returns:
        Both by input name.

    Raises:
        InvalidArgumentError: If `figures` is no number of samples.
        DataError: As `collect`.
    """
    if isinstance(figures, bool) or not isinstance(figures, int) or figures < 1:
        raise InvalidArgumentError("samples", "a whole number, at least 1", figures)
    real = collect(source, specs, max(ranges, figures))
    measured = collect(source, specs, figures, split="validation") if isinstance(source, Dataset) else real
    chosen = spread(len(next(iter(measured.values()))), figures)
    return real, {name: array[chosen] for name, array in measured.items()}


def spread(size: int, count: int) -> np.ndarray:
    """Up to `count` indices, evenly spread over `range(size)`."""
    return np.linspace(0, size - 1, min(count, size)).round().astype(int)


def _batches(source: Any, specs: Sequence[InputSpec], limit: int, split: str) -> Iterator[Any]:
    """Batches of inputs alone, without labels."""
    if isinstance(source, Dataset):
        # Training data in random order, since folders are sorted by class; other splits only come in a fixed one.
        plain = dataclasses.replace(source, augmentation=None)
        if split == "train":
            batches = plain.train_batches(_BATCH, seed=0, epochs=1)
        else:
            batches = plain.batches(split, _BATCH, limit=limit)
        for x, _ in batches:
            yield x
    elif _is_arrays(source, specs):
        arrays = _by_name(source, specs)
        size = min(len(array) for array in arrays.values())
        # Spread over the whole array: data sets on disk are often sorted by class.
        if size:
            chosen = spread(size, limit)
            yield {name: array[chosen] for name, array in arrays.items()}
    elif isinstance(source, (tf.data.Dataset, Iterable)) and not isinstance(source, (str, bytes)):
        for batch in source:
            yield batch[0] if isinstance(batch, tuple) else batch
    else:
        raise InvalidArgumentError(
            "calibration", "a Dataset, batches `x` or `(x, y)` such as a tf.data.Dataset, or arrays", source
        )


def _is_arrays(source: Any, specs: Sequence[InputSpec]) -> bool:
    if isinstance(source, (np.ndarray, tf.Tensor)):
        return True
    if isinstance(source, Mapping):
        return True
    return len(specs) > 1 and isinstance(source, list) and len(source) == len(specs)


def _by_name(batch: Any, specs: Sequence[InputSpec]) -> dict[str, np.ndarray]:
    """The arrays of one batch by input name, of the types and shapes of the model."""
    if isinstance(batch, Mapping):
        missing = [spec.name for spec in specs if spec.name not in batch]
        if missing:
            raise DataError(f"Calibration data lacks the inputs {missing}. It holds {sorted(batch)}.")
        values = [batch[spec.name] for spec in specs]
    elif isinstance(batch, (list, tuple)) and len(specs) > 1:
        if len(batch) != len(specs):
            raise DataError(f"A calibration batch holds {len(batch)} arrays, where the model has {len(specs)} inputs.")
        values = list(batch)
    else:
        values = [batch] if len(specs) == 1 else []
    if not values:
        names = [spec.name for spec in specs]
        raise DataError(f"The model has the inputs {names}: a calibration batch must be a dict or list of arrays.")
    return {spec.name: _as_input(value, spec) for spec, value in zip(specs, values, strict=True)}


def _as_input(value: Any, spec: InputSpec) -> np.ndarray:
    try:
        array = np.asarray(value)
        array = array.astype("float32" if np.dtype(spec.dtype).kind == "f" else spec.dtype, copy=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"Calibration data for input {spec.name!r} is no array of numbers: {error}") from error
    if array.ndim != len(spec.shape) + 1 or array.shape[1:] != spec.shape:
        expected = ", ".join(["batch", *map(str, spec.shape)])
        raise DataError(
            f"Calibration data for input {spec.name!r} must have the shape ({expected}). Received: {array.shape}."
        )
    return array


def _checked(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.unique(np.argwhere(~np.isfinite(array))[:, 0])
        raise DataError(
            f"Calibration data for input {name!r} is NaN or infinite in {len(bad)} of {len(array)} samples, first in "
            f"sample {bad[0]}. Remove or repair them: one such value spoils every range."
        )
    return array
