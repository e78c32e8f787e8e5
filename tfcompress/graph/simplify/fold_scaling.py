"""BatchNormalization, LayerScale and Rescaling into the convolution or dense layer before or behind them.

In inference they multiply and add for each channel by itself, which a layer that is affine can do along the way.

Invariant: behind a layer it is exact with any padding, since the padding is before the layer; before a layer that pads
with zeros it is done only where nothing is added. A layer that is shared takes part only if all its calls do. Left out:
normalization with anything between it and the layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfcompress.graph.shapes import tensors_of
from tfcompress.graph.simplify.affine_layers import (
    channel_axis,
    is_affine,
    is_linear,
    is_padded,
    num_inputs,
    num_outputs,
    scale_and_shift,
    scaled_before,
    scaled_behind,
)
from tfcompress.graph.simplify.rewriting import Step, Wiring, rewritten, runs_in_training_mode
from tfcompress.graph.trace import Call, Ref, Trace


def fold_behind(traced: Trace) -> tuple[Trace, list[Step]]:
    """Folds what scales a result of a layer into that layer."""
    wiring, tensors = Wiring(traced), tensors_of(traced)
    aliases: dict[Ref, Ref] = {}
    layers: dict[int, Any] = {}
    steps = []
    for calls in wiring.uses.values():
        scaling = traced.calls[calls[0]].operation
        found = scale_and_shift(scaling, len(tensors[Ref(calls[0])].shape))
        if found is None:
            continue
        scale, shift, axis = found
        layer = _scaled_layer(traced, wiring, calls)
        if layer is None or channel_axis(layer) != axis or not _fits(num_outputs(layer), scale, shift):
            continue
        # Outputs are called after the layer that gives them.
        is_output = any(call in wiring.outputs for call in calls)
        layers[id(layer)] = scaled_behind(layer, scale, shift, **({"name": scaling.name} if is_output else {}))
        aliases |= {Ref(call): traced.calls[call].sources[0] for call in calls}
        steps.append(Step(scaling.name, type(scaling).__name__, f"folded into {layer.name!r} before it"))
    return (rewritten(traced, aliases=aliases, layers=layers), steps) if steps else (traced, [])


def _scaled_layer(traced: Trace, wiring: Wiring, calls: list[int]) -> Any | None:
    """The layer whose results, and nothing else, the calls of a scaling layer take; nobody else may read them."""
    if any(runs_in_training_mode(traced.calls[call]) or len(traced.calls[call].sources) != 1 for call in calls):
        return None
    sources = [traced.calls[call].sources[0].call for call in calls]
    layer, scaling = traced.calls[sources[0]].operation, traced.calls[calls[0]].operation
    if not is_affine(layer) or not is_linear(layer) or layer.dtype_policy != scaling.dtype_policy:
        return None
    alone = all(wiring.only_reader(source) is not None for source in sources)
    return layer if alone and sorted(sources) == wiring.uses[id(layer)] else None


def fold_before(traced: Trace) -> tuple[Trace, list[Step]]:
    """Folds what scales the input of layers into those layers."""
    wiring, tensors = Wiring(traced), tensors_of(traced)
    steps = []
    for index, call in enumerate(traced.calls):
        scaling = call.operation
        found = scale_and_shift(scaling, len(tensors[Ref(index)].shape))
        if found is None or not _may_go(call, index, wiring) or tensors[call.sources[0]].dtype != scaling.compute_dtype:
            continue
        readers = [traced.calls[reader] for reader in wiring.readers[index]]
        if readers and all(_can_take(reader, scaling, found, wiring) for reader in readers):
            layers = {id(one.operation): scaled_before(one.operation, found[0], found[1]) for one in readers}
            names = ", ".join(repr(one.operation.name) for one in readers)
            steps.append(Step(scaling.name, type(scaling).__name__, f"folded into {names} behind it"))
            # One at a time: the next one may be before the same layer.
            rest, more = fold_before(rewritten(traced, aliases={Ref(index): call.sources[0]}, layers=layers))
            return rest, steps + more
    return traced, steps


def _may_go(call: Call, index: int, wiring: Wiring) -> bool:
    plain = len(call.sources) == 1 and not runs_in_training_mode(call)
    return plain and index not in wiring.outputs and wiring.is_used_once(call.operation)


def _can_take(reader: Call, scaling: Any, found: tuple[np.ndarray, np.ndarray, int], wiring: Wiring) -> bool:
    layer, (scale, shift, axis) = reader.operation, found
    if not is_affine(layer) or not wiring.is_used_once(layer) or len(reader.sources) != 1:
        return False
    if layer.dtype_policy != scaling.dtype_policy or channel_axis(layer) != axis:
        return False
    return _fits(num_inputs(layer), scale, shift) and not (is_padded(layer) and np.any(shift))


def _fits(channels: int, *numbers: np.ndarray) -> bool:
    return all(np.ndim(one) == 0 or np.shape(one) in ((1,), (channels,)) for one in numbers)
