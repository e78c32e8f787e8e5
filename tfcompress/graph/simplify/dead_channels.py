"""Channels that are constant, or that nobody reads: their values go into biases, and they go.

First every constant that a convolution or dense layer reads is moved into its bias, and its weights for that channel
become zero. Then a channel whose every reader has zeros for it is not needed, nor is one that is read by such channels
only.

Invariant: a constant other than zero stays where a reader pads with zeros, since the border sees less of it; a layer
keeps at least one channel. Left out: what `graph.channels` knows no channels of, and readers other than convolutions
and dense layers, whose channels stay.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.graph.channels import ChannelGraph, channel_graph
from tfcompress.graph.layer_kinds import CONVOLUTIONS, DEPTHWISE, SEPARABLE, TRANSPOSED
from tfcompress.graph.shapes import tensors_of
from tfcompress.graph.shrink import shrink
from tfcompress.graph.simplify.affine_layers import (
    depends,
    is_affine,
    is_padded,
    num_inputs,
    reads,
    scaled_before,
)
from tfcompress.graph.simplify.constant_channels import Values, constant_channels
from tfcompress.graph.simplify.rewriting import Step, Wiring, as_model, rewritten, runs_in_training_mode
from tfcompress.graph.trace import Call, Ref, Trace, trace
from tfcompress.layers.keras_applications import LayerScale

# The kernel that reads channels, the axis along which it does, and that of the channels it makes of them.
_READING: dict[type, tuple[str, int, int]] = {
    **dict.fromkeys(CONVOLUTIONS, ("kernel", -2, -1)),
    **dict.fromkeys(TRANSPOSED, ("kernel", -1, -2)),
    **dict.fromkeys(SEPARABLE, ("pointwise_kernel", -2, -1)),
    layers.Dense: ("kernel", 0, 1),
}
# Their other weights belong to channels that only pass.
_PASSING = (*_READING, *DEPTHWISE, layers.BatchNormalization, layers.Embedding, layers.PReLU, LayerScale)


def fold_constants(traced: Trace) -> tuple[Trace, list[Step]]:
    """Moves constant channels into the biases of those who read them, and drops sums with nothing but zeros."""
    wiring, tensors = Wiring(traced), tensors_of(traced)
    known: dict[Ref, Values] = {}
    new_layers: dict[int, Any] = {}
    calls: dict[int, Call] = {}
    aliases: dict[Ref, Ref] = {}
    steps = []
    for index, call in enumerate(traced.calls):
        if Ref(index, 1) in tensors or isinstance(call.operation, layers.InputLayer):
            continue
        given = [(known.get(ref), tuple(tensors[ref].shape)) for ref in call.sources]
        operation = call.operation
        if is_affine(operation) and given[0][0] is not None and wiring.is_used_once(operation):
            folded, count = _with_constants(operation, given[0][0])
            if count:
                new_layers[id(operation)], call = folded, Call(folded, call.args, call.kwargs)
                steps.append(Step(operation.name, type(operation).__name__, f"{count} constant channels in its bias"))
        if type(operation) is layers.Add and index not in wiring.outputs:
            rest = _without_zeros(call, given, tensors, tuple(tensors[Ref(index)].shape))
            if len(rest) < len(given):
                steps.append(Step(operation.name, "Add", f"dropped: {len(given) - len(rest)} of its terms are zero"))
                if len(rest) == 1:
                    aliases[Ref(index)] = rest[0]
                else:
                    calls[index] = Call(operation, (rest,), call.kwargs)
        if runs_in_training_mode(call):
            continue  # What it gives depends on chance or on the batch.
        values = constant_channels(call, given, tuple(tensors[Ref(index)].shape))
        if values is not None:
            known[Ref(index)] = values
    return (rewritten(traced, aliases=aliases, layers=new_layers, calls=calls), steps) if steps else (traced, [])


def _with_constants(layer: Any, values: Values) -> tuple[Any, int]:
    """A layer with the constants that it reads in its bias, and how many they are; it reads them no more."""
    count = num_inputs(layer)
    if len(values) != count:
        return layer, 0
    folds = ~np.isnan(values) & reads(layer)
    if is_padded(layer):
        folds &= values == 0
    if not folds.any():
        return layer, 0
    return scaled_before(layer, np.where(folds, 0.0, 1.0), np.where(folds, values, 0.0)), int(folds.sum())


def _without_zeros(call: Call, given: list, tensors: dict, shape: tuple) -> list[Ref]:
    """The terms of a sum that are not zero; all of them where the sum would have another shape."""
    terms = list(call.sources)
    if call.kwargs:
        return terms
    rest = [ref for ref, (values, _) in zip(terms, given, strict=True) if values is None or (values != 0).any()]
    # NaN, what is not known, is not zero either.
    same = rest and all(tuple(tensors[ref].shape) == shape for ref in rest)
    return rest if same and all(tensors[ref].dtype == tensors[terms[0]].dtype for ref in terms) else terms


def remove_dead_channels(traced: Trace) -> tuple[Trace, list[Step]]:
    """Removes the channels that nobody reads."""
    operations = {id(call.operation): call.operation for call in traced.calls if is_affine(call.operation)}
    if all(reads(layer).all() and depends(layer).all() for layer in operations.values()):
        return traced, []
    graph = channel_graph(as_model(traced))
    dead = dead_units(graph)
    if not dead.any():
        return traced, []
    steps: dict[str, Step] = {}
    kinds = {call.operation.name: type(call.operation).__name__ for call in graph.traced.calls}
    for member in graph.members:
        gone = int((dead[member.units] & (member.units >= 0)).sum())
        if member.makes and gone:
            what = f"{gone} of {len(member.units)} channels removed"
            steps.setdefault(member.layer, Step(member.layer, kinds.get(member.layer, ""), what))
    return trace(shrink(graph, dead)), list(steps.values())


def dead_units(graph: ChannelGraph) -> np.ndarray:
    """The units whose channels no other one, and no output, depends on.

    Args:
        graph: The channels of a model.

    Returns:
        A boolean for each unit. Each layer keeps a channel.
    """
    kernels = _reading_kernels(graph)
    by_place = {(id(member.variable), member.axis): member.units for member in graph.members}
    passing = {
        id(one) for call in graph.traced.calls if type(call.operation) in _PASSING for one in call.operation.weights
    }
    dead = np.ones(graph.num_units, bool)
    for member in graph.members:
        if id(member.variable) not in passing:
            dead[member.units[member.units >= 0]] = False
    while True:
        _keep_what_is_read(dead, kernels, by_place)
        # Only now is it known of which layers nothing would be left.
        empty = [member.units[0] for member in graph.members if np.append(dead, False)[member.units].all()]
        if not empty:
            return dead
        dead[empty] = False


def _keep_what_is_read(dead: np.ndarray, kernels: list, by_place: dict[tuple[int, int], np.ndarray]) -> None:
    """Takes from the dead units all that living ones are made of, and what those are made of."""
    while True:
        before = dead.copy()
        for variable, axis, made_axis, is_read in kernels:
            units = by_place.get((id(variable), axis))
            if units is None:
                continue
            made = by_place.get((id(variable), made_axis), np.full(variable.shape[made_axis], -1))
            # The last entry is that of what is in no unit, and stays.
            stays = ~np.append(dead, False)[made]
            read = is_read[:, stays].any(1)
            dead[units[read & (units >= 0)]] = False
        if (dead == before).all():
            return


def _reading_kernels(graph: ChannelGraph) -> list[tuple[Any, int, int, np.ndarray]]:
    """Each kernel that reads channels, its axes of the channels it reads and makes, and which it makes of which."""
    found = {}
    for layer in {id(call.operation): call.operation for call in graph.traced.calls}.values():
        if type(layer) in _READING:
            name, axis, made_axis = _READING[type(layer)]
            variable = getattr(layer, name)
            kernel = np.moveaxis(keras.ops.convert_to_numpy(variable), (axis, made_axis), (0, 1)) != 0
            is_read = kernel.reshape(*kernel.shape[:2], -1).any(-1)
            if type(layer) in SEPARABLE:
                depthwise = keras.ops.convert_to_numpy(layer.depthwise_kernel) != 0
                is_read &= depthwise.any(tuple(range(depthwise.ndim - 2))).reshape(-1, 1)
            rank = len(variable.shape)
            found[id(variable)] = (variable, axis % rank, made_axis % rank, is_read)
    return list(found.values())
