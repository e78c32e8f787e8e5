"""Which samples of a set are held out for validation or test, when it comes without a split of its own.

Invariant: the choice depends on the labels, their order and the fraction only; no seed changes it, so results of
different runs stay comparable, and no test sample ever slips into training. Left out: groups that must stay together
(images of one person, say): split such data yourself.
"""

from __future__ import annotations

import numpy as np

from tfcompress.errors import InvalidArgumentError


def hold_out(labels: np.ndarray, fraction: float, *, name: str = "fraction") -> tuple[np.ndarray, np.ndarray]:
    """Splits samples in two, each class in the same ratio.

    Within a class the samples held out are spread evenly over the order of the data, so that a set sorted by writer,
    camera or time is sampled throughout.

    Args:
        labels: Class of each sample, shape `(samples,)`.
        fraction: Share of each class to hold out, in (0, 1), rounded to whole samples.
        name: The argument as its user knows it, for messages.

    Returns:
        Ascending indices of the samples kept, and of those held out.

    Raises:
        InvalidArgumentError: If `fraction` is out of its range.

    Example:
        >>> kept, held = hold_out(np.array([0, 1, 0, 1, 0, 1, 0, 1]), 0.25)
        >>> held
        array([4, 5])
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise InvalidArgumentError(name, "a number in (0, 1)", fraction)
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = round(len(members) * fraction)
        spread = (2 * np.arange(count) + 1) * len(members) // max(1, 2 * count)
        held[members[spread]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
