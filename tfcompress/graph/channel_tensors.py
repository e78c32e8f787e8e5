"""What arithmetic, joining and moving of tensors does with the labels of their channels.

Invariant: a result has labels along one axis at most. Where several axes would have some, those of all but the longest
become one, so that what is left after a removal is a block again. Left out: which layer or operation does what
(`channel_layers.py`, `channel_operations.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfcompress.graph.channel_labels import FIXED, LabelBook, Labelled, Labels


def merge(book: LabelBook, inputs: Sequence[Labelled], output: tuple[int | None, ...]) -> Labels | None:
    """Element by element, with broadcasting: labels that meet become one."""
    labels = []
    for one in inputs:
        # A single number for all channels is no channel that could go with one of them.
        if one.labels is not None and one.shape[one.labels.axis] != output[one.labels.axis]:
            book.fix(one.labels)
        elif one.labels is not None:
            labels.append(one.labels)
    axes = {one.axis for one in labels}
    if len(axes) != 1:
        book.fix(*labels)
        return None
    (axis,) = axes
    for one in inputs:
        has_axis = len(one.shape) >= -axis and one.shape[axis] != 1
        if has_axis and (one.labels is None or one.labels.axis != axis):
            book.fix(*labels)
            return None
    for other in labels[1:]:
        book.unite(labels[0].vector, other.vector)
    return labels[0]


def concatenate(book: LabelBook, inputs: Sequence[Labelled], axis: int) -> Labels | None:
    """Side by side along an axis."""
    axis = axis if axis < 0 else axis - len(inputs[0].shape)
    labels = [one.labels for one in inputs if one.labels is not None]
    if not labels:
        return None
    if all(one.axis == axis for one in labels):
        # A size that is unknown is none of channels.
        sizes = [one.shape[axis] or 0 for one in inputs]
        if all(sizes):
            vectors = [
                np.full(size, FIXED) if one.labels is None else one.labels.vector
                for one, size in zip(inputs, sizes, strict=True)
            ]
            return Labels(axis, np.concatenate(vectors))
    elif len(labels) == len(inputs) and len({one.axis for one in labels}) == 1:
        for other in labels[1:]:
            book.unite(labels[0].vector, other.vector)
        return labels[0]
    book.fix(*labels)
    return None


def reshape(book: LabelBook, given: Labelled, output: tuple[int | None, ...]) -> Labels | None:
    """The same numbers in another shape."""
    labels = given.labels
    if labels is None:
        return None
    if labels.axis == -1 and given.shape[-1] == output[-1]:
        return labels
    if None in given.shape or None in output:
        book.fix(labels)
        return None
    return along_one_axis(book, spread(labels, given.shape).reshape(output[1:]))


def spread(labels: Labels, shape: tuple[int | None, ...]) -> np.ndarray:
    """The label of every number of one sample, `shape` without its batch."""
    column = labels.vector.reshape((-1, *(1,) * (-labels.axis - 1)))
    return np.broadcast_to(column, tuple(shape[1:]))  # type: ignore[arg-type]


def along_one_axis(book: LabelBook, array: np.ndarray) -> Labels | None:
    """Labels for an array of them, those along all axes but the longest with differences made one."""
    varying = [axis for axis in range(array.ndim) if (array != np.take(array, [0], axis)).any()]
    if not varying:
        book.fix(np.unique(array))
        return None
    axis = max(varying, key=lambda one: array.shape[one])
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    for other in range(1, rows.shape[1] if len(varying) > 1 else 1):
        book.unite(rows[:, 0], rows[:, other])
    return Labels(axis - array.ndim, rows[:, 0])


def transpose(given: Labelled, axes: Sequence[int]) -> Labels | None:
    """Axes in another order, that of the batch first."""
    if given.labels is None:
        return None
    rank = len(axes)
    return Labels([axis % rank for axis in axes].index(given.labels.axis + rank) - rank, given.labels.vector)


def reduce(book: LabelBook, given: Labelled, axes: Sequence[int] | None, keepdims: bool) -> Labels | None:
    """One number for all along some axes; `None` for all axes."""
    labels, rank = given.labels, len(given.shape)
    if labels is None:
        return None
    gone = set(range(rank)) if axes is None else {axis % rank for axis in axes}
    if labels.axis + rank in gone:
        book.fix(labels)
        return None
    behind = 0 if keepdims else sum(axis > labels.axis + rank for axis in gone)
    return Labels(labels.axis + behind, labels.vector)
