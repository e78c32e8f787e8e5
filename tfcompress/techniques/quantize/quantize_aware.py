"""`quantize_aware`: a copy of a Keras model that trains with the rounding its integer file will have.

Invariant: the input model is unchanged; what comes out is a functional Keras model that compiles, trains, saves and
reloads like any other. Left out: training it, which is the caller's `fit` or the `Quantize` stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.data import Dataset
from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.quantize.activation_bits import check_activation_bits
from tfcompress.techniques.quantize.calibrate import calibrate
from tfcompress.techniques.quantize.ranges import PERCENTILE, RangeMethod
from tfcompress.techniques.quantize.rewrite import QuantizationSpec, insert_fake_quantization

RANGES = ("learned", "moving_average")
CALIBRATION_BATCH = 100


def quantize_aware(
    model: keras.Model,
    calibration: Any,
    *,
    weight_bits: int | Mapping[str, int] = 8,
    activation_bits: int | Mapping[str, int] = 8,
    allow_float: Sequence[str] = (),
    ranges: str = "learned",
    momentum: float = 0.99,
    calibration_samples: int = 1000,
    calibration_method: str = "min_max",
    percentile: float = PERCENTILE,
) -> keras.Model:
    """Inserts fake quantization into a copy of `model` and sets its ranges from data.

    Args:
        model: A functional or Sequential Keras model. It is not changed.
        calibration: What the activation ranges are read from: a `Dataset` (its train split), a `tf.data.Dataset` of
            batches `x` or `(x, y)`, or an array of shape `(samples, ...)`.
        weight_bits: Bits of the kernels: 8 or 4, for all layers, or by patterns of layer names such as
            `{"head_*": 8, "*": 4}`, of which the first that fits counts (8 where none does). Convolutions have a scale
            for each output channel.
        activation_bits: Bits of the numbers between layers: 8 or 16, for all layers, or by patterns of their names such
            as `{"head_*": 16}`, of which the first that fits counts (8 where none does). Names of inputs count too.
            With 16 bits anywhere kernels have 8, nothing stays in float, and the export is of mode "int16x8".
        allow_float: Patterns of names of layers that stay in float, with conversions around them. An export says which
            operations these became, and refuses any other in float.
        ranges: How activation ranges go on from the calibrated ones while training: `"learned"` by gradient, or
            `"moving_average"`. `FreezeRanges` stops both.
        momentum: Share of the old range that a moving average keeps at each step, in [0, 1).
        calibration_samples: How many samples are looked at, at least 1.
        calibration_method: How ranges are chosen from what is seen there: `"min_max"`, `"percentile"` (all but the
            rarest values), or `"mse"` (least squared error of rounding and clipping).
        percentile: For `"percentile"`: the share of values, in percent, in (50, 100], that each end leaves inside.

    Returns:
        A new Keras model with the same inputs, outputs, layer names and kernel shapes.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        ModelError: If the model has no graph, or a layer that cannot be computed in integers and is not in
            `allow_float`.
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
    check_activation_bits("quantize_aware", activation_bits, weight_bits, allow_float)
    method = RangeMethod(name=calibration_method, percentile=percentile)
    spec = QuantizationSpec(
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        ranges=ranges,
        momentum=momentum,
        allow_float=tuple(allow_float),
    )
    aware = insert_fake_quantization(model, spec)
    calibrate(aware, calibration_batches(calibration, calibration_samples), method)
    return aware


def check_arguments(
    owner: str, weight_bits: int | Mapping[str, int], ranges: str, momentum: float, calibration_samples: int
) -> None:
    """Raises an `InvalidArgumentError` for the first argument of `owner` that is out of its range."""
    widths = list(weight_bits.values()) if isinstance(weight_bits, Mapping) else [weight_bits]
    if not widths or any(bits not in (4, 8) for bits in widths):
        raise InvalidArgumentError(f"{owner}.weight_bits", "4 or 8, or patterns of names with 4 or 8 each", weight_bits)
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
