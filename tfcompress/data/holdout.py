"""Which samples of a set are held out for validation or test, or lose their labels, when it comes without such splits.

Invariant: the choice depends on the labels, their order and the fraction only; no seed changes it, so results of
different runs stay comparable, and no test sample ever slips into training. Left out: groups that must stay together
(images of one person, say): split such data yourself.
"""

from __future__ import annotations

import numpy as np

from tfcompress.data.checks import check_some_labelled
from tfcompress.data.split import UNLABELLED
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


def leave_out_labels(
    name: str, x: np.ndarray, y: np.ndarray, share: float
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Parts samples in those that keep their labels and those that don't.

    Args:
        name: What the data is called.
        x: Samples, or whatever else there is one of for each label.
        y: Class of each sample.
        share: Share of each class that has no labels from now on, in (0, 1).

    Returns:
        Both as `(x, y)`; labels that are left out are -1.

    Raises:
        DataError: If either part is empty.
        InvalidArgumentError: If `share` is out of its range.
    """
    kept, left_out = hold_out(y, share, name="unlabelled")
    check_some_labelled(name, len(kept), len(left_out))
    return (x[kept], y[kept]), (x[left_out], np.full(len(left_out), UNLABELLED, np.int32))
