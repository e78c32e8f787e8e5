"""Which channels of which weights belong together: what must go at once when a channel goes.

Every channel that a layer makes gets a label, and labels follow the tensors through the graph: a sum makes the labels
of both sides one, a concatenation puts them side by side, a flattening repeats them. What reads a channel, or stores
something for each, notes the labels along that axis of its weights. Labels that were made one are a *unit*, the least
that can be removed; units that touch the same axes of the same weights are a *group*, such as the channels of one
residual stage.

Invariant: a graph without some units computes what the whole graph computes when every weight of those units is zero.
An operation that is not known, or that mixes channels (a softmax, a LayerNormalization over them, a model output),
makes its labels fixed: they are in no unit. Left out: how a model without units is made (`shrink.py`), the rules of
single layers (`channel_layers.py`) and operations (`channel_operations.py`).

Reference:
    Fang et al., "DepGraph: Towards Any Structural Pruning", 2023, https://arxiv.org/abs/2301.12900
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.graph.channel_labels import FIXED, LabelBook, Labelled, Labels
from tfcompress.graph.channel_layers import connect_layer
from tfcompress.graph.channel_operations import connect_operation
from tfcompress.graph.shapes import traced_with_shapes
from tfcompress.graph.trace import Ref, Trace


@dataclasses.dataclass(frozen=True)
class Member:
    """One axis of one weight whose indices belong to units.

    Args:
        layer: Name of the layer in the model, for a wrapped one that of the wrapper.
        variable: The weight.
        axis: The axis, counted from the start.
        units: The unit of each index along it, -1 where it has none.
        makes: Whether the layer makes these channels, so that the weights along the axis are what computes them.
    """

    layer: str
    variable: Any
    axis: int
    units: np.ndarray
    makes: bool


@dataclasses.dataclass(frozen=True)
class ChannelGraph:
    """The units of a model.

    Args:
        traced: The calls of the model.
        members: Every axis of every weight with channels of a unit.
        groups: The units of each group: ids, ascending.
        results: The axis and the units of each labelled tensor, by its `Ref`.
        num_units: Number of units; they are `0 .. num_units - 1`.
    """

    traced: Trace
    members: tuple[Member, ...]
    groups: tuple[np.ndarray, ...]
    results: Mapping[Ref, Labels]
    num_units: int

    @functools.cached_property
    def members_of_groups(self) -> tuple[tuple[Member, ...], ...]:
        """For each group the members that hold any of its units."""
        group_of = np.full(self.num_units + 1, -1)  # The last is that of what is in no unit.
        for index, units in enumerate(self.groups):
            group_of[units] = index
        found: list[list[Member]] = [[] for _ in self.groups]
        for member in self.members:
            for index in np.unique(group_of[member.units]):
                if index >= 0:
                    found[index].append(member)
        return tuple(map(tuple, found))

    def layers_of(self, group: int) -> tuple[str, ...]:
        """The layers that make the channels of a group, in the order of the graph."""
        return tuple(dict.fromkeys(member.layer for member in self.members_of_groups[group] if member.makes))

    def describe(self) -> str:
        """The groups as text: how many units, which layers make their channels, which weights they touch."""
        lines = [f"{self.traced.name}: {self.num_units} units in {len(self.groups)} groups"]
        for index, units in enumerate(self.groups):
            weights = ", ".join(f"{one.variable.path}[{one.axis}]" for one in self.members_of_groups[index])
            lines.append(f"  {index}: {len(units)} units made by {', '.join(self.layers_of(index))}; {weights}")
        return "\n".join(lines)


def channel_graph(model: keras.Model) -> ChannelGraph:
    """Finds which channels of a model belong together.

    Args:
        model: A functional or Sequential model; nested models are opened. Sizes other than the batch may be unknown
            where no flattening depends on them.

    Returns:
        Its units and groups. Nothing of the model is changed.

    Raises:
        ModelError: If the model has no graph, or two layers have one name.

    Example:
        >>> inputs = keras.Input((8, 8, 3))
        >>> x = keras.layers.Conv2D(4, 3, padding="same", name="first")(inputs)
        >>> x = keras.layers.Add()([x, keras.layers.Conv2D(4, 3, padding="same", name="second")(x)])
        >>> model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
        >>> graph = channel_graph(model)
        >>> graph.num_units, graph.layers_of(0)
        (4, ('first', 'second'))
    """
    traced, shapes = traced_with_shapes(model)
    book = LabelBook()
    labels: dict[Ref, Labels] = {}
    for index, call in enumerate(traced.calls):
        if isinstance(call.operation, keras.layers.InputLayer):
            continue
        inputs = {ref: Labelled(labels.get(ref), shapes[ref]) for ref in call.sources}
        outputs = [shapes[ref] for ref in _results(index, shapes)]
        is_layer = isinstance(call.operation, keras.layers.Layer)
        made = (connect_layer if is_layer else connect_operation)(book, call, inputs, outputs)
        labels |= {Ref(index, at): one for at, one in enumerate(made) if one is not None}
    book.fix(*(labels.get(ref) for ref in keras.tree.flatten(traced.outputs)))
    return _finish(traced, book, labels)


def _results(index: int, shapes: Mapping[Ref, tuple]) -> list[Ref]:
    refs: list[Ref] = []
    while Ref(index, len(refs)) in shapes:
        refs.append(Ref(index, len(refs)))
    return refs


def _finish(traced: Trace, book: LabelBook, labels: Mapping[Ref, Labels]) -> ChannelGraph:
    roots = book.roots()
    # Only what a weight stores can be removed from it.
    kept = np.unique(np.concatenate([*(np.unique(roots[place.vector]) for place in book.places), [FIXED]]))
    unit_of_root = np.full(len(roots), -1)
    unit_of_root[kept[kept != FIXED]] = np.arange(len(kept) - 1)
    units = unit_of_root[roots]
    members = [Member(one.layer, one.variable, one.axis, units[one.vector], one.makes) for one in book.places]
    members = [member for member in members if (member.units >= 0).any()]
    results = {ref: Labels(one.axis, units[one.vector]) for ref, one in labels.items()}
    results = {ref: one for ref, one in results.items() if (one.vector >= 0).any()}
    return ChannelGraph(traced, tuple(members), _groups(members, len(kept) - 1), results, len(kept) - 1)


def _groups(members: Sequence[Member], num_units: int) -> tuple[np.ndarray, ...]:
    """Units by the set of places that they touch."""
    rng = np.random.default_rng(0)
    signature = np.zeros(num_units, np.uint64)
    for member in members:
        touched = np.unique(member.units[member.units >= 0])
        # Sets of places are told apart by the exclusive-or of one random number for each place.
        signature[touched] ^= rng.integers(1, 2**63, dtype=np.uint64)
    _, index = np.unique(signature, return_inverse=True)
    groups = [np.flatnonzero(index == group) for group in range(int(index.max()) + 1 if num_units else 0)]
    return tuple(sorted(groups, key=lambda units: int(units[0])))
