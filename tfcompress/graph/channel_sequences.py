"""What recurrent and attention layers do with channels: units of a recurrent layer, heads and sizes of attention.

Invariant: a layer with an option that is not known here (gates of attention, activations over several numbers) fixes
its channels. Left out: masks, which have no channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from keras import layers

from tfcompress.graph.channel_labels import LabelBook, Labelled, Labels
from tfcompress.graph.channel_rule import Count, LayerRule, is_elementwise

_GATES = {layers.SimpleRNN: 1, layers.GRU: 3, layers.LSTM: 4}


def recurrent(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> list[Labels | None]:
    """An LSTM, GRU or SimpleRNN, whose results and states are its units."""
    units = _cell(book, layer, inputs[0].on_last_axis(book))
    for state in inputs[1:]:
        if state.labels is None:
            book.fix(units)
        else:
            book.unite(units, state.labels.vector)
    return [Labels(-1, units) for _ in outputs]


def _cell(book: LabelBook, layer: Any, source: np.ndarray | None) -> np.ndarray:
    cell, gates = layer.cell, _GATES[type(layer)]
    units = book.made(layer, cell.kernel, -1, repeats=gates)
    book.own(layer, cell.kernel, 0, source)
    book.own(layer, cell.recurrent_kernel, 0, units)
    book.own(layer, cell.recurrent_kernel, 1, np.tile(units, gates))
    if cell.use_bias:
        book.own(layer, cell.bias, -1, np.tile(units, gates))
    functions = [cell.activation, getattr(cell, "recurrent_activation", None)]
    if not all(is_elementwise(function) for function in functions):
        book.fix(units)
    return units


def bidirectional(
    book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]
) -> list[Labels | None]:
    """Both directions have the same number of units, so a unit of one goes with that of the other."""
    directions = (layer.forward_layer, layer.backward_layer)
    if len(inputs) > 1 or any(type(one) not in _GATES for one in directions):
        book.fix(*(one.labels for one in inputs))
        return [None] * len(outputs)
    for one in directions:
        book.wrap(layer, one)
    source = inputs[0].on_last_axis(book)
    forward, backward = (_cell(book, one, source) for one in directions)
    if len(forward) != len(backward):
        book.fix(forward, backward)
        return [None] * len(outputs)
    book.unite(forward, backward)
    if layer.merge_mode == "concat":
        forward = np.concatenate([forward, backward])
    one = Labels(-1, forward)
    # The states that follow, of one direction each.
    return [one, *(Labels(-1, backward) for _ in outputs[1:])] if layer.merge_mode else [one for _ in outputs]


def bidirectional_config(layer: Any, count: Count) -> Mapping[str, Any]:
    """The wrapped layers with fewer units."""
    config, changes = layer.get_config(), {}
    for key, one in (("layer", layer.forward_layer), ("backward_layer", layer.backward_layer)):
        if config.get(key) is not None:
            inner = {**config[key]["config"], "units": count(one.cell.kernel, -1) // _GATES[type(one)]}
            changes[key] = {**config[key], "config": inner}
    return changes


def units_of(gates: int) -> Callable[[Any, Count], Mapping[str, Any]]:
    """The configuration of a recurrent layer with fewer units."""
    return lambda layer, count: {"units": count(layer.cell.kernel, -1) // gates}


def attention(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> list[Labels | None]:
    """MultiHeadAttention: whole heads, or the same indices of the keys, or of the values, of all heads."""
    sources = [one.on_last_axis(book) for one in inputs]
    # A kernel of more axes makes results of several, as `output_shape=(4, 4)` asks for.
    if getattr(layer, "_use_gate", False) or len(layer.output_dense.kernel.shape) != 3:
        book.fix(*(vector for vector in sources if vector is not None))
        return [None] * len(outputs)
    query, value = sources[0], sources[1]
    key = sources[2] if len(sources) > 2 else value
    parts = (layer.query_dense, layer.key_dense, layer.value_dense)
    heads = book.made(layer, parts[0].kernel, 1)
    if len(outputs) > 1:
        book.fix(heads)  # The scores that are given too have an axis of them.
    keys, values = book.made(layer, parts[0].kernel, 2), book.made(layer, parts[2].kernel, 2)
    for part, source, sizes in zip(parts, (query, key, value), (keys, keys, values), strict=True):
        book.own(layer, part.kernel, 0, source)
        book.own(layer, part.kernel, 1, heads)
        book.own(layer, part.kernel, 2, sizes)
        if part.bias is not None:
            book.own(layer, part.bias, 0, heads)
            book.own(layer, part.bias, 1, sizes)
    last = layer.output_dense
    book.own(layer, last.kernel, 0, heads)
    book.own(layer, last.kernel, 1, values)
    made = book.made(layer, last.kernel, 2)
    if last.bias is not None:
        book.own(layer, last.bias, 0, made)
    return [Labels(-1, made), *([None] * (len(outputs) - 1))]


def attention_config(layer: Any, count: Count) -> Mapping[str, Any]:
    """Fewer heads, smaller keys and values."""
    query = layer.query_dense.kernel
    return {
        "num_heads": count(query, 1),
        "key_dim": count(query, 2),
        "value_dim": count(layer.value_dense.kernel, 2),
        "output_shape": (count(layer.output_dense.kernel, 2),),
    }


def attention_weights(old: Any, new: Any, values: list[np.ndarray]) -> list[np.ndarray]:
    """Queries in the scale that the attention divides by, which is that of the size of its keys."""
    factor = math.sqrt(new.query_dense.kernel.shape[2] / old.query_dense.kernel.shape[2])
    mine = {id(variable) for variable in (old.query_dense.kernel, old.query_dense.bias) if variable is not None}
    return [value * factor if id(one) in mine else value for one, value in zip(old.weights, values, strict=True)]


SEQUENCE_RULES: dict[type, LayerRule] = {
    **{kind: LayerRule(recurrent, units_of(gates)) for kind, gates in _GATES.items()},
    layers.Bidirectional: LayerRule(bidirectional, bidirectional_config),
    layers.MultiHeadAttention: LayerRule(attention, attention_config, ("query", "value", "key"), attention_weights),
}
