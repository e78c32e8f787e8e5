"""The recipe stage `quantize`: quantization-aware training, ranges frozen for its last part.

Invariant: the model that comes out is the one that was measured while training: exporting it only writes down its
integers. Left out: post-training quantization, which is an export without this stage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import keras

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.base import Context, Technique
from tfcompress.techniques.quantize.activation_bits import check_activation_bits
from tfcompress.techniques.quantize.biases import round_biases
from tfcompress.techniques.quantize.freeze import FreezeRanges
from tfcompress.techniques.quantize.quantize_aware import check_arguments, quantize_aware
from tfcompress.techniques.quantize.ranges import PERCENTILE, RangeMethod
from tfcompress.techniques.quantize.rewrite import QuantizationSpec, quantizable_trace, refuse_unsupported


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantize(Technique):
    """Inserts fake quantization and trains with it.

    Args:
        weight_bits: Bits of the kernels: 8 or 4, or patterns of layer names with 8 or 4 each; see `quantize_aware`.
        activation_bits: Bits of the numbers between layers: 8 or 16, or patterns of layer names with 8 or 16 each; with
            16 anywhere, export with mode "int16x8". See `quantize_aware`.
        allow_float: Patterns of names of layers that stay in float.
        ranges: `"learned"` or `"moving_average"`.
        momentum: Share of the old range that a moving average keeps at each step, in [0, 1).
        calibration_samples: Training samples that the first ranges are read from, at least 1.
        calibration_method: `"min_max"`, `"percentile"` or `"mse"`; see `quantize_aware`.
        percentile: For `"percentile"`, in percent, in (50, 100].
        freeze_after: Share of the training before the ranges are frozen, in [0, 1].
        freeze_batch_norm_after: The same for BatchNormalization, its statistics and weights; `None` is `freeze_after`.
    """

    makes_integers: ClassVar[bool] = True

    weight_bits: int | Mapping[str, int] = 8
    activation_bits: int | Mapping[str, int] = 8
    allow_float: tuple[str, ...] = ()
    ranges: str = "learned"
    momentum: float = 0.99
    calibration_samples: int = 1000
    calibration_method: str = "min_max"
    percentile: float = PERCENTILE
    freeze_after: float = 0.5
    freeze_batch_norm_after: float | None = None

    def __post_init__(self):
        check_arguments("quantize", self.weight_bits, self.ranges, self.momentum, self.calibration_samples)
        check_activation_bits("quantize", self.activation_bits, self.weight_bits, self.allow_float)
        RangeMethod(name=self.calibration_method, percentile=self.percentile)
        for name in ("freeze_after", "freeze_batch_norm_after"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InvalidArgumentError(f"quantize.{name}", "a number in [0, 1]", value)

    @property
    def keeps_clusters(self) -> bool:
        # Kernels that share values get one scale.
        return True

    def check(self, model: keras.Model, total_steps: int) -> None:
        spec = QuantizationSpec(
            weight_bits=self.weight_bits, activation_bits=self.activation_bits, allow_float=self.allow_float
        )
        refuse_unsupported(quantizable_trace(model, self.allow_float), spec)

    def apply(self, model: keras.Model, context: Context) -> keras.Model:
        aware = quantize_aware(
            model,
            context.data,
            weight_bits=self.weight_bits,
            activation_bits=self.activation_bits,
            allow_float=self.allow_float,
            ranges=self.ranges,
            momentum=self.momentum,
            calibration_samples=self.calibration_samples,
            calibration_method=self.calibration_method,
            percentile=self.percentile,
        )

        def callbacks(replica: keras.Model) -> list[keras.callbacks.Callback]:
            return [FreezeRanges(replica, after=self.freeze_after, batch_norm_after=self.freeze_batch_norm_after)]

        trained = context.train(aware, callbacks=callbacks).model
        round_biases(trained)
        return trained
