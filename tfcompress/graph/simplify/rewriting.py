"""How passes change a graph: calls and layers replaced in a trace, and a model made of what is left.

Invariant: layers of the trace that is given are never changed, only replaced by new ones; calls that no output needs
are left out. Left out: what is replaced by what, which the passes know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.graph.copy_layer import LayerCopies, copy_of_other_size
from tfcompress.graph.trace import Call, Ref, Trace, replay


@dataclasses.dataclass(frozen=True)
class Step:
    """One change of a model.

    Args:
        layer: Name of the layer that was changed, or that is gone.
        kind: Its class.
        what: What became of it, in words.
    """

    layer: str
    kind: str
    what: str


# What a pass gives: the graph after it, and what it did.
Pass = Callable[[Trace], tuple[Trace, list[Step]]]


class Wiring:
    """Who reads whom in a trace.

    Attributes:
        readers: For each call, the calls that take its results; twice where they take them twice.
        uses: The calls of each layer, by its identity.
        outputs: The calls that give outputs of the model.
    """

    def __init__(self, traced: Trace):
        self.readers: list[list[int]] = [[] for _ in traced.calls]
        self.uses: dict[int, list[int]] = {}
        self.outputs = {ref.call for ref in keras.tree.flatten(traced.outputs)}
        for index, call in enumerate(traced.calls):
            self.uses.setdefault(id(call.operation), []).append(index)
            for ref in call.sources:
                self.readers[ref.call].append(index)

    def only_reader(self, index: int) -> int | None:
        """The one call that reads call `index`; None where there are more, or it is an output."""
        readers = self.readers[index]
        return readers[0] if len(readers) == 1 and index not in self.outputs else None

    def is_used_once(self, operation: Any) -> bool:
        """Whether a layer has one call."""
        return len(self.uses[id(operation)]) == 1


def rewritten(
    traced: Trace,
    *,
    aliases: Mapping[Ref, Ref] | None = None,
    layers: Mapping[int, Any] | None = None,
    calls: Mapping[int, Call] | None = None,
) -> Trace:
    """A trace with some tensors, layers and calls replaced.

    Args:
        traced: The trace.
        aliases: The tensor that is read in the place of another one.
        layers: The layer in the place of another one, by the identity of that one.
        calls: The call in the place of another one, by its index.

    Returns:
        A trace without the calls that no output needs; inputs stay.
    """
    aliases, layers, calls = aliases or {}, layers or {}, calls or {}

    def resolved(ref: Ref) -> Ref:
        while ref in aliases:
            ref = aliases[ref]
        return ref

    changed = []
    for index, call in enumerate(traced.calls):
        call = calls.get(index, call)
        changed.append(Call(layers.get(id(call.operation), call.operation), *call.arguments(resolved)))
    outputs = keras.tree.map_structure(resolved, traced.outputs)
    needed = {ref.call for side in (traced.inputs, outputs) for ref in keras.tree.flatten(side)}
    for index in reversed(range(len(changed))):
        if index in needed:
            needed |= {ref.call for ref in changed[index].sources}
    place = {old: new for new, old in enumerate(sorted(needed))}

    def moved(ref: Ref) -> Ref:
        return Ref(place[ref.call], ref.position)

    kept = [changed[index] for index in sorted(needed)]
    kept = [Call(one.operation, *one.arguments(moved)) for one in kept]
    inputs, outputs = (keras.tree.map_structure(moved, side) for side in (traced.inputs, outputs))
    return Trace(traced.name, tuple(kept), inputs, outputs)


def as_model(traced: Trace) -> keras.Model:
    """A functional model of copies of the layers of a trace."""
    return replay(traced, LayerCopies())


def with_weights(layer: Any, weights: Mapping[str, np.ndarray], like: Any = None, **changes: Any) -> Any:
    """A new, built layer like `layer` with other weights, by the names of their attributes.

    Args:
        layer: A convolution or dense layer.
        weights: All of its weights; a bias that it did not have is given to it.
        like: The layer whose input it takes; by default `layer`.
        **changes: What its configuration says otherwise.
    """
    new = copy_of_other_size(layer, **{"use_bias": "bias" in weights, **changes})
    new.build((like or layer).get_build_config()["input_shape"])
    for name, value in weights.items():
        getattr(new, name).assign(value)
    return new


def runs_in_training_mode(call: Call) -> bool:
    """Whether a call says that its layer trains, as that of a dropout that is to be random in inference too."""
    return bool(call.kwargs.get("training")) or any(leaf is True for leaf in call.args[1:])
