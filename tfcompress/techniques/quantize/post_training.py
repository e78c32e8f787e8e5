"""Post-training quantization without training: ranges from data, corrections from data, the same integer file after it.

`quantize_post_training` puts the parts of this folder together: equalization, calibrated ranges, learned rounding, bias
correction, and biases on the grid of the file.

Invariant: no label is looked at and no epoch is trained; the input model is unchanged; what comes out is a model as
`quantize_aware` gives it, with the ranges and integers of the file that an export writes. Left out: the plain
converter's own quantization, which is an export of a float model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.base import Context, Technique
from tfcompress.techniques.quantize.bias_correction import correct_biases
from tfcompress.techniques.quantize.biases import round_biases
from tfcompress.techniques.quantize.calibrate import calibrate
from tfcompress.techniques.quantize.equalize import equalize as equalize_layers
from tfcompress.techniques.quantize.learned_rounding import ITERATIONS, learn_rounding
from tfcompress.techniques.quantize.quantize_aware import calibration_batches, check_arguments, quantize_aware
from tfcompress.techniques.quantize.ranges import PERCENTILE, RangeMethod
from tfcompress.techniques.quantize.rewrite import QuantizationSpec, quantizable_trace, refuse_unsupported
from tfcompress.training.copying import copy_model

EQUALIZATIONS = ("none", "exact", "replace_relu6")


def quantize_post_training(
    model: keras.Model,
    calibration: Any,
    *,
    weight_bits: int | Mapping[str, int] = 8,
    allow_float: Sequence[str] = (),
    method: str = "mse",
    percentile: float = PERCENTILE,
    equalize: str = "none",
    bias_correction: bool = True,
    learned_rounding: bool = False,
    rounding_steps: int = ITERATIONS,
    calibration_samples: int = 500,
    seed: int = 0,
    progress: bool = False,
) -> keras.Model:
    """Quantizes a copy of `model` after training, with data but without labels and without epochs.

    Args:
        model: A functional or Sequential Keras model. It is not changed.
        calibration: Typical inputs: a `Dataset` (its train split), a `tf.data.Dataset` of batches `x` or `(x, y)`, or
            an array of shape `(samples, ...)`.
        weight_bits: Bits of the kernels: 8, or 4, which needs `learned_rounding`; for all or by patterns of names.
        allow_float: Patterns of names of layers that stay in float; see `quantize_aware`.
        method: How activation ranges are chosen: `"min_max"`, `"percentile"` or `"mse"`; see `quantize_aware`.
        percentile: For `"percentile"`, in percent, in (50, 100].
        equalize: `"none"`; `"exact"` makes the channels of neighbouring layers alike, without changing the function;
            `"replace_relu6"` does so after ReLU6 between them has become ReLU.
        bias_correction: Whether biases take back the mean error of their channels.
        learned_rounding: Whether to learn which weights are rounded up and which down (AdaRound). Takes minutes.
        rounding_steps: Steps for each layer of that, at least 1.
        calibration_samples: How many samples are looked at, at least 1; corrections keep them in memory.
        seed: Seed of the learned rounding.
        progress: Whether to show a progress bar while rounding is learned.

    Returns:
        A new Keras model as `quantize_aware` gives it, for `export_tflite`; it can be trained further.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        ModelError: If the model has no graph, a layer that cannot be computed in integers, or, with equalization, no
            layers to equalize or a ReLU6 between them.
        DataError: If the calibration data is empty or not finite.

    Example:
        >>> import numpy as np
        >>> inputs = keras.Input((8, 8, 1))
        >>> model = keras.Model(inputs, keras.layers.Conv2D(4, 3, activation="relu", name="conv")(inputs))
        >>> quantized = quantize_post_training(model, np.ones((10, 8, 8, 1), "float32"))
        >>> type(quantized.get_layer("conv")).__name__
        'QuantizedConv2D'

    Reference:
        Nagel et al., "A White Paper on Neural Network Quantization", 2021, section 3, https://arxiv.org/abs/2106.08295
    """
    owner = "quantize_post_training"
    _check(owner, weight_bits, method, percentile, equalize, rounding_steps, calibration_samples)
    if equalize != "none":
        model = equalize_layers(model, relu6="refuse" if equalize == "exact" else "replace")
    quantized = quantize_aware(
        model,
        calibration,
        weight_bits=weight_bits,
        allow_float=allow_float,
        calibration_samples=calibration_samples,
        calibration_method=method,
        percentile=percentile,
    )
    batches = list(calibration_batches(calibration, calibration_samples))
    floats = copy_model(quantized)
    if learned_rounding:
        learn_rounding(quantized, batches, iterations=rounding_steps, seed=seed, progress=progress, floats=floats)
        # The ranges were those of nearest integers.
        calibrate(quantized, batches, RangeMethod(name=method, percentile=percentile))
    if bias_correction:
        correct_biases(quantized, batches, floats=floats)
    round_biases(quantized)
    return quantized


def _check(
    owner: str,
    weight_bits: int | Mapping[str, int],
    method: str,
    percentile: float,
    equalize: str,
    rounding_steps: int,
    calibration_samples: int,
) -> None:
    """Raises an `InvalidArgumentError` for the first argument of `owner` that is out of its range."""
    check_arguments(owner, weight_bits, "learned", 0.0, calibration_samples)
    RangeMethod(name=method, percentile=percentile)
    if equalize not in EQUALIZATIONS:
        raise InvalidArgumentError(f"{owner}.equalize", f"one of {EQUALIZATIONS}", equalize)
    if rounding_steps < 1:
        raise InvalidArgumentError(f"{owner}.rounding_steps", "at least 1", rounding_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizePostTraining(Technique):
    """The recipe stage `quantize_post_training`: quantization from data, without training.

    Args:
        weight_bits: Bits of the kernels: 8 or 4, or patterns of layer names with 8 or 4 each.
        allow_float: Patterns of names of layers that stay in float.
        method: `"min_max"`, `"percentile"` or `"mse"`.
        percentile: For `"percentile"`, in percent, in (50, 100].
        equalize: `"none"`, `"exact"` or `"replace_relu6"`.
        bias_correction: Whether biases take back the mean error of their channels.
        learned_rounding: Whether to learn which weights are rounded up and which down.
        rounding_steps: Steps for each layer of that, at least 1.
        calibration_samples: Training samples that are looked at, at least 1.
    """

    can_be_taught: ClassVar[bool] = False
    makes_integers: ClassVar[bool] = True
    trains: ClassVar[bool] = False

    weight_bits: int | Mapping[str, int] = 8
    allow_float: tuple[str, ...] = ()
    method: str = "mse"
    percentile: float = PERCENTILE
    equalize: str = "none"
    bias_correction: bool = True
    learned_rounding: bool = False
    rounding_steps: int = ITERATIONS
    calibration_samples: int = 500

    def __post_init__(self):
        _check(
            "quantize_post_training",
            self.weight_bits,
            self.method,
            self.percentile,
            self.equalize,
            self.rounding_steps,
            self.calibration_samples,
        )

    @property
    def keeps_clusters(self) -> bool:
        # Equalization gives each channel a factor of its own.
        return self.equalize == "none"

    def check(self, model: keras.Model, total_steps: int) -> None:
        spec = QuantizationSpec(weight_bits=self.weight_bits, allow_float=self.allow_float)
        refuse_unsupported(quantizable_trace(model, self.allow_float), spec)

    def apply(self, model: keras.Model, context: Context) -> keras.Model:
        return quantize_post_training(model, context.data, **dataclasses.asdict(self), seed=context.seed)
