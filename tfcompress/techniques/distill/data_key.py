"""What data is known by whose outputs are stored: its samples, as they are stored and as the first view shows them.

Invariant: data with equal keys has equal samples as far as these are in memory, and shows them in the same order and
the same way. Left out: labels, which few teachers look at (`cache.py`).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tfcompress import files
from tfcompress.data import Dataset

# Of a set that is read from elsewhere the first samples stand for all.
SAMPLES_IN_KEY = 64


def data_key(data: Dataset) -> str:
    """What the training samples are known by, in their order, and how they are shown.

    Example:
        >>> from tfcompress.data import load_dataset
        >>> one, other = (load_dataset("digits", limit_train=count) for count in (200, 201))
        >>> data_key(one) == data_key(load_dataset("digits", limit_train=200)), data_key(one) == data_key(other)
        (True, False)
    """
    split = data.splits["train"]
    samples = [
        # In pieces, since a second copy of all may not fit in memory.
        files.content_key(np.asarray(x).tobytes())
        for part in split.parts or (split,)
        for x, _ in (part.stream if part.resident else part.stream.take(SAMPLES_IN_KEY)).batch(256)
    ]
    shown = next(iter(data.view(0, SAMPLES_IN_KEY)))
    augmentation = data.augmentation and dataclasses.asdict(data.augmentation)
    sizes = [part.size for part in split.parts] or split.size
    return files.content_key(
        data.name, sizes, list(data.input_range), augmentation, samples, np.asarray(shown).tobytes()
    )
