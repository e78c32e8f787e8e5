"""`Dataset`: train, validation and test samples of one classification task, as `tf.data` streams.

Invariant: the order and the augmentation of a training epoch are a pure function of (seed, epoch), so that a run
resumed at epoch k sees bit by bit what the uninterrupted run saw; evaluation passes have one fixed order and are never
augmented. Samples without labels are in no split but that of `taught`. Pixels stay in the type in which they are stored
(uint8 for images) until they leave in a batch. Left out: where samples come from; `arrays`, `folder`, `digits` and
`tfds_source` build the splits.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfcompress.data.augment import Augmentation, stream_seed
from tfcompress.data.split import Split, mixed_in
from tfcompress.data.taught import TaughtInputs
from tfcompress.errors import InvalidArgumentError

SPLITS = ("train", "validation", "test")

_ORDER = 0  # the purpose of an epoch's order, beside those of augment.py
_FIXED_SEED = 1  # any number but 0, for which TensorFlow compares seeds in Python


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Train, validation and test samples of one classification task.

    Built by `load_dataset`, `from_arrays` or `from_folder`. `dataclasses.replace(data, augmentation=...)` gives the
    same data, in the same memory, with another augmentation.

    Args:
        name: What reports call it.
        splits: A `Split` for each of "train", "validation" and "test".
        num_classes: Number of classes; labels are 0 to `num_classes - 1`.
        class_names: One name for each class.
        input_range: The (low, high) that samples are mapped to.
        stored_range: The (low, high) of stored values that becomes `input_range`, such as (0, 255); None leaves values
            as they are.
        augmentation: Random changes of training images, or None.
        unlabelled: Training samples that nobody has labelled, or None. Only what a teacher teaches sees them, as
            `taught`.

    Raises:
        InvalidArgumentError: If an argument is out of its range, or the augmentation or the samples without labels
            don't fit the samples.

    Example:
        >>> from tfcompress.data import load_dataset
        >>> data = load_dataset("digits")
        >>> data.input_shape, data.num_classes, data.sizes["test"]
        ((8, 8, 1), 10, 359)
        >>> x, y = next(iter(data.batches("test", batch_size=32)))
        >>> x.shape, x.dtype, y.dtype
        (TensorShape([32, 8, 8, 1]), tf.float32, tf.int32)
    """

    name: str
    splits: Mapping[str, Split]
    num_classes: int
    class_names: tuple[str, ...]
    input_range: tuple[float, float] = (0.0, 1.0)
    stored_range: tuple[float, float] | None = None
    augmentation: Augmentation | None = None
    unlabelled: Split | None = None

    def __post_init__(self):
        if set(self.splits) != set(SPLITS):
            raise InvalidArgumentError("splits", f"a mapping with the keys {', '.join(SPLITS)}", sorted(self.splits))
        check_range("input_range", self.input_range)
        if len(self.class_names) != self.num_classes:
            raise InvalidArgumentError("class_names", f"{self.num_classes} names, one for each class", self.class_names)
        if self.augmentation is not None:
            self.augmentation.check_fits(self.input_shape)
        if self.unlabelled is not None:
            self._check_unlabelled(self.unlabelled)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (height, width, channels) for images."""
        return tuple(self.splits["train"].stream.element_spec[0].shape.as_list())

    @property
    def sizes(self) -> dict[str, int]:
        """Number of samples in each split."""
        return {name: self.splits[name].size for name in SPLITS}

    @functools.cached_property
    def taught(self) -> Dataset:
        """The same data as a student under a teacher sees it: samples without labels are among the training samples.

        Their label is -1, which is none: losses and metrics on labels must leave it out. They are evenly spread over
        the fixed order of the training samples. Where there are none, this is the data itself.

        Example:
            >>> from tfcompress.data import load_dataset
            >>> data = load_dataset("digits", unlabelled=0.9)
            >>> data.sizes["train"], data.taught.sizes["train"]
            (129, 1295)
        """
        if self.unlabelled is None:
            return self
        train = mixed_in(self.splits["train"], self.unlabelled)
        return dataclasses.replace(self, splits={**self.splits, "train": train}, unlabelled=None)

    @property
    def train(self) -> tf.data.Dataset:
        """Training samples `(x, y)`: x float32 of `input_shape`, y int32 scalar; fixed order, not augmented."""
        return self._mapped("train")

    @property
    def validation(self) -> tf.data.Dataset:
        """Validation samples, as in `train`."""
        return self._mapped("validation")

    @property
    def test(self) -> tf.data.Dataset:
        """Test samples, as in `train`."""
        return self._mapped("test")

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of batches in one epoch of `train_batches`; the last one may be partial."""
        check_positive("batch_size", batch_size)
        return math.ceil(self.splits["train"].size / batch_size)

    def batches(self, split: str, batch_size: int, *, limit: int | None = None) -> tf.data.Dataset:
        """One pass over a split in its fixed order, not augmented; for evaluation and calibration.

        Args:
            split: "train", "validation" or "test".
            batch_size: Samples in a batch, at least 1; the last batch may hold fewer.
            limit: Read only this many samples, the first ones; None reads all.

        Returns:
            Batches `(x, y)`: x float32 `(batch, *input_shape)` in `input_range`, y int32 `(batch,)`; of known
            cardinality, prefetched.

        Raises:
            InvalidArgumentError: If an argument is out of its range.
        """
        if split not in SPLITS:
            raise InvalidArgumentError("split", f"one of {', '.join(SPLITS)}", split)
        check_positive("batch_size", batch_size)
        source = self.splits[split]
        if limit is None:
            samples, count = source.samples, source.size
        else:
            check_positive("limit", limit)
            # Not from the cache: a pass that stops early would discard what it has cached.
            samples, count = source.stream.take(limit), min(limit, source.size)
        batched = samples.batch(batch_size).map(self._to_input, num_parallel_calls=tf.data.AUTOTUNE)
        cardinality = tf.data.experimental.assert_cardinality(math.ceil(count / batch_size))
        return batched.apply(cardinality).prefetch(tf.data.AUTOTUNE)

    @property
    def views(self) -> int | None:
        """How many pictures there are of each training sample; None if each epoch makes new ones."""
        if self.augmentation is None or not self.augmentation.changes_images:
            return 1
        return self.augmentation.views

    def require_views(self) -> int:
        """The number of views, where a teacher's outputs are stored for each.

        Raises:
            InvalidArgumentError: If each epoch makes new pictures.
        """
        if self.views is None:
            raise InvalidArgumentError(
                "Augmentation.views", "a number of views where a teacher's outputs are stored", None
            )
        return self.views

    def view(self, number: int, batch_size: int, *, first: int = 0, labels: bool = False) -> tf.data.Dataset:
        """One pass over a view of the training samples, in their fixed order: what an epoch sees, not shuffled.

        Args:
            number: Number of the view, in [0, views).
            batch_size: Samples in a batch, at least 1; the last batch may hold fewer.
            first: Index of the sample to begin with.
            labels: Whether the batches have labels.

        Returns:
            Batches x, float32 `(batch, *input_shape)` in `input_range`; or `(x, y)`, y int32 `(batch,)`.

        Raises:
            InvalidArgumentError: If an argument is out of its range, or each epoch makes new pictures.
        """
        views = self.require_views()
        if not _is_whole(number) or not 0 <= number < views:
            raise InvalidArgumentError("number", f"a whole number in [0, {views})", number)
        check_positive("batch_size", batch_size)
        samples = self.splits["train"].stream.enumerate().skip(first).batch(batch_size)
        shown = self._shown(0, number)
        of_both = samples.map(shown, num_parallel_calls=tf.data.AUTOTUNE)
        return of_both if labels else of_both.map(lambda x, y: x)

    def train_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        first_epoch: int = 0,
        epochs: int,
        teacher_outputs: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
    ) -> tf.data.Dataset:
        """The epochs `first_epoch` to `epochs - 1` in one flat stream of shuffled, augmented batches.

        Each epoch has `steps_per_epoch(batch_size)` batches, its last one may be partial: pass that number to `fit`.
        A split that fits in memory is shuffled completely, a larger one through a buffer of 256 MB.

        Args:
            batch_size: Samples in a batch, at least 1.
            seed: Whole number; another one gives other orders and other augmentations.
            first_epoch: The first epoch to read, in [0, epochs).
            epochs: The epoch before which the stream ends, at least 1.
            teacher_outputs: Gives what a teacher has said about samples, from their indices, int64 `(batch,)`, and the
                number of a view, int64. The batches then have `TaughtInputs` in the place of x.

        Returns:
            Batches `(x, y)` as `batches` gives them.

        Raises:
            InvalidArgumentError: If an argument is out of its range, or outputs are stored and each epoch makes new
                pictures.
        """
        if teacher_outputs is not None:
            self.require_views()
        steps = self.steps_per_epoch(batch_size)
        check_positive("epochs", epochs)
        if not _is_whole(seed) or not -(2**63) <= seed < 2**63:
            raise InvalidArgumentError("seed", "a whole number of 64 bits", seed)
        if not _is_whole(first_epoch) or not 0 <= first_epoch < epochs:
            raise InvalidArgumentError("first_epoch", f"a whole number in [0, epochs), epochs = {epochs}", first_epoch)
        # Made here, not while `flat_map` traces: the cache must outlive this one stream to be shared by all.
        samples = self.splits["train"].samples
        stream = tf.data.Dataset.range(first_epoch, epochs).flat_map(
            lambda epoch: self._epoch(samples, batch_size, seed, epoch, teacher_outputs)
        )
        cardinality = tf.data.experimental.assert_cardinality(steps * (epochs - first_epoch))
        return stream.apply(cardinality).prefetch(tf.data.AUTOTUNE)

    def _epoch(
        self,
        samples: tf.data.Dataset,
        batch_size: int,
        seed: int,
        epoch: tf.Tensor,
        teacher_outputs: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None,
    ) -> tf.data.Dataset:
        """One shuffled, augmented epoch; called while `flat_map` traces its function."""
        source = self.splits["train"]
        # `shuffle` mixes TensorFlow's global seed into its own. In a function being traced, this sets only that
        # function's share of it, and the order depends on nothing but (seed, epoch).
        tf.random.set_seed(_FIXED_SEED)
        order = tf.random.stateless_uniform(
            [], stream_seed(seed, epoch, _ORDER), minval=None, maxval=None, dtype=tf.int64, alg="philox"
        )
        shuffled = samples.enumerate().shuffle(source.shuffle_buffer, seed=order, reshuffle_each_iteration=False)
        shown = self._shown(seed, epoch)

        def finish(indices, sample):
            x, y = shown(indices, sample)
            if teacher_outputs is not None:
                x = TaughtInputs(x, teacher_outputs(indices, epoch % self.views))
            return x, y

        return shuffled.batch(batch_size).map(finish, num_parallel_calls=tf.data.AUTOTUNE)

    def _shown(self, seed: int, epoch: int | tf.Tensor) -> Callable[[tf.Tensor, Any], tuple[tf.Tensor, tf.Tensor]]:
        """Gives a batch, by the indices of its samples, as an epoch shows it."""
        source = self.splits["train"]
        augmentation = self.augmentation or Augmentation()
        draws = augmentation.draw(seed=seed, epoch=epoch, size=source.size)
        fill = self.input_range[0] if self.stored_range is None else self.stored_range[0]

        def show(indices, sample):
            x, y = sample
            if self.augmentation is not None:
                x = augmentation.apply(x, tf.gather(draws, indices), fill=fill)
            return self._to_input(x, y)

        return show

    def _check_unlabelled(self, unlabelled: Split) -> None:
        """Raises an `InvalidArgumentError` unless these are samples as those of training are, with no labels."""
        expected = self.splits["train"].stream.element_spec
        if unlabelled.labelled or unlabelled.stream.element_spec != expected:
            raise InvalidArgumentError(
                "unlabelled",
                f"None or a Split with labelled=False of samples {expected}, as those of training are",
                (unlabelled.stream.element_spec, f"labelled={unlabelled.labelled}"),
            )

    def _mapped(self, split: str) -> tf.data.Dataset:
        return self.splits[split].samples.map(self._to_input, num_parallel_calls=tf.data.AUTOTUNE)

    def _to_input(self, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps stored values, of one sample or of a batch, to float32 in `input_range`."""
        x = tf.cast(x, tf.float32)
        if self.stored_range is None or self.stored_range == self.input_range:
            return x, y
        stored_low, stored_high = self.stored_range
        low, high = self.input_range
        # Divided, not multiplied by the inverse: both ends of the range are then hit exactly.
        return (x - stored_low) / (stored_high - stored_low) * (high - low) + low, y


def check_range(name: str, value: tuple[float, float]) -> None:
    """Raises `InvalidArgumentError` unless `value` is a pair (low, high) of finite numbers, low below high."""
    try:
        low, high = value
        valid = math.isfinite(low) and math.isfinite(high) and low < high
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise InvalidArgumentError(name, "a pair (low, high) of finite numbers with low < high", value)


def check_positive(name: str, value: int) -> None:
    """Raises `InvalidArgumentError` unless `value` is a whole number of at least 1."""
    if not _is_whole(value) or value < 1:
        raise InvalidArgumentError(name, "a whole number, at least 1", value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_limit(limit_train: int | None, available: int) -> None:
    """Raises `InvalidArgumentError` unless `limit_train` is None or a number of samples that the training split has."""
    if limit_train is not None and (not _is_whole(limit_train) or not 1 <= limit_train <= available):
        raise InvalidArgumentError(
            "limit_train", f"None or a whole number from 1 to {available}, the training samples there are", limit_train
        )
