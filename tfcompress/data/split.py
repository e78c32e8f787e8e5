"""`Split`: the samples of one part of the data as they are stored, and samples without labels mixed into it.

Invariant: a split has one order, the same in each pass; what is kept in memory is kept once, whoever reads it. Left
out: shuffling, augmentation and the range of values (`dataset.py`).
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from tfcompress.files import content_key

# A split up to this size is kept in memory and shuffled completely; a larger one is read anew in each epoch and
# shuffled through a buffer of this size.
MEMORY_BYTES = 256 * 2**20

# The label of a sample that has none.
UNLABELLED = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The samples of one split, as they are stored.

    Args:
        stream: Samples `(x, y)`: x of static shape in its stored type, y an int32 scalar; the same order in each pass.
        size: Number of samples, at least 1.
        resident: Whether `stream` reads from memory already, and a cache would only keep a second copy.
        labelled: Whether each sample has a label; where one has none, its y is -1.
        parts: The splits that it is mixed of, labelled samples first; empty of one that comes from a source.
    """

    stream: tf.data.Dataset
    size: int
    resident: bool = False
    labelled: bool = True
    parts: tuple[Split, ...] = ()

    @property
    def sample_bytes(self) -> int:
        """Bytes of one stored x."""
        spec = self.stream.element_spec[0]
        return max(1, spec.shape.num_elements() * spec.dtype.size)

    @property
    def fits_memory(self) -> bool:
        """Whether the whole split is small enough to be kept in memory."""
        return self.size * self.sample_bytes <= MEMORY_BYTES

    @property
    def shuffle_buffer(self) -> int:
        """Number of samples to shuffle among."""
        # One more than there are samples: the first step then reads to the end, which is what completes the cache.
        return self.size + 1 if self.fits_memory else max(1, MEMORY_BYTES // self.sample_bytes)

    @functools.cached_property
    def samples(self) -> tf.data.Dataset:
        """`stream`, kept in memory after its first complete pass where it fits; all readers share that one cache."""
        if self.parts:
            return _evenly(*((part.samples, part.size) for part in self.parts))
        return self.stream.cache() if self.fits_memory and not self.resident else self.stream

    def key(self, limit: int | None = None) -> str:
        """What its inputs are known by, as they are stored; with a limit, the first so many."""
        stream = self.stream if limit is None else self.stream.take(limit)
        return content_key(*(np.asarray(x).tobytes() for x, _ in stream.batch(256)))


def mixed_in(labelled: Split, unlabelled: Split) -> Split:
    """Both splits in one, the samples of either evenly spread over its order.

    One after the other, a set that is larger than the buffer in which it is shuffled would show its labels in the first
    part of each epoch only.
    """
    return Split(
        _evenly((labelled.stream, labelled.size), (unlabelled.stream, unlabelled.size)),
        size=labelled.size + unlabelled.size,
        resident=True,  # As far as it shall be: the parts keep their own samples.
        labelled=False,
        parts=(labelled, unlabelled),
    )


def _evenly(first: tuple[tf.data.Dataset, int], second: tuple[tf.data.Dataset, int]) -> tf.data.Dataset:
    """Two streams, by their sizes, in one."""
    (one, count), (other, of_other) = first, second
    total = count + of_other
    # How many of the first stream have come before each place, rounded.
    come = (2 * count * np.arange(total + 1) + total) // (2 * total)
    # Each is asked once more at the end: only a stream that was read to its end completes its cache.
    which = np.append((come[1:] == come[:-1]).astype("int64"), [0, 1])
    choice = tf.data.Dataset.from_tensor_slices(which)
    return tf.data.Dataset.choose_from_datasets([one, other], choice, stop_on_empty_dataset=False)
