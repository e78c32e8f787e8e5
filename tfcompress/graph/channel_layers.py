"""What each Keras layer does with the channels that it takes, and how it is configured with fewer.

Invariant: a layer that is not in `RULES`, whose channels come first, or whose weights are no plain ones (LoRA, int8)
fixes the channels that it takes and gives. Left out: operations that are no layers (`channel_operations.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.graph import channel_tensors as tensors
from tfcompress.graph.channel_labels import LabelBook, Labelled, Labels
from tfcompress.graph.channel_rule import Count, LayerRule, is_elementwise
from tfcompress.graph.channel_sequences import SEQUENCE_RULES
from tfcompress.graph.layer_kinds import (
    CONVOLUTIONS,
    CROPPINGS,
    DEPTHWISE,
    ELEMENTWISE,
    GLOBAL_POOLINGS,
    IDLE_IN_INFERENCE,
    PADDINGS,
    POOLINGS,
    SEPARABLE,
    TRANSPOSED,
    UPSAMPLINGS,
    has_plain_weights,
)
from tfcompress.graph.trace import Call, Ref
from tfcompress.layers.fused_batch_normalization import FusedBatchNormalization
from tfcompress.layers.keras_applications import CustomScaleLayer, LayerScale, StochasticDepth

# Layers without weights that treat every number by itself, ...
EACH_NUMBER = (*IDLE_IN_INFERENCE, *ELEMENTWISE, StochasticDepth)
# ... or every channel, which are the last axis of their maps; along the others they mix or move numbers.
EACH_CHANNEL = (*PADDINGS, *CROPPINGS, *UPSAMPLINGS, *POOLINGS)
_Result = Sequence[Labels | None]


def connect_layer(
    book: LabelBook, call: Call, inputs: Mapping[Ref, Labelled], outputs: Sequence[tuple]
) -> Sequence[Labels | None]:
    """Notes what a call of a layer does with labels.

    Args:
        book: Where labels are noted.
        call: The call.
        inputs: What it takes, by its `Ref`.
        outputs: The shapes of its results.

    Returns:
        The labels of each result, None where they are fixed.
    """
    layer = call.operation
    rule = rule_for(layer)
    if rule is None:
        book.fix(*(one.labels for one in inputs.values()))
        return [None] * len(outputs)
    given = _in_order(call, rule.arguments)
    book.fix(*(one.labels for ref, one in inputs.items() if ref not in given))
    return rule.connect(book, layer, [inputs[ref] for ref in given], outputs)


def rule_for(layer: Any) -> LayerRule | None:
    """The rule of a layer, None for one that is not known, as a subclass, which may compute anything."""
    if getattr(layer, "data_format", "channels_last") != "channels_last" or not has_plain_weights(layer):
        return None
    return RULES.get(type(layer))


def _in_order(call: Call, names: Sequence[str] | None) -> list[Ref]:
    """The tensors of some arguments of a call, or of all, in the order of the layer's signature."""
    arguments = inspect.signature(call.operation.call).bind(*call.args, **call.kwargs).arguments
    values = [value for name, value in arguments.items() if names is None or name in names]
    return [leaf for leaf in keras.tree.flatten(values) if isinstance(leaf, Ref)]


def _activated(book: LabelBook, layer: Any, vector: np.ndarray) -> list[Labels | None]:
    """The result of a layer that makes channels and applies its activation to them."""
    if not is_elementwise(layer.activation):
        book.fix(vector)
    return [Labels(-1, vector)]


def _own_bias(book: LabelBook, layer: Any, vector: np.ndarray | None) -> None:
    if getattr(layer, "use_bias", False):
        book.own(layer, layer.bias, -1, vector)


def _unchanged(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> _Result:
    return [inputs[0].labels]


def _activation(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> _Result:
    if not is_elementwise(layer.activation):
        book.fix(inputs[0].labels)
        return [None]
    return [inputs[0].labels]


def _pooled_globally(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> _Result:
    vector = inputs[0].on_last_axis(book)
    book.fix(*(one.labels for one in inputs[1:]))
    return [None if vector is None else Labels(-1, vector)]


def _rescaled(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> _Result:
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        book.fix(inputs[0].labels)
        return [None]
    return [inputs[0].labels]


def _convolved(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> _Result:
    source = inputs[0].on_last_axis(book)
    made = book.made(layer, layer.kernel, -1)
    if layer.groups == 1:
        book.own(layer, layer.kernel, -2, source)
    else:
        _couple_groups(book, layer, source, made)
    _own_bias(book, layer, made)
    return _activated(book, layer, made)


def _couple_groups(book: LabelBook, layer: Any, source: np.ndarray | None, made: np.ndarray) -> None:
    """Keeps the groups of a convolution equal: either whole groups go, or the same indices of each."""
    if source is None:
        source = np.zeros(layer.groups * layer.kernel.shape[-2], int)
    read, filters = source.reshape(layer.groups, -1), made.reshape(layer.groups, -1)
    if _goes_by_groups(layer):
        # Labels of one group become one, so that a group goes as a whole and the kernel keeps its depth.
        for group in range(layer.groups):
            together = np.concatenate([read[group], filters[group]])
            book.unite(together, np.full(len(together), filters[group, 0]))
        book.own(layer, layer.kernel, -2, None)
        return
    for group in range(1, layer.groups):
        book.unite(read[group], read[0])
        book.unite(filters[group], filters[0])
    book.own(layer, layer.kernel, -2, read[0])


def _goes_by_groups(layer: Any) -> bool:
    """Whether whole groups are removed, of which there are more than channels in each."""
    return layer.groups > 1 and layer.groups >= layer.kernel.shape[-2]


def _convolved_config(layer: Any, count: Count) -> Mapping[str, Any]:
    filters = count(layer.kernel, -1)
    in_one_group = layer.kernel.shape[-1] // layer.groups
    return {"filters": filters, "groups": filters // in_one_group if _goes_by_groups(layer) else layer.groups}


def _transposed(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> _Result:
    book.own(layer, layer.kernel, -1, inputs[0].on_last_axis(book))
    made = book.made(layer, layer.kernel, -2)
    _own_bias(book, layer, made)
    return _activated(book, layer, made)


def _depthwise_channels(book: LabelBook, layer: Any, kernel: Any, source: np.ndarray | None) -> np.ndarray | None:
    book.own(layer, kernel, -2, source)
    return None if source is None else np.repeat(source, kernel.shape[-1])


def _depthwise(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> _Result:
    made = _depthwise_channels(book, layer, layer.kernel, inputs[0].on_last_axis(book))
    _own_bias(book, layer, made)
    return [None] if made is None else _activated(book, layer, made)


def _separable(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> _Result:
    between = _depthwise_channels(book, layer, layer.depthwise_kernel, inputs[0].on_last_axis(book))
    book.own(layer, layer.pointwise_kernel, -2, between)
    made = book.made(layer, layer.pointwise_kernel, -1)
    _own_bias(book, layer, made)
    return _activated(book, layer, made)


def _dense(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> _Result:
    book.own(layer, layer.kernel, 0, inputs[0].on_last_axis(book))
    made = book.made(layer, layer.kernel, -1)
    _own_bias(book, layer, made)
    return _activated(book, layer, made)


def _embedded(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> _Result:
    return [Labels(-1, book.made(layer, layer.embeddings, -1))]


def _for_each_channel(*names: str) -> Callable[..., _Result]:
    """A layer with numbers for each channel of its input, in the weights of these names."""

    def connect(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> _Result:
        vector = inputs[0].on_last_axis(book)
        for name in names:
            variable = getattr(layer, name, None)
            if variable is not None:
                book.own(layer, variable, -1, vector)
        return [None if vector is None else Labels(-1, vector)]

    return connect


def _batch_normalized(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> _Result:
    if layer.axis not in (-1, len(inputs[0].shape) - 1) or getattr(layer, "renorm", False):
        book.fix(inputs[0].labels)
        return [None]
    names = [name for name in ("gamma", "beta") if getattr(layer, {"gamma": "scale", "beta": "center"}[name])]
    return _for_each_channel(*names, "moving_mean", "moving_variance")(book, layer, inputs, outputs)


def _parametric_relu(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> _Result:
    labels = inputs[0].labels
    for axis, size in enumerate(layer.alpha.shape, -len(layer.alpha.shape)):
        # A slope that is shared along an axis belongs to none of its channels.
        if size != 1:
            book.own(layer, layer.alpha, axis, labels.vector if labels is not None and labels.axis == axis else None)
    return [labels]


def _merged(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> _Result:
    return [tensors.merge(book, inputs, outputs[0])]


def _concatenated(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> _Result:
    return [tensors.concatenate(book, inputs, layer.axis)]


def _reshaped(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> _Result:
    # Used twice, a layer has one shape to reshape to.
    return [book.again(layer, tensors.reshape(book, inputs[0], outputs[0]))]


def _permuted(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> _Result:
    return [tensors.transpose(inputs[0], (0, *layer.dims))]


def _for_each_step(book: LabelBook, layer: Any, inputs: Sequence[Labelled], outputs: Sequence[tuple]) -> _Result:
    """The wrapped layer, which sees no axis of time."""
    rule = rule_for(layer.layer)
    if rule is None or any(one.labels is not None and one.labels.axis == 1 - len(one.shape) for one in inputs):
        book.fix(*(one.labels for one in inputs))
        return [None] * len(outputs)
    book.wrap(layer, layer.layer)
    given = [Labelled(one.labels, (one.shape[0], *one.shape[2:])) for one in inputs]
    return rule.connect(book, layer.layer, given, [(shape[0], *shape[2:]) for shape in outputs])


def each_step_config(layer: Any, changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of a `TimeDistributed` whose wrapped layer is configured otherwise."""
    wrapped = layer.get_config()["layer"]
    return {"layer": {**wrapped, "config": wrapped["config"] | dict(changes)}}


_CONV = LayerRule(_convolved, _convolved_config)
_TRANSPOSED = LayerRule(_transposed, lambda layer, count: {"filters": count(layer.kernel, -2)})
_DEPTHWISE = LayerRule(_depthwise)
_SEPARABLE = LayerRule(_separable, lambda layer, count: {"filters": count(layer.pointwise_kernel, -1)})
_MERGED = LayerRule(_merged)

RULES: dict[type, LayerRule] = {
    **SEQUENCE_RULES,
    **dict.fromkeys(EACH_NUMBER, LayerRule(_unchanged)),
    **dict.fromkeys(EACH_CHANNEL, LayerRule(_for_each_channel())),
    **dict.fromkeys(GLOBAL_POOLINGS, LayerRule(_pooled_globally)),
    **dict.fromkeys(CONVOLUTIONS, _CONV),
    **dict.fromkeys(TRANSPOSED, _TRANSPOSED),
    **dict.fromkeys(DEPTHWISE, _DEPTHWISE),
    **dict.fromkeys(SEPARABLE, _SEPARABLE),
    **dict.fromkeys((layers.Add, layers.Subtract, layers.Multiply, layers.Average), _MERGED),
    **dict.fromkeys((layers.Maximum, layers.Minimum, CustomScaleLayer), _MERGED),
    layers.Activation: LayerRule(_activation),
    layers.BatchNormalization: LayerRule(_batch_normalized),
    FusedBatchNormalization: LayerRule(_batch_normalized),
    layers.Concatenate: LayerRule(_concatenated),
    layers.Dense: LayerRule(_dense, lambda layer, count: {"units": count(layer.kernel, -1)}),
    layers.Embedding: LayerRule(_embedded, lambda layer, count: {"output_dim": count(layer.embeddings, -1)}),
    layers.Flatten: LayerRule(_reshaped),
    layers.PReLU: LayerRule(_parametric_relu),
    layers.Permute: LayerRule(_permuted),
    layers.RepeatVector: LayerRule(_unchanged),
    layers.Rescaling: LayerRule(_rescaled),
    layers.TimeDistributed: LayerRule(_for_each_step),
    layers.Reshape: LayerRule(_reshaped),
    LayerScale: LayerRule(_for_each_channel("gamma"), lambda layer, count: {"projection_dim": count(layer.gamma, 0)}),
}
