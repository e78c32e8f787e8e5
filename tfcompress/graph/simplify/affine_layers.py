"""Layers that multiply and add: what a factor and a number for each channel, before or behind them, make of their
weights.

Invariant: computed in float64 and rounded once; no layer is changed, new ones are made. Left out: subclasses, which may
compute anything, and layers with quantized or low-rank weights.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.graph.layer_kinds import CONVOLUTIONS, DEPTHWISE, SEPARABLE, TRANSPOSED, has_plain_weights
from tfcompress.graph.simplify.rewriting import with_weights
from tfcompress.layers.keras_applications import LayerScale

_KERNELS: dict[type, tuple[str, ...]] = {
    **dict.fromkeys((*CONVOLUTIONS, *DEPTHWISE, *TRANSPOSED, layers.Dense), ("kernel",)),
    **dict.fromkeys(SEPARABLE, ("depthwise_kernel", "pointwise_kernel")),
}


def is_affine(operation: Any) -> bool:
    """Whether an operation is a layer of this module: a convolution of any kind, or a dense layer."""
    return type(operation) in _KERNELS and has_plain_weights(operation)


def is_linear(layer: Any) -> bool:
    """Whether such a layer has no activation."""
    return layer.activation in (None, keras.activations.linear)


def is_padded(layer: Any) -> bool:
    """Whether some outputs of such a layer read zeros that are not of its input."""
    if type(layer) in TRANSPOSED:
        return True
    return type(layer) is not layers.Dense and layer.padding != "valid" and max(layer.kernel_size) > 1


def channel_axis(layer: Any) -> int:
    """The axis of the channels of such a layer: -1 or 1."""
    return 1 if getattr(layer, "data_format", "channels_last") == "channels_first" else -1


def weights_of(layer: Any) -> dict[str, np.ndarray]:
    """Kernels and bias by the names of their attributes, float64; a bias of zeros where there is none."""
    weights = {name: _float64(getattr(layer, name)) for name in _KERNELS[type(layer)]}
    weights["bias"] = _float64(layer.bias) if layer.use_bias else np.zeros(num_outputs(layer))
    return weights


def num_outputs(layer: Any) -> int:
    """Channels that such a layer makes."""
    kernel = getattr(layer, _KERNELS[type(layer)][-1])
    if type(layer) in DEPTHWISE:
        return int(kernel.shape[-2] * kernel.shape[-1])
    return int(kernel.shape[-2] if type(layer) in TRANSPOSED else kernel.shape[-1])


def num_inputs(layer: Any) -> int:
    """Channels that such a layer takes."""
    kernel = getattr(layer, _KERNELS[type(layer)][0])
    if type(layer) in TRANSPOSED:
        return int(kernel.shape[-1])
    return int(kernel.shape[-2]) * getattr(layer, "groups", 1)


def scaled_behind(layer: Any, scale: np.ndarray, shift: np.ndarray, **changes: Any) -> Any:
    """The layer that gives `scale * layer(x) + shift`.

    Args:
        layer: An affine layer without activation.
        scale: A factor for each channel that it makes, or one for all.
        shift: A number for each, likewise.
        **changes: What the new layer's configuration says otherwise.
    """
    count = num_outputs(layer)
    scale, shift = np.broadcast_to(scale, (count,)), np.broadcast_to(shift, (count,))
    weights = weights_of(layer)
    last = _KERNELS[type(layer)][-1]
    if type(layer) in DEPTHWISE:
        weights[last] = weights[last] * scale.reshape(weights[last].shape[-2:])
    else:
        weights[last] = weights[last] * (scale[:, None] if type(layer) in TRANSPOSED else scale)
    weights["bias"] = weights["bias"] * scale + shift
    return with_weights(layer, _without_idle_bias(layer, weights), **changes)


def scaled_before(layer: Any, scale: np.ndarray, shift: np.ndarray) -> Any:
    """The layer that gives `layer(scale * x + shift)`.

    Args:
        layer: An affine layer.
        scale: A factor for each channel that it takes, or one for all.
        shift: A number for each, likewise; zero where the layer is padded.
    """
    count = num_inputs(layer)
    scale, shift = np.broadcast_to(scale, (count,)), np.broadcast_to(shift, (count,))
    weights, kind = weights_of(layer), type(layer)
    first = _KERNELS[kind][0]
    kernel = weights[first]
    positions = tuple(range(kernel.ndim - 2))
    if kind in TRANSPOSED:
        weights[first] = kernel * scale
    elif kind in DEPTHWISE or kind in SEPARABLE:
        weights[first] = kernel * scale[:, None]
        added = (kernel * shift[:, None]).sum(positions).reshape(-1)
        if kind in SEPARABLE:
            pointwise = weights["pointwise_kernel"]
            added = added @ pointwise.reshape(-1, pointwise.shape[-1])
        weights["bias"] = weights["bias"] + added
    else:
        read = _read_channels(kernel.shape[-2], kernel.shape[-1], getattr(layer, "groups", 1))
        weights[first] = kernel * scale[read]
        weights["bias"] = weights["bias"] + (kernel * shift[read]).sum((*positions, -2))
    return with_weights(layer, _without_idle_bias(layer, weights))


def reads(layer: Any) -> np.ndarray:
    """Whether any weight of each channel that a layer takes is not zero."""
    kind = type(layer)
    kernel = weights_of(layer)[_KERNELS[kind][0]] != 0
    if kind in TRANSPOSED:
        return kernel.any(tuple(range(kernel.ndim - 1)))
    if kind in DEPTHWISE or kind in SEPARABLE:
        return kernel.any((*range(kernel.ndim - 2), -1))
    groups = getattr(layer, "groups", 1)
    grouped = kernel.any(tuple(range(kernel.ndim - 2))).reshape(kernel.shape[-2], groups, -1)
    return grouped.any(-1).T.reshape(-1)


def depends(layer: Any) -> np.ndarray:
    """Whether any weight of each channel that a layer makes is not zero, so that it is more than its bias."""
    kind = type(layer)
    weights = weights_of(layer)
    kernel = weights[_KERNELS[kind][-1]] != 0
    if kind in TRANSPOSED:
        return kernel.any((*range(kernel.ndim - 2), -1))
    if kind in DEPTHWISE:
        return kernel.any(tuple(range(kernel.ndim - 2))).reshape(-1)
    if kind in SEPARABLE:
        depthwise = weights["depthwise_kernel"] != 0
        between = depthwise.any(tuple(range(depthwise.ndim - 2))).reshape(-1, 1)
        return (kernel.reshape(len(between), -1) & between).any(0)
    return kernel.any(tuple(range(kernel.ndim - 1)))


def scale_and_shift(layer: Any, rank: int) -> tuple[np.ndarray, np.ndarray, int] | None:
    """What a layer does that multiplies and adds for each channel by itself, in inference.

    Args:
        layer: Any operation.
        rank: Number of axes of its input, the batch's included.

    Returns:
        The factor and the number for each channel (or one for all) and the axis of the channels, -1 or counted from
        the start; None for any other layer.
    """
    if type(layer) is layers.BatchNormalization:
        deviation = np.sqrt(_float64(layer.moving_variance) + layer.epsilon)
        scale = (_float64(layer.gamma) if layer.scale else 1.0) / deviation
        shift = (_float64(layer.beta) if layer.center else 0.0) - _float64(layer.moving_mean) * scale
        return scale, shift, -1 if layer.axis in (-1, rank - 1) else layer.axis
    if type(layer) is LayerScale:
        return _float64(layer.gamma), np.zeros(()), -1
    if type(layer) is layers.Rescaling and keras.config.image_data_format() == "channels_last":
        scale, shift = np.asarray(layer.scale, "float64"), np.asarray(layer.offset, "float64")
        return (scale, shift, -1) if max(scale.ndim, shift.ndim) <= 1 else None
    return None


def _read_channels(depth: int, filters: int, groups: int) -> np.ndarray:
    """The channel that each place `(depth, filters)` of a kernel reads."""
    return np.arange(depth)[:, None] + depth * (np.arange(filters)[None, :] * groups // filters)


def _without_idle_bias(layer: Any, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights without a bias that the layer did not have and that is zero."""
    if not layer.use_bias and not weights["bias"].any():
        del weights["bias"]
    return weights


def _float64(variable: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable).astype("float64")
