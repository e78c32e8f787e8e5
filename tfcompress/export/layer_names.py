"""Which Keras layers the operations of a file come from, by the name scopes in the names of their results.

The converter gives a result the names of all operations that it fused, as `net/relu/Relu;net/conv/convolution`.

Invariant: layers have the names they have in Keras; fake quantization, which is a tensor's type and no operation in a
file, is none of them. Left out: files without names, as slimming leaves them; and layers that the converter renames,
which are those that it fuses into a recurrent operation.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

import keras
from ai_edge_litert import schema_py_generated as schema

from tfcompress.export import flatbuffer
from tfcompress.graph.trace import Call, Trace
from tfcompress.layers import FakeQuantize

_NUMBER = re.compile(r"_\d+$")


@dataclasses.dataclass(frozen=True)
class Result:
    """The first result of an operation of a file.

    Args:
        operation: The place of the operation in the main graph.
        index: Index of the tensor.
        name: Its name.
        layers: The Keras layers that the operation was fused of, in the order in which they run.
        is_foreign: Whether something that is in no layer is fused in too, such as a product of two tensors.
        owner: The one of `layers` with most weights; None where there are none.
        ranges: The fake quantization that was fused in, in the order in which it runs.
    """

    operation: int
    index: int
    name: str
    layers: tuple[str, ...]
    is_foreign: bool
    owner: str | None
    ranges: tuple[str, ...]


def layer_results(model: schema.ModelT, traced: Trace, output_names: Sequence[str]) -> list[Result]:
    """The results of a file's operations with the layers they come from, in the order of the file.

    Args:
        model: The file, with its names.
        traced: The calls of the model it was made of.
        output_names: The names that the file gives to the outputs of the model, in the model's order.
    """
    outputs = [before_rounding(traced, ref.call).operation.name for ref in keras.tree.flatten(traced.outputs)]
    by_name = dict(zip(output_names, outputs, strict=True))
    # An output has a name that says nothing; it belongs to the layer of that output.
    at_output = {index: by_name[name] for index, name in flatbuffer.outputs(model)}
    order = {call.operation.name: at for at, call in enumerate(traced.calls)}
    ranges = {call.operation.name for call in traced.calls if isinstance(call.operation, FakeQuantize)}
    weights = _weights(traced)
    graph = model.subgraphs[0]
    operators = enumerate(flatbuffer.listed(graph.operators))
    indices = {int(operator.outputs[0]): place for place, operator in operators if len(operator.outputs)}
    names = {index: flatbuffer.tensor_name(graph.tensors[index]) for index in indices}
    paths = {index: [_scopes(part) for part in name.split(";") if "/" in part] for index, name in names.items()}
    layer_of = layers_of_scopes([scope for some in paths.values() for path in some for scope in path], order)
    found = []
    for index, place in indices.items():
        # The outermost scope: a layer may hold others, which are called as they like.
        own = [next((layer_of[scope] for scope in path if scope in layer_of), None) for path in paths[index]]
        named = sorted({layer for layer in own if layer is not None}, key=order.__getitem__)
        layers = {layer for layer in named if layer not in ranges}
        if index in at_output:
            layers.add(at_output[index])
        ordered = tuple(sorted(layers, key=order.__getitem__))
        owner = max(ordered, key=weights.__getitem__, default=None)
        fused = tuple(layer for layer in named if layer in ranges)
        found.append(Result(place, index, names[index], ordered, None in own, owner, fused))
    return found


def nodes_by_layer(content: bytes, traced: Trace, output_names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The operations of a float file by the Keras layer they come from, in the order of the file.

    An operation that several layers were fused into belongs to the one with most weights. One without a name of its own
    gives an output, and belongs to the layer of that output. What belongs to no layer is left out: it moves numbers
    about for the operation before it.

    Args:
        content: The file, with its names.
        traced: The calls of the model it was made of.
        output_names: The names that the file gives to the outputs of the model, in the model's order.
    """
    found: dict[str, list[str]] = {}
    for result in layer_results(flatbuffer.parse(content), traced, output_names):
        if result.owner is not None:
            found.setdefault(result.owner, []).append(result.name)
    return {layer: tuple(nodes) for layer, nodes in found.items()}


def _weights(traced: Trace) -> dict[str, int]:
    """Number of weights of each layer and operation, by its name."""
    return {
        call.operation.name: sum(math.prod(weight.shape) for weight in getattr(call.operation, "weights", ()))
        for call in traced.calls
    }


def rounded(traced: Trace, index: int) -> int:
    """The call whose result the file has for call `index`: the fake quantization that follows, or the call itself."""
    consumers = traced.consumers(index)
    while len(consumers) == 1 and isinstance(traced.calls[consumers[0]].operation, FakeQuantize):
        index = consumers[0]
        consumers = traced.consumers(index)
    return index


def before_rounding(traced: Trace, index: int) -> Call:
    """The call whose result call `index` is: the one before its fake quantization, or the call itself."""
    call = traced.calls[index]
    while isinstance(call.operation, FakeQuantize):
        call = traced.calls[call.sources[0].call]
    return call


def _scopes(part: str) -> list[str]:
    """The scopes of one operation, without the first, which is the model's."""
    return part.split("/")[1:-1]


def layers_of_scopes(scopes: Iterable[str], layers: Iterable[str]) -> dict[str, str]:
    """The layer that each name scope of a graph belongs to, for those that belong to one.

    A scope is called like its layer, often with a number after it, so that `conv_1` may be of `conv` or of `conv_1`. A
    layer that is the only one that a scope can be of is not that of another scope which has a choice.

    Example:
        >>> layers_of_scopes(["net_1", "conv_1", "conv_1_2"], ["conv", "conv_1"])
        {'conv_1': 'conv', 'conv_1_2': 'conv_1'}
        >>> layers_of_scopes(["net", "conv", "conv_1"], ["conv", "conv_1"])
        {'conv': 'conv', 'conv_1': 'conv_1'}
    """
    names = set(layers)
    scopes = list(dict.fromkeys(scopes))
    spellings = {scope: dict.fromkeys((scope, _NUMBER.sub("", scope))) for scope in scopes}
    choices = {scope: [name for name in some if name in names] for scope, some in spellings.items()}
    certain: set[str] = set()
    while True:
        found = {one[0] for one in choices.values() if len(one) == 1} - certain
        if not found:
            # The number was more likely added than not.
            return {scope: one[-1] for scope, one in choices.items() if one}
        certain |= found
        for scope, one in choices.items():
            if len(one) > 1:
                choices[scope] = [name for name in one if name not in certain] or one
