"""Which kernels of a model are pruned.

Invariant: the kernels are listed in the model's order, each once. Left out: which of their weights (`ranking.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import keras

from tfcompress.errors import ModelError
from tfcompress.graph.trace import Trace, trace
from tfcompress.techniques.kernels import Kernel, find_kernels, why_hidden
from tfcompress.techniques.layer_names import check_patterns, fits

_RECURRENT = (keras.layers.RNN, keras.layers.Bidirectional)


def prunable_kernels(
    model: keras.Model, include: Iterable[str] | None = None, exclude: Iterable[str] = ()
) -> list[Kernel]:
    """The kernels that are pruned.

    By default those are the kernels of every layer, recurrent cells and attention included, except depthwise ones, the
    first and the last layer with a kernel on each path through the network. A depthwise kernel has a handful of weights
    for each channel, and the first and last layers have few weights that every prediction depends on: their zeros save
    little and cost much accuracy (Gale et al., "The State of Sparsity in Deep Neural Networks", 2019,
    https://arxiv.org/abs/1902.09574). A recurrent layer is pruned wherever it stands, since it holds most of the
    weights of its network.

    Args:
        model: A built Keras model.
        include: Patterns of layer names (`fnmatch`, such as `"conv*"`). When given, just these are pruned, the kinds
            that are left out by default too.
        exclude: Patterns of layer names that are not pruned.

    Raises:
        InvalidArgumentError: If a pattern fits no layer with a kernel.
        ModelError: If nothing is left to prune.
    """
    kernels = find_kernels(model)
    names = list(dict.fromkeys(kernel.layer.name for kernel in kernels))
    check_patterns(names, {"include": include, "exclude": exclude})
    if include is None:
        left_out = _first_and_last(model, names)
        chosen = [
            kernel
            for kernel in kernels
            if not kernel.is_depthwise and (kernel.layer.name not in left_out or isinstance(kernel.layer, _RECURRENT))
        ]
    else:
        chosen = [kernel for kernel in kernels if fits(kernel.layer.name, include)]
    chosen = [kernel for kernel in chosen if not fits(kernel.layer.name, exclude)]
    if not chosen:
        raise ModelError(
            f"Model {model.name!r} has no layer to prune: first, last and depthwise layers are left out by default. "
            f"Name layers in `include`.{why_hidden(model)} Received: layers with kernels {names}."
        )
    return chosen


def _first_and_last(model: keras.Model, names: Sequence[str]) -> set[str]:
    """The layers with a kernel that have no other such layer before them, or none after them."""
    try:
        traced = trace(model)
    except ModelError:
        # A subclassed model has no graph; its layers are listed in the order of their making.
        return {names[0], names[-1]} if names else set()
    return _edge(traced, names, forward=True) | _edge(traced, names, forward=False)


def _edge(traced: Trace, names: Iterable[str], *, forward: bool) -> set[str]:
    calls = traced.calls
    kernels = set(names)
    reached: dict[int, bool] = {}  # Whether a kernel lies between the edge of the network and this call's result.
    edge = set()
    for index in range(len(calls)) if forward else reversed(range(len(calls))):
        before = [ref.call for ref in calls[index].sources] if forward else traced.consumers(index)
        behind_kernel = any(reached[at] for at in before)
        is_kernel = calls[index].operation.name in kernels
        if is_kernel and not behind_kernel:
            edge.add(calls[index].operation.name)
        reached[index] = behind_kernel or is_kernel
    return edge
