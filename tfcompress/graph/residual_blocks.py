"""Residual blocks of a graph: what lies between a tensor and a sum of it with what was made of it.

Invariant: a graph whose sum is replaced by that tensor (`without`) needs nothing of the block, and tensors have the
shapes that they had. Left out: blocks with a projection beside them, whose sum has no operand that is what the block
takes; sums of three and more; subtractions and products.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from keras import layers

from tfcompress.graph.shapes import tensors_of
from tfcompress.graph.simplify.rewriting import Wiring, rewritten
from tfcompress.graph.trace import Ref, Trace
from tfcompress.layers.keras_applications import CustomScaleLayer

_SUMS = (layers.Add, CustomScaleLayer)


@dataclasses.dataclass(frozen=True)
class ResidualBlock:
    """A part of a graph that can be left out.

    Args:
        shortcut: The tensor that goes around it.
        total: The sum of that tensor and of what the block makes of it.
        calls: The calls between, ascending.
        layers: Names of the layers of those calls, and of the sum, in their order.
    """

    shortcut: Ref
    total: Ref
    calls: tuple[int, ...]
    layers: tuple[str, ...]


def residual_blocks(traced: Trace) -> tuple[ResidualBlock, ...]:
    """The residual blocks of a graph, in the order of their sums; one may lie within another.

    A block is entered by its shortcut only, is read by its sum only, and shares no layer with the rest of the graph.

    Args:
        traced: The calls of a model.

    Example:
        >>> import keras
        >>> from tfcompress.graph.trace import trace
        >>> inputs = keras.Input((4,))
        >>> x = keras.layers.Add(name="sum")([inputs, keras.layers.Dense(4, name="inner")(inputs)])
        >>> [block.layers for block in residual_blocks(trace(keras.Model(inputs, x)))]
        [('inner', 'sum')]
    """
    wiring, tensors = Wiring(traced), tensors_of(traced)
    found = []
    for index, call in enumerate(traced.calls):
        if not _is_sum(call.operation) or len(call.sources) != 2:
            continue
        total = tensors[Ref(index)]
        # The second operand of InceptionResNetV2's sum is scaled.
        is_scaled = type(call.operation) is CustomScaleLayer
        for shortcut, made in (call.sources,) if is_scaled else (call.sources, call.sources[::-1]):
            same = tensors[shortcut].shape == total.shape and tensors[shortcut].dtype == total.dtype
            calls = _between(traced, shortcut, made) if same else None
            if calls and _is_closed(traced, wiring, calls, index):
                names = [traced.calls[at].operation.name for at in (*calls, index)]
                found.append(ResidualBlock(shortcut, Ref(index), calls, tuple(dict.fromkeys(names))))
    return tuple(found)


def without(traced: Trace, blocks: Iterable[ResidualBlock]) -> Trace:
    """A graph in which shortcuts take the place of the sums of some blocks."""
    return rewritten(traced, aliases={block.total: block.shortcut for block in blocks})


def _is_sum(operation: Any) -> bool:
    """Whether it is a layer that adds, or the operation of `a + b`, whose class Keras does not export."""
    kind = type(operation)
    return kind in _SUMS or (kind.__name__ == "Add" and kind.__module__.startswith("keras."))


def _between(traced: Trace, shortcut: Ref, made: Ref) -> tuple[int, ...] | None:
    """The calls that make one tensor of another one, ascending; None where they take others too."""
    calls: set[int] = set()
    open_refs, reaches = [made], False
    while open_refs:
        ref = open_refs.pop()
        if ref == shortcut:
            reaches = True
        elif ref.call <= shortcut.call:
            return None
        elif ref.call not in calls:
            calls.add(ref.call)
            open_refs.extend(traced.calls[ref.call].sources)
    return tuple(sorted(calls)) if reaches else None


def _is_closed(traced: Trace, wiring: Wiring, calls: tuple[int, ...], total: int) -> bool:
    """Whether nothing but the sum reads the calls, and their layers, and that of the sum, have no other call."""
    inside = {*calls, total}
    return (
        wiring.is_used_once(traced.calls[total].operation)
        and all(at not in wiring.outputs and inside.issuperset(wiring.readers[at]) for at in calls)
        and all(inside.issuperset(wiring.uses[id(traced.calls[at].operation)]) for at in calls)
    )
