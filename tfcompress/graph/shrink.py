"""A model without some of its channels: plain Keras layers, smaller ones.

Invariant: the result computes what the model computes once every weight of the removed units is zero (`silence`), and
is made of the same layers, with the same names, in the same order. Left out: which units to remove.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.channel_labels import Kept
from tfcompress.graph.channel_layers import each_step_config, rule_for
from tfcompress.graph.channel_operations import call_with_fewer, shorter_shape
from tfcompress.graph.channels import ChannelGraph
from tfcompress.graph.copy_layer import copy_layer, copy_of_other_size
from tfcompress.graph.trace import Call, Ref, replay


def shrink(graph: ChannelGraph, removed: np.ndarray) -> keras.Model:
    """A new model without the channels of some units.

    Args:
        graph: The channels of a model, from `channel_graph`.
        removed: Ids of the units to remove, or a boolean for each unit.

    Returns:
        A functional model with new layers; nested models are opened.

    Raises:
        InvalidArgumentError: If a unit does not exist.
        ModelError: If a layer would have no channel left.

    Example:
        >>> from tfcompress.graph.channels import channel_graph
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="x"), keras.layers.Dense(2)])
        >>> shrink(channel_graph(model), np.array([0, 5])).get_layer("x").units
        6
    """
    return _Shrinking(graph, removed_units(graph, removed)).model()


def silence(graph: ChannelGraph, removed: np.ndarray) -> None:
    """Sets every weight of some units to zero, in the model that `graph` was made of: what `shrink` removes.

    Args:
        graph: The channels of a model.
        removed: Ids of units, or a boolean for each unit.
    """
    gone = removed_units(graph, removed)
    for member in graph.members:
        index = np.flatnonzero(gone[member.units] & (member.units >= 0))
        value = np.array(member.variable)
        value[(slice(None),) * member.axis + (index,)] = 0
        member.variable.assign(value)


def removed_units(graph: ChannelGraph, removed: np.ndarray) -> np.ndarray:
    """A boolean for each unit of a graph, of ids or of booleans."""
    removed = np.asarray(removed)
    if removed.dtype == bool and removed.shape == (graph.num_units,):
        return removed
    if removed.size and not (
        np.issubdtype(removed.dtype, np.integer) and removed.min() >= 0 and removed.max() < graph.num_units
    ):
        raise InvalidArgumentError("removed", f"ids of units, 0 to {graph.num_units - 1}", removed)
    gone = np.zeros(graph.num_units, bool)
    gone[removed.astype(int)] = True
    return gone


class _Shrinking:
    """One removal: new layers by the old one's name."""

    def __init__(self, graph: ChannelGraph, gone: np.ndarray):
        self._graph = graph
        # The last entry is that of what is in no unit: -1.
        self._stays = np.append(~gone, True)
        self._new: dict[str, Any] = {}
        self._keep: dict[int, dict[int, np.ndarray]] = {}
        for member in graph.members:
            keep = self._stays[member.units]
            if not keep.any():
                raise ModelError(
                    f"Layer {member.layer!r} would have no channel left along axis {member.axis} of "
                    f"{member.variable.path!r}. Keep at least one of its {len(keep)}."
                )
            if not keep.all():
                self._keep.setdefault(id(member.variable), {})[member.axis] = keep

    def model(self) -> keras.Model:
        model = replay(self._graph.traced, self._call)
        for call in self._graph.traced.calls:
            if call.operation.name in self._new and call.operation.weights:
                self._copy_weights(call.operation, self._new[call.operation.name])
        return model

    def _call(self, index: int, call: Call, args: tuple, kwargs: dict) -> Any:
        operation = call.operation
        made = self._left(Ref(index))
        if not isinstance(operation, keras.layers.Layer):
            given = self._left(call.sources[0]) if call.sources else None
            return call_with_fewer(call, given, made, args, kwargs)
        if operation.name not in self._new:
            self._new[operation.name] = self._copy(operation, made)
        return self._new[operation.name](*args, **kwargs)

    def _copy(self, layer: Any, made: Kept | None) -> Any:
        if rule_for(layer) is None:
            # What it takes has the size that it had.
            return copy_layer(layer)
        return copy_of_other_size(layer, **self._changes(layer, made))

    def _left(self, ref: Ref) -> Kept | None:
        labels = self._graph.results.get(ref)
        return None if labels is None else Kept(labels.axis, self._stays[labels.vector])

    def _changes(self, layer: Any, made: Kept | None) -> Mapping[str, Any]:
        if type(layer) is keras.layers.Reshape and made is not None:
            return {"target_shape": shorter_shape(layer.target_shape, made)}
        if type(layer) is keras.layers.TimeDistributed:
            return each_step_config(layer, self._changes(layer.layer, made))
        rule = rule_for(layer)
        if rule is None or not any(id(variable) in self._keep for variable in layer.variables):
            return {}
        return rule.config(layer, self._count)

    def _count(self, variable: Any, axis: int) -> int:
        keep = self._keep.get(id(variable), {}).get(axis % len(variable.shape))
        return int(variable.shape[axis]) if keep is None else int(keep.sum())

    def _copy_weights(self, old: Any, new: Any) -> None:
        values = []
        for variable in old.weights:
            value = keras.ops.convert_to_numpy(variable)
            for axis, keep in self._keep.get(id(variable), {}).items():
                value = np.compress(keep, value, axis)
            values.append(value)
        rule = rule_for(old)
        new.set_weights(values if rule is None else rule.weights(old, new, values))
        if isinstance(new, keras.layers.Normalization):
            new.finalize_state()  # It computes with constants that it makes of its weights.
