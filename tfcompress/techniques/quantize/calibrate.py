"""Calibration: the ranges that activations have on real data, before any training.

Invariant: ranges are read while kernels are rounded and activations are not, so that no range depends on another; nor
do they depend on the order of the data or its batches. Left out: percentile and error-minimising ranges.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from tfcompress.errors import DataError
from tfcompress.layers import FakeQuantize


def fake_quantize_layers(model: keras.Model) -> list[FakeQuantize]:
    """The activation ranges of a quantization-aware model, in graph order."""
    return [layer for layer in model.layers if isinstance(layer, FakeQuantize)]


def calibrate(model: keras.Model, batches: Iterable[Any]) -> None:
    """Sets each range of `model` to the smallest and largest value seen there.

    Args:
        model: A model from `insert_fake_quantization`; its ranges are changed in place.
        batches: Inputs, or `(inputs, ...)` tuples, of shape `(batch, ...)`.

    Raises:
        DataError: If there is no batch, or a value is NaN or infinite.
    """
    ranges = [layer for layer in fake_quantize_layers(model) if layer.ranges != "fixed"]
    observer = keras.Model(model.inputs, [layer.output for layer in ranges])
    low = np.full(len(ranges), np.inf)
    high = np.full(len(ranges), -np.inf)
    for layer in ranges:
        layer.bypass = True
    try:
        for batch in batches:
            inputs = batch[0] if isinstance(batch, tuple | list) else batch
            # Retracing would be needed to see `bypass` change, so the observer runs eagerly.
            for at, values in enumerate(keras.tree.flatten(observer([inputs], training=False))):
                # Unlike `min`, these keep a NaN.
                low[at] = np.minimum(low[at], np.min(values))
                high[at] = np.maximum(high[at], np.max(values))
    finally:
        for layer in ranges:
            layer.bypass = False
    if np.isinf(low).all():
        raise DataError("`calibration` must hold at least one batch. Received: nothing.")
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        broken = [layer.name for layer, a, b in zip(ranges, low, high, strict=True) if not np.isfinite(a + b)]
        raise DataError(f"`calibration` must give finite activations. Received: NaN or infinity at {broken[:5]}.")
    for layer, smallest, largest in zip(ranges, low, high, strict=True):
        layer.set_range(smallest, largest)
