"""The recipe stage `quantize`: quantization-aware training, ranges frozen for its last part.

Invariant: the model that comes out is the one that was measured while training: exporting it only writes down its
integers. Left out: post-training quantization, which is an export without this stage.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import keras

from tfcompress.errors import InvalidArgumentError
from tfcompress.graph.trace import trace
from tfcompress.techniques.base import Context, Technique
from tfcompress.techniques.quantize.biases import round_biases
from tfcompress.techniques.quantize.freeze import FreezeRanges
from tfcompress.techniques.quantize.quantize_aware import check_arguments, quantize_aware
from tfcompress.techniques.quantize.rewrite import refuse_unsupported


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantize(Technique):
    """Inserts fake quantization and trains with it.

    Args:
        weight_bits: Bits of the kernels: 8 or 4.
        ranges: `"learned"` or `"moving_average"`.
        momentum: Share of the old range that a moving average keeps at each step, in [0, 1).
        calibration_samples: Training samples that the first ranges are read from, at least 1.
        freeze_after: Share of the training before the ranges are frozen, in [0, 1].
        freeze_batch_norm_after: The same for BatchNormalization, its statistics and weights; `None` is `freeze_after`.
    """

    makes_integers: ClassVar[bool] = True

    weight_bits: int = 8
    ranges: str = "learned"
    momentum: float = 0.99
    calibration_samples: int = 1000
    freeze_after: float = 0.5
    freeze_batch_norm_after: float | None = None

    def __post_init__(self):
        check_arguments("quantize", self.weight_bits, self.ranges, self.momentum, self.calibration_samples)
        for name in ("freeze_after", "freeze_batch_norm_after"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InvalidArgumentError(f"quantize.{name}", "a number in [0, 1]", value)

    def check(self, model: keras.Model, total_steps: int) -> None:
        refuse_unsupported(trace(model))

    def apply(self, model: keras.Model, context: Context) -> keras.Model:
        aware = quantize_aware(
            model,
            context.data,
            weight_bits=self.weight_bits,
            ranges=self.ranges,
            momentum=self.momentum,
            calibration_samples=self.calibration_samples,
        )

        def callbacks(replica: keras.Model) -> list[keras.callbacks.Callback]:
            return [FreezeRanges(replica, after=self.freeze_after, batch_norm_after=self.freeze_batch_norm_after)]

        trained = context.train(aware, callbacks=callbacks).model
        round_biases(trained)
        return trained
