"""Calibration: the ranges that activations have on real data, before any training.

Invariant: ranges are read while kernels are rounded and activations are not, so that no range depends on another; nor
do they depend on the order of the data or its batches. Left out: how a range is chosen from values (`ranges.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from tfcompress.errors import DataError
from tfcompress.layers import FakeQuantize
from tfcompress.techniques.quantize.ranges import RangeMethod, ValueCounts, choose_range


def fake_quantize_layers(model: keras.Model) -> list[FakeQuantize]:
    """The activation ranges of a quantization-aware model, those inside of its layers too."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, FakeQuantize)]


def calibrate(model: keras.Model, batches: Iterable[Any], method: RangeMethod | None = None) -> None:
    """Sets each range of `model` by the values seen there.

    Args:
        model: A model from `insert_fake_quantization`; its ranges are changed in place.
        batches: Inputs, or `(inputs, ...)` tuples, of shape `(batch, ...)`.
        method: How a range is chosen; by default the smallest and largest value.

    Raises:
        DataError: If there is no batch, or a value is NaN or infinite.
    """
    method = method or RangeMethod()
    ranges = [layer for layer in fake_quantize_layers(model) if layer.ranges != "fixed"]
    seen = [ValueCounts(binned=method.name != "min_max") for _ in ranges]

    def observer(counts: ValueCounts) -> Callable[[Any], None]:
        return lambda values: counts.add(keras.ops.convert_to_numpy(values))

    is_empty = True
    for layer, counts in zip(ranges, seen, strict=True):
        layer.observer = observer(counts)
    try:
        for batch in batches:
            inputs = batch[0] if isinstance(batch, tuple | list) else batch
            # Eagerly, so that the observers see numbers.
            model(inputs, training=False)
            is_empty = False
    finally:
        for layer in ranges:
            layer.observer = None
    if is_empty:
        raise DataError("`calibration` must hold at least one batch. Received: nothing.")
    broken = [
        layer.name
        for layer, counts in zip(ranges, seen, strict=True)
        if not (np.isfinite(counts.low) and np.isfinite(counts.high))
    ]
    if broken:
        raise DataError(f"`calibration` must give finite activations. Received: NaN or infinity at {broken[:5]}.")
    for layer, counts in zip(ranges, seen, strict=True):
        layer.set_range(*choose_range(counts, method, layer.bits))
