"""Sums whose BatchNormalization an integer file folds into their kernel.

The file multiplies each channel of the kernel by a factor. A scale for each channel takes its size, but a scale is
positive: a negative factor turns the signs of that channel's integers around.

Invariant: `make_factors_positive` changes no output. Left out: layers and normalizations that are used more than once.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.graph.trace import has_graph, trace

_SUMS = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.SeparableConv1D, layers.SeparableConv2D)


def normalized_sums(model: keras.Model) -> list[tuple[Any, layers.BatchNormalization]]:
    """Each dense layer or convolution with factors for its channels, and the BatchNormalization that has these.

    Args:
        model: A built model; one without a graph, or with a model in it that has none, has no sum that can be known.
    """
    models = [part for part in model._flatten_layers() if isinstance(part, keras.Model)]
    if not all(map(has_graph, models)):
        return []
    traced = trace(model, allow_equal_names=True)
    uses: dict[int, list[int]] = {}
    for index, call in enumerate(traced.calls):
        uses.setdefault(id(call.operation), []).append(index)
    outputs = {ref.call for ref in keras.tree.flatten(traced.outputs)}
    found = []
    for index, call in enumerate(traced.calls):
        layer, consumers = call.operation, traced.consumers(index)
        if not isinstance(layer, _SUMS) or index in outputs or len(consumers) != 1:
            continue
        norm = traced.calls[consumers[0]].operation
        is_alone = len(uses[id(layer)]) == len(uses[id(norm)]) == 1
        if is_alone and layer.activation is keras.activations.linear and _scales_channels(norm):
            found.append((layer, norm))
    return found


def make_factors_positive(layer: Any, norm: layers.BatchNormalization) -> bool:
    """Moves the signs of negative factors into the kernel, in place, without changing what both layers compute.

    Args:
        layer: The dense layer or convolution, its channels on the last axis of its kernel.
        norm: The BatchNormalization that alone takes its result.

    Returns:
        Whether there were any.

    Example:
        >>> inputs = keras.Input((1,))
        >>> dense, norm = layers.Dense(1, kernel_initializer="ones"), layers.BatchNormalization()
        >>> model = keras.Model(inputs, norm(dense(inputs)))
        >>> _ = norm.gamma.assign([-2.0])
        >>> make_factors_positive(dense, norm), dense.kernel.numpy().item(), norm.gamma.numpy().item()
        (True, -1.0, 2.0)
    """
    signs = np.where(keras.ops.convert_to_numpy(norm.gamma) < 0, -1, 1).astype("float32")
    if (signs == 1).all():
        return False
    kernel = layer.pointwise_kernel if hasattr(layer, "pointwise_kernel") else layer.kernel
    turned = [kernel, norm.gamma, norm.moving_mean] + ([layer.bias] if layer.use_bias else [])
    for variable in turned:
        variable.assign(keras.ops.convert_to_numpy(variable) * signs)
    return True


def _scales_channels(norm: Any) -> bool:
    if not isinstance(norm, layers.BatchNormalization) or not norm.scale:
        return False
    rank = norm.input_spec.ndim
    return norm.axis % rank == rank - 1
