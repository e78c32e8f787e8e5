"""Bias correction: rounding shifts the mean of what a channel gives, and its bias takes the shift back.

Invariant: only biases and BatchNormalization offsets change. Left out: layers that have neither, whose means stay as
they are, and layers used at several places, which are corrected for the first.

Reference: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.2 and
appendix D (the empirical form), https://arxiv.org/abs/1906.04721
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from tfcompress.techniques.quantize.integer_support import only_follower
from tfcompress.techniques.quantize.side_by_side import Visit, side_by_side, without_activation


def correct_biases(model: keras.Model, batches: Iterable[Any], *, floats: keras.Model | None = None) -> list[str]:
    """Moves each bias of a quantization-aware model by the mean error of its channel, in place and in graph order.

    The mean is over samples and places of what the layer gives before its activation, in the float model and in the
    rounded one with all layers before it corrected.

    Args:
        model: A calibrated model from `quantize_aware`.
        batches: Inputs, or `(inputs, ...)` tuples, of shape `(batch, ...)`.
        floats: See `side_by_side`.

    Returns:
        The names of the corrected layers.

    Raises:
        DataError: If there is no batch.
    """
    corrected: list[str] = []

    def correct(visit: Visit) -> None:
        follower = only_follower(visit.traced, visit.index)
        # Before a normalization, the kernel's sums are shifted; the offset after it takes that back.
        if isinstance(follower, keras.layers.BatchNormalization):
            if not follower.center:
                return
            follower.beta.assign_sub(_factor(follower) * mean_error(visit))
        elif visit.layer.bias is not None and len(visit.layer.bias.shape) == 1:
            visit.layer.bias.assign_sub(mean_error(visit))
        else:
            return
        corrected.append(visit.layer.name)

    side_by_side(model, batches, correct, floats=floats)
    return corrected


def mean_error(visit: Visit) -> np.ndarray:
    """The mean of the rounded layer's sums less that of the float layer's, float64 of shape `(channels,)`."""
    return _mean_sums(visit.layer, visit.inputs) - _mean_sums(visit.plain, visit.float_inputs)


def _mean_sums(layer: Any, inputs: Iterable[Any]) -> np.ndarray:
    """Mean over samples and places of what a layer gives before its activation."""
    total, count = np.zeros((), np.float64), 0
    with without_activation(layer):
        for tensor in inputs:
            sums = keras.ops.convert_to_numpy(layer(tensor)).astype(np.float64)
            sums = sums.reshape(-1, sums.shape[-1])
            total, count = total + sums.sum(0), count + len(sums)
    return total / count


def _factor(normalization: keras.layers.BatchNormalization) -> np.ndarray:
    """What a BatchNormalization multiplies each channel by."""
    factor = 1.0 / np.sqrt(keras.ops.convert_to_numpy(normalization.moving_variance) + normalization.epsilon)
    return factor * keras.ops.convert_to_numpy(normalization.gamma) if normalization.scale else factor
