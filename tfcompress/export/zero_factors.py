"""Channels that a BatchNormalization multiplies by zero, said in a way that the converter understands.

The converter (TensorFlow 2.21) folds a BatchNormalization into the scales of the convolution before it. A factor of
exactly zero, as zero-initialized residual branches and sparse training have, would be a scale of zero, and it leaves
the whole convolution in float; with one of next to nothing, the bias in units of that scale does not fit into 32 bits.
A kernel of zeros under a factor of one computes the same and converts.

Invariant: the model computes the same while it is in this form, but for what a channel adds to its constant where that
is under a hundred-thousandth of the largest channel's; it is as it was afterwards. Left out: layers that are used more
than once, and depthwise and transposed convolutions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tfcompress.graph.normalized_sums import normalized_sums

# Of the largest channel's weights, after their factors, what is nothing.
_NOTHING = 1e-5


@contextlib.contextmanager
def zero_factors_as_zero_kernels(model: keras.Model) -> Iterator[None]:
    """Turns factors of zero into kernels of zeros for a while.

    Args:
        model: A quantization-aware model; its weights are changed and set back.
    """
    before: list[tuple[Any, np.ndarray]] = []
    try:
        for layer, norm in normalized_sums(model):
            channels = _constant_channels(layer, norm)
            # Without an offset there is no place for a constant, which is zero only where the factor is.
            if len(channels) and (norm.center or not norm.gamma.numpy()[channels].any()):
                for variable, value in _rewritten(layer, norm, channels):
                    before.append((variable, keras.ops.convert_to_numpy(variable).copy()))
                    variable.assign(value)
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


def _constant_channels(layer: Any, norm: Any) -> np.ndarray:
    kernel = np.abs(keras.ops.convert_to_numpy(_kernel(layer)))
    size = kernel.reshape(-1, kernel.shape[-1]).max(0) * np.abs(_factor(norm))
    return np.flatnonzero(size <= _NOTHING * size.max())


def _factor(norm: Any) -> np.ndarray:
    variance = keras.ops.convert_to_numpy(norm.moving_variance).astype("float64")
    return keras.ops.convert_to_numpy(norm.gamma) / np.sqrt(variance + norm.epsilon)


def _kernel(layer: Any) -> Any:
    return layer.pointwise_kernel if hasattr(layer, "pointwise_kernel") else layer.kernel


def _rewritten(layer: Any, norm: Any, channels: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
    bias = keras.ops.convert_to_numpy(layer.bias)[channels] if layer.use_bias else np.zeros(len(channels))
    # What is normalized is then the bias alone, less itself; its constant goes into the offset.
    constant = (bias - keras.ops.convert_to_numpy(norm.moving_mean)[channels]) * _factor(norm)[channels]
    changes = [(_kernel(layer), 0.0), (norm.gamma, 1.0), (norm.moving_mean, bias)]
    if norm.center:
        changes.append((norm.beta, keras.ops.convert_to_numpy(norm.beta)[channels] + constant))
    for variable, value in changes:
        array = keras.ops.convert_to_numpy(variable).copy()
        array[..., channels] = value
        yield variable, array
