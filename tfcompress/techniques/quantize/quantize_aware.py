"""`quantize_aware`: a copy of a Keras model that trains with the rounding its integer file will have.

Invariant: the input model is unchanged; what comes out is a functional Keras model that compiles, trains, saves and
reloads like any other. Left out: training it, which is the caller's `fit` or the `Quantize` stage.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.data import Dataset
from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.quantize.calibrate import calibrate
from tfcompress.techniques.quantize.rewrite import QuantizationSpec, insert_fake_quantization

RANGES = ("learned", "moving_average")
CALIBRATION_BATCH = 100


def quantize_aware(
    model: keras.Model,
    calibration: Any,
    *,
    weight_bits: int = 8,
    ranges: str = "learned",
    momentum: float = 0.99,
    calibration_samples: int = 1000,
) -> keras.Model:
    """Inserts fake quantization into a copy of `model` and sets its ranges from data.

    Args:
        model: A functional or Sequential Keras model. It is not changed.
        calibration: What the activation ranges are read from: a `Dataset` (its train split), a `tf.data.Dataset` of
            batches `x` or `(x, y)`, or an array of shape `(samples, ...)`.
        weight_bits: Bits of the kernels: 8, or 4. Convolutions have a scale for each output channel.
        ranges: How activation ranges go on from the calibrated ones while training: `"learned"` by gradient, or
            `"moving_average"`. `FreezeRanges` stops both.
        momentum: Share of the old range that a moving average keeps at each step, in [0, 1).
        calibration_samples: How many samples are looked at, at least 1.

    Returns:
        A new Keras model with the same inputs, outputs, layer names and kernel shapes.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        ModelError: If the model has no graph, or a layer that cannot be computed in integers.
        DataError: If the calibration data is empty or not finite.

    Example:
        >>> inputs = keras.Input((8, 8, 1))
        >>> model = keras.Model(inputs, keras.layers.Conv2D(4, 3, activation="relu", name="conv")(inputs))
        >>> aware = quantize_aware(model, np.zeros((10, 8, 8, 1), "float32"))
        >>> type(aware.get_layer("conv")).__name__
        'QuantizedConv2D'

    Reference:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        2018, https://arxiv.org/abs/1712.05877; learned ranges: Jain et al., "Trained Quantization Thresholds", 2019,
        https://arxiv.org/abs/1903.08066
    """
    check_arguments("quantize_aware", weight_bits, ranges, momentum, calibration_samples)
    spec = QuantizationSpec(weight_bits=weight_bits, ranges=ranges, momentum=momentum)
    aware = insert_fake_quantization(model, spec)
    calibrate(aware, calibration_batches(calibration, calibration_samples))
    return aware


def check_arguments(owner: str, weight_bits: int, ranges: str, momentum: float, calibration_samples: int) -> None:
    """Raises an `InvalidArgumentError` for the first argument of `owner` that is out of its range."""
    if weight_bits not in (4, 8):
        raise InvalidArgumentError(f"{owner}.weight_bits", "4 or 8", weight_bits)
    if ranges not in RANGES:
        raise InvalidArgumentError(f"{owner}.ranges", f"one of {RANGES}", ranges)
    if not 0 <= momentum < 1:
        raise InvalidArgumentError(f"{owner}.momentum", "a number in [0, 1)", momentum)
    if calibration_samples < 1:
        raise InvalidArgumentError(f"{owner}.calibration_samples", "at least 1", calibration_samples)


def calibration_batches(calibration: Any, samples: int) -> Iterable[Any]:
    """Input batches with `samples` samples in all, from whatever holds calibration data."""
    if isinstance(calibration, Dataset):
        return calibration.batches("train", CALIBRATION_BATCH, limit=samples)
    if isinstance(calibration, tf.data.Dataset):
        unbatched = calibration.unbatch().take(samples)
        return unbatched.batch(CALIBRATION_BATCH)
    if isinstance(calibration, np.ndarray):
        starts = range(0, min(samples, len(calibration)), CALIBRATION_BATCH)
        return [calibration[start : min(start + CALIBRATION_BATCH, samples)] for start in starts]
    raise InvalidArgumentError(
        "calibration", "a tfcompress Dataset, a tf.data.Dataset of batches, or a NumPy array", type(calibration)
    )
