"""What a model costs once units are gone, without making it: multiply-adds and parameters.

A cost is a sum of terms, each a number for every combination of indices along some axes of weights: every value of a
kernel has the same number of multiply-adds, and attention multiplies each query with each key, head by head. What is
left follows from how many indices stay along these axes. Layers that multiply without a kernel (`Dot`, `Attention`)
take no channel that may go, so theirs do not change.

Invariant: with nothing removed, costs are those of `layer_macs` and `num_params`; without units, those of the model
that `shrink` makes. Left out: what is no multiply-add for `layer_macs`.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.graph.channels import ChannelGraph
from tfcompress.graph.macs import layer_macs
from tfcompress.graph.shapes import tensors_of
from tfcompress.graph.trace import Call, Ref

Cost = Callable[[np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class _Term:
    """What costs `factor` for every combination of indices along `axes`, which are `(weight, axis)`."""

    factor: float
    axes: tuple[tuple[Any, int], ...] = ()


def macs_cost(model: keras.Model, graph: ChannelGraph) -> Cost:
    """`removed -> multiply-adds`, where `removed` has a boolean for each unit of `graph`."""
    layers = {call.operation.name: call.operation for call in graph.traced.calls}
    attentions = [call for call in graph.traced.calls if type(call.operation) is keras.layers.MultiHeadAttention]
    shapes = tensors_of(graph.traced, batch=1) if attentions else {}
    terms = [term for call in attentions for term in _attention_terms(call, shapes)]
    apart = {call.operation.name for call in attentions}
    for name, count in layer_macs(model).items():
        if name not in apart:
            terms += _kernel_terms(layers[name], count)
    return _cost(graph, terms)


def params_cost(model: keras.Model, graph: ChannelGraph) -> Cost:
    """`removed -> values of all weights`."""
    return _cost(graph, [_whole(weight) for weight in model.weights])


def _whole(weight: Any, factor: float = 1.0) -> _Term:
    """A number for each value of a weight."""
    return _Term(factor, tuple((weight, axis) for axis in range(len(weight.shape))))


def _kernel_terms(layer: Any, count: int) -> list[_Term]:
    """The multiply-adds of a layer, all of whose kernels have values that are used equally often."""
    kernels = [weight for weight in layer.weights if weight.name.endswith("kernel")]
    size = sum(math.prod(kernel.shape) for kernel in kernels)
    return [_whole(kernel, count / size) for kernel in kernels] if size else [_Term(count)]


def _attention_terms(call: Call, tensors: Mapping[Ref, keras.KerasTensor]) -> list[_Term]:
    """Projections of queries and values, then each query's scores and its weighted sum, head by head."""
    layer = call.operation
    given = inspect.signature(layer.call).bind(*call.args, **call.kwargs).arguments
    queries, values = (math.prod(tensors[given[name]].shape[1:-1]) for name in ("query", "value"))
    uses = ((layer.query_dense, queries), (layer.key_dense, values), (layer.value_dense, values))
    terms = [_whole(part.kernel, used) for part, used in (*uses, (layer.output_dense, queries))]
    heads = (layer.query_dense.kernel, 1)
    sizes = ((layer.query_dense.kernel, 2), (layer.value_dense.kernel, 2))
    return [*terms, *(_Term(queries * values, (heads, size)) for size in sizes)]


def _cost(graph: ChannelGraph, terms: Iterable[_Term]) -> Cost:
    units = {(id(member.variable), member.axis): member.units for member in graph.members}
    # Of each term what stays, and the axes that may lose indices; terms that lose none are one number.
    parts, constant = [], 0.0
    for term in terms:
        sizes = [weight.shape[axis] for weight, axis in term.axes if (id(weight), axis) not in units]
        keys = [(id(weight), axis) for weight, axis in term.axes if (id(weight), axis) in units]
        if keys:
            parts.append((term.factor * math.prod(sizes), keys))
        else:
            constant += term.factor * math.prod(sizes)
    used = {key for _, keys in parts for key in keys}

    def cost(removed: np.ndarray) -> float:
        stays = np.append(~removed, True)
        left = {key: int(np.count_nonzero(stays[units[key]])) for key in used}
        return constant + sum(factor * math.prod(left[key] for key in keys) for factor, keys in parts)

    return cost
