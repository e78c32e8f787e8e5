"""`StoredOutputs`: a teacher that is an array of what it has said, or files of it.

It goes where a teacher goes. A batch brings its outputs along, as `TaughtInputs`, so that a step costs no forward pass.

Invariant: outputs are read as they were stored, by the number of the sample in the training split and that of the view;
files are read by memory map, never as a whole. Left out: computing and writing them (`cache.py`).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfcompress.data import Dataset
from tfcompress.data.taught import TaughtInputs
from tfcompress.errors import InvalidArgumentError
from tfcompress.graph.outputs import SMALLEST_PROBABILITY, are_probabilities, look_like_sigmoids
from tfcompress.techniques.distill.data_key import data_key
from tfcompress.techniques.distill.teacher import probabilities_to_logits

# How far the logarithm of a probability may be off as float16, relative to it.
_ROUNDED = 1e-3
# How far the sum of probabilities in steps of 1/256 or 1/100 may be off, of no more than some classes.
_STEPPED = 0.03


class StoredOutputs:
    """A teacher's outputs for every training sample, and for every view of it.

    Args:
        outputs: Array of shape `(samples, *outputs)`, or `(views, samples, *outputs)` with `views` given: class logits
            or probabilities, for the training samples in their fixed order (that of `Dataset.train`).
        views: Number of views, or None if there is one without an axis of its own.

    Raises:
        InvalidArgumentError: If the array has another shape, or holds NaN or infinity, or probabilities that were
            rounded too much to be told apart from logits.

    Example:
        >>> from tfcompress.data import load_dataset
        >>> data = load_dataset("digits")
        >>> stored = StoredOutputs(np.zeros((data.sizes["train"], 10), "float32"))
        >>> x, y = next(iter(stored.train_batches(data, 64, seed=0, epochs=1)))
        >>> x.inputs.shape, x.teacher_outputs.shape
        (TensorShape([64, 8, 8, 1]), TensorShape([64, 10]))
    """

    compiles = True

    def __init__(self, outputs: Any, *, views: int | None = None):
        outputs = _numbers(outputs)
        expected = 2 + (views is not None)
        if outputs.ndim < expected or (views is not None and len(outputs) != views):
            shape = "(samples, *outputs)" if views is None else f"({views}, samples, *outputs)"
            raise InvalidArgumentError("StoredOutputs.outputs", f"an array of shape {shape}", outputs.shape)
        if not np.isfinite(outputs).all():
            raise InvalidArgumentError("StoredOutputs.outputs", "finite numbers", "NaN or infinity")
        self._shards: list[list[np.ndarray]] = [[view] for view in (outputs if views is not None else outputs[None])]
        self.shape: tuple[int, ...] = outputs.shape[expected - 1 :]
        self._data_key: str | None = None
        first = self._shards[0][0][:256]
        self._are_probabilities = are_probabilities(first)
        if not self._are_probabilities:
            _check_not_nearly(first)
        # What a rounded zero stands for is half of the smallest number of the type.
        self._step = float(np.finfo(outputs.dtype).smallest_subnormal) if outputs.dtype == np.float16 else 0.0

    @classmethod
    def of_shards(cls, shards: Sequence[Sequence[np.ndarray]], shape: tuple[int, ...]) -> StoredOutputs:
        """Logits in pieces: of each view, arrays of equally many samples but the last.

        Args:
            shards: For each view its arrays, of `shape` for each sample or as `largest` gives them.
            shape: Shape of the logits for one sample.
        """
        stored = cls.__new__(cls)
        stored._shards = [list(view) for view in shards]
        stored.shape = tuple(shape)
        stored._are_probabilities = False
        stored._data_key = None
        return stored

    def note_data(self, data: Dataset, key: str) -> None:
        """Keeps the `data_key` of the data whose outputs these are; they go along with no other then."""
        self._data_key, self._fitting = key, weakref.ref(data)

    @property
    def gives_distributions(self) -> bool:
        """Whether its logits are logarithms of probabilities of classes: given so, or of a teacher that gave them."""
        if self._are_probabilities or self._shards[0][0].dtype.names is not None:
            return True
        logits = self._first_rows().astype("float64")
        if self.num_classes < 2 or logits.max() > _ROUNDED:
            return False
        return bool((np.abs(np.log(np.exp(logits).sum(-1))) <= _ROUNDED * np.log(2 * self.num_classes)).all())

    @property
    def gives_sigmoids(self) -> bool:
        """Whether its outputs look like sigmoids."""
        return not self.gives_distributions and look_like_sigmoids(self._first_rows())

    @property
    def views(self) -> int:
        """Number of views that outputs are there for."""
        return len(self._shards)

    @property
    def size(self) -> int:
        """Number of samples."""
        return sum(len(shard) for shard in self._shards[0])

    @property
    def num_classes(self) -> int:
        """Size of the last output axis."""
        return self.shape[-1]

    def _first_rows(self) -> np.ndarray:
        return self.rows(0, np.arange(min(self.size, 256)))

    def rows(self, view: int, indices: np.ndarray) -> np.ndarray:
        """Outputs of samples by their numbers, float32 of shape `(len(indices), *shape)`."""
        view, indices = int(view), np.asarray(indices)
        shards = self._shards[view]
        number, place = np.divmod(indices, len(shards[0]))
        found = np.empty((len(indices), *self.shape), "float32")
        for each in np.unique(number):
            chosen = number == each
            found[chosen] = _dense(shards[each][place[chosen]], self.shape)
        return found

    def train_batches(
        self, data: Dataset, batch_size: int, *, seed: int, first_epoch: int = 0, epochs: int
    ) -> tf.data.Dataset:
        """`data.train_batches`, whose batches bring the stored outputs along: what a `Distiller` is fitted on.

        Raises:
            InvalidArgumentError: If the data has other samples or views than outputs were stored for, as far as they
                are in memory.
        """
        self.check_fits(data)
        return data.train_batches(
            batch_size, seed=seed, first_epoch=first_epoch, epochs=epochs, teacher_outputs=self.lookup
        )

    def check_fits(self, data: Dataset) -> None:
        """Raises an `InvalidArgumentError` unless there are outputs for each sample and each view of `data`.

        Outputs that were computed are of that data; of those that a user brings, only the numbers are known.
        """
        expected, received = (self.size, self.views), (data.sizes["train"], data.require_views())
        if expected != received:
            raise InvalidArgumentError(
                "data", f"{expected[0]} training samples in {expected[1]} views, as outputs are stored for", received
            )
        if self._data_key is None or self._fitting() is data:
            return
        if data_key(data) != self._data_key:
            raise InvalidArgumentError("data", "that whose outputs are stored, sample by sample", repr(data.name))
        self._fitting = weakref.ref(data)

    def lookup(self, indices: tf.Tensor, view: tf.Tensor) -> tf.Tensor:
        """The same as `rows`, as an operation of a stream."""
        found = tf.numpy_function(self.rows, [view, indices], tf.float32, stateful=False)
        return tf.ensure_shape(found, (None, *self.shape))

    def find_out_outputs(self, inputs: Any) -> None:
        """Looks at the inputs of a first batch, which must bring outputs along.

        Raises:
            InvalidArgumentError: If they do not.
        """
        if not isinstance(inputs, TaughtInputs):
            raise InvalidArgumentError(
                "x", "batches of `StoredOutputs.train_batches`, which bring the teacher's outputs along", type(inputs)
            )

    def logits(self, inputs: TaughtInputs, labels: Any = None) -> Any:
        """Float32 logits of shape `(batch, classes)`, out of the batch; labels are not looked at."""
        if self._are_probabilities:
            return probabilities_to_logits(inputs.teacher_outputs, self._step)
        return tf.cast(inputs.teacher_outputs, tf.float32)


def largest(logits: np.ndarray, count: int) -> np.ndarray:
    """The largest logits of each sample, as logarithms of their probabilities, and whose they are.

    Args:
        logits: Shape `(samples, classes)`.
        count: How many are kept, below the number of classes.

    Returns:
        A structured array of shape `(samples,)`, of 4 bytes for each number that is kept, or 6 of many classes.
    """
    logits = logits.astype("float32")
    classes = np.argpartition(logits, -count, axis=-1)[:, -count:]
    highest = logits.max(-1, keepdims=True)
    log_sum = highest + np.log(np.exp(logits - highest).sum(-1, keepdims=True))
    index = "<u2" if logits.shape[-1] <= 2**16 else "<u4"
    kept = np.empty(len(logits), [("logit", "<f2", (count,)), ("of", index, (count,))])
    kept["logit"], kept["of"] = np.take_along_axis(logits - log_sum, classes, -1), classes
    return kept


def _numbers(outputs: Any) -> np.ndarray:
    try:
        found = np.asarray(outputs)
    except ValueError as error:  # Rows of unlike length.
        raise InvalidArgumentError("StoredOutputs.outputs", "an array of numbers", str(error)) from error
    if found.dtype.kind not in "iuf" and found.dtype.name != "bfloat16":
        raise InvalidArgumentError("StoredOutputs.outputs", "an array of numbers", f"one of {found.dtype}")
    return found


def _check_not_nearly(outputs: np.ndarray) -> None:
    """Raises an `InvalidArgumentError` if outputs look like probabilities, and their sums are not 1."""
    values = outputs.astype("float64")
    off = np.abs(values.sum(-1) - 1)
    if values.shape[-1] > 1 and values.min() >= 0 and values.max() <= 1 + _STEPPED and off.max() <= _STEPPED:
        raise InvalidArgumentError(
            "StoredOutputs.outputs",
            "logits, or probabilities whose sum over the classes is 1; divide rounded ones by their sum",
            f"values from 0 to 1 whose sums are off by up to {off.max():.2g}",
        )


def _dense(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Rows as they were, or with what the largest leave of the probability spread evenly over all others."""
    if rows.dtype.names is None:
        return rows
    kept = rows["logit"].astype("float32")
    left = np.maximum(1 - np.exp(kept).sum(-1), SMALLEST_PROBABILITY) / (shape[-1] - kept.shape[-1])
    found = np.repeat(np.log(left)[:, None], shape[-1], axis=1)
    np.put_along_axis(found, rows["of"].astype("int64"), kept, -1)
    return found
