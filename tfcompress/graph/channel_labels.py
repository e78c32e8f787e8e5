"""Labels of channels while it is found out which of them belong together.

Invariant: labels that were united stay so, and what is one with `FIXED` is never removed. Left out: what a layer or an
operation does with its labels (`channel_layers.py`, `channel_operations.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

# The label of what may not be removed.
FIXED = 0


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of a tensor.

    Args:
        axis: The axis that they lie along, counted from the end (-1 is the last).
        vector: One label for each index of that axis.
    """

    axis: int
    vector: np.ndarray


@dataclasses.dataclass(frozen=True)
class Kept:
    """What is left of a tensor's channels.

    Args:
        axis: Their axis, counted from the end.
        keep: Whether each of them stays.
    """

    axis: int
    keep: np.ndarray


@dataclasses.dataclass(frozen=True)
class Labelled:
    """What a layer or an operation takes.

    Args:
        labels: The labels of a tensor, None where all of it is fixed.
        shape: Its shape, `(1, ...)`; None for an unknown size.
    """

    labels: Labels | None
    shape: tuple[int | None, ...]

    def on_last_axis(self, book: LabelBook) -> np.ndarray | None:
        """The labels along the last axis; such along another one become fixed."""
        if self.labels is not None and self.labels.axis != -1:
            book.fix(self.labels)
            return None
        return None if self.labels is None else self.labels.vector


@dataclasses.dataclass(frozen=True)
class Place:
    """One axis of one weight, the labels along it, whether its layer makes those channels, and the name of its layer,
    which is that of the outermost wrapper."""

    layer: str
    variable: Any
    axis: int
    makes: bool
    vector: np.ndarray


class LabelBook:
    """The labels while they are found out: which are one, and what they lie along.

    Rules for layers and operations write into it.
    """

    def __init__(self) -> None:
        self._parent: list[int] = [FIXED]
        self._places: dict[tuple[int, int], Place] = {}
        self._results: dict[int, Labels | None] = {}
        self._wrappers: dict[int, Any] = {}

    def new(self, count: int) -> np.ndarray:
        """That many new labels."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def find(self, label: int) -> int:
        """The label that stands for all that are one with `label`."""
        root = label
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[label] != root:
            self._parent[label], label = root, self._parent[label]
        return root

    def unite(self, one: np.ndarray, other: np.ndarray) -> None:
        """Makes the labels of two vectors of one length one by one the same."""
        pairs = np.unique(np.stack([one, other], axis=1), axis=0)
        for a, b in pairs[pairs[:, 0] != pairs[:, 1]].tolist():
            low, high = sorted((self.find(a), self.find(b)))
            # The smallest stands for all, so that FIXED stays what it is.
            self._parent[high] = low

    def fix(self, *labels: Labels | np.ndarray | None) -> None:
        """Says that nothing of these may be removed."""
        for one in labels:
            if one is not None:
                vector = np.unique(one.vector if isinstance(one, Labels) else one)
                self.unite(vector, np.full(len(vector), FIXED))

    def wrap(self, wrapper: Any, layer: Any) -> None:
        """Says that a layer is within another, under whose name it is known in the model."""
        self._wrappers[id(layer)] = wrapper

    def _name(self, layer: Any) -> str:
        while id(layer) in self._wrappers:
            layer = self._wrappers[id(layer)]
        return layer.name

    def own(self, layer: Any, variable: Any, axis: int, vector: np.ndarray | None, *, makes: bool = False) -> None:
        """Notes the labels along an axis of a weight; `None` where they are fixed.

        A layer that is used again meets its own labels there.
        """
        axis %= len(variable.shape)
        vector = np.full(variable.shape[axis], FIXED) if vector is None else vector
        known = self._places.get((id(variable), axis))
        if known is not None:
            self.unite(known.vector, vector)
        else:
            self._places[id(variable), axis] = Place(self._name(layer), variable, axis, makes, vector)

    def made(self, layer: Any, variable: Any, axis: int, repeats: int = 1) -> np.ndarray:
        """The labels that a layer makes along an axis of a weight: new ones, or those of its first use.

        Args:
            layer: The layer.
            variable: The weight.
            axis: The axis.
            repeats: How often the labels come after one another along it, as those of the gates of an LSTM.
        """
        axis %= len(variable.shape)
        known = self._places.get((id(variable), axis))
        if known is not None:
            return known.vector[: len(known.vector) // repeats]
        labels = self.new(variable.shape[axis] // repeats)
        self.own(layer, variable, axis, np.tile(labels, repeats), makes=True)
        return labels

    def again(self, layer: Any, labels: Labels | None) -> Labels | None:
        """The labels of a result of a layer, made one with those of its earlier results."""
        earlier = self._results.setdefault(id(layer), labels)
        if earlier is labels:
            return labels
        if earlier is None or labels is None or earlier.axis != labels.axis:
            self.fix(earlier, labels)
            return None
        self.unite(earlier.vector, labels.vector)
        return labels

    @property
    def places(self) -> tuple[Place, ...]:
        """Everything that was noted, in that order."""
        return tuple(self._places.values())

    def roots(self) -> np.ndarray:
        """For each label the one that stands for it."""
        return np.array([self.find(label) for label in range(len(self._parent))])
