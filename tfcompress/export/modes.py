"""The modes of export: one table of what the converter is told, what the audit demands, and which gate judges.

Invariant: whoever treats modes differently reads it here; a mode is one entry of `MODES`. Left out: what is done with
the numbers; see `worker.py`, `audit.py` and `parity.py`.

The gates, by the kind of export (`Mode.kind`; "qat", or "qat16" with 16 bits, where the model brings its own ranges):
- "float32": same arithmetic in another order. An SNR of 60 dB leaves room for approximated activations, and a wrong
  kernel or lost layer gives less than 30.
- "float16": weights of 11 significant bits, 54 dB for ResNet-8.
- "dynamic": weights of 8 bits, activations rounded as they come, 32 dB for ResNet-8.
- "qat": the Keras model rounds where the file rounds, so that outputs are equal or one step apart but for what later
  layers make of rounding ties, biases and pooling. How much that is depends on the network, and the runtime shows it:
  its own kernels differ in the same way. So 0.95 within one step, or behind the agreement of the kernels among
  themselves by 0.1 and as much as that is below 1, 0.2 at most (ResNet-8 without training: 0.60 against Keras, 0.64
  between kernels, 29 dB, top class equal on 0.98; two unrolled LSTM layers of 8 units over 10 steps of noise: 0.92,
  0.92, 32 dB). The same holds for the SNR: 15 dB, or 2 dB less than the kernels have among themselves, and never below
  10 dB. In a deep network of random weights each rounding tie grows from layer to layer; ranges that the converter did
  not take over give less, while the kernels agree.
- "ptq": the file is an approximation. Min/max calibration gives about 35 dB, a poor moving average 18 dB; below 10 dB
  (noise a third of the signal), or where every fifth decision changes, the file is broken rather than coarse. Outputs
  beyond the file's range mean that the calibration data was not like the samples.
- "qat16": the same rounding in steps 256 times as fine: 70 to 100 dB for networks of a few layers, 55 to 60 where only
  some of them have 16 bits. Some kernels compute less finely than they store (bilinear resizing 41 dB, PReLU 39 dB),
  and steps of the output say nothing then. So 30 dB, or 2 dB less than the kernels have among themselves.
- "int16x8": the same with finer activations, 32 dB for ResNet-8, whose weights set that.
- "int4": kernels of 15 values, without training. ResNet-8 keeps 0.79 of its decisions at 6 dB; below 3 dB there is as
  much noise as half the signal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Gate:
    """The least that an export must reach; None where a measure says nothing about its kind.

    Args:
        snr_db: Signal-to-noise ratio in dB.
        within_1: Share of outputs at most one step of the output scale apart, in [0, 1]; less where the runtime's own
            kernels agree less.
        top1: Share of samples whose top class agrees or ties, in [0, 1]; judged on real samples only.
        saturation: Largest share of Keras outputs that lie beyond the file's range.
    """

    snr_db: float | None = None
    within_1: float | None = None
    top1: float | None = None
    saturation: float | None = None


GATES: dict[str, Gate] = {
    "float32": Gate(snr_db=60.0),
    "float16": Gate(snr_db=35.0, top1=0.95),
    "dynamic": Gate(snr_db=15.0, top1=0.9),
    "qat": Gate(snr_db=15.0, within_1=0.95, top1=0.95),
    "qat16": Gate(snr_db=30.0, top1=0.95),
    "ptq": Gate(snr_db=10.0, top1=0.8, saturation=0.05),
    "int16x8": Gate(snr_db=15.0, top1=0.9, saturation=0.05),
    "int4": Gate(snr_db=3.0, top1=0.6, saturation=0.05),
}
_COARSE = "calibrate with more, or more typical, samples, or train with `quantize_aware` first"
REMEDIES: dict[str, str] = {
    "float32": "an operation behaves differently in the file: report the layer, or replace it",
    "float16": "values beyond the range of float16, or a deep network: use mode='float32'",
    "dynamic": "use mode='float16', or calibrate ranges with mode='int8'",
    "qat": "check that every kernel, input and output has its fake-quant layer, and train or calibrate their ranges",
    "qat16": "check that every kernel, input and output has its fake-quant layer, and train or calibrate their ranges",
    "ptq": _COARSE,
    "int16x8": _COARSE,
    "int4": "use mode='int8', or train 4-bit kernels with `quantize_aware(weight_bits=4)`",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mode:
    """One mode of `export_tflite`.

    Args:
        kind: Which gate judges a file of a model without fake quantization.
        io: Types that inputs and outputs may have; the first one unless another is asked for.
        activations: Type of the numbers between operations: "float32", "int8" or "int16". Unless it is "float32", no
            operation may read or write floats, but for the conversion at a float32 border.
        weights: A type that some weights of the file must have, if it has weights.
        needs_calibration: Whether ranges come from data, where the model does not bring them.
        takes_ranges: The most bits between operations of a model with fake quantization that is exported so; None where
            there is none.
        kernel_bits: Bits that the kernels of a converted file are rounded to afterwards, where the converter cannot.
        optimize: Whether the converter quantizes at all.
        supported_ops: Name of the converter's `OpsSet`, with calibration only; None for its default.
        supported_types: Names of types for the converter's `supported_types`.
    """

    kind: str
    io: tuple[str, ...] = ("float32",)
    activations: str = "float32"
    weights: str
    needs_calibration: bool = False
    takes_ranges: int | None = None
    kernel_bits: int | None = None
    optimize: bool = True
    supported_ops: str | None = None
    supported_types: tuple[str, ...] = ()

    @property
    def is_integer(self) -> bool:
        """Whether the file computes with integers throughout."""
        return self.activations != "float32"

    def converter_settings(self, io: str) -> dict[str, Any]:
        """What `worker.py` sets on the converter, in a form that JSON can hold."""
        return {
            "optimize": self.optimize,
            "supported_ops": self.supported_ops,
            "supported_types": list(self.supported_types),
            "io": io if self.is_integer else None,
        }


_INT8 = Mode(
    kind="ptq", io=("int8", "float32"), activations="int8", weights="int8", needs_calibration=True, takes_ranges=8,
    supported_ops="TFLITE_BUILTINS_INT8",
)  # fmt: skip
MODES: Mapping[str, Mode] = {
    "float32": Mode(kind="float32", weights="float32", optimize=False),
    "float16": Mode(kind="float16", weights="float16", supported_types=("float16",)),
    "dynamic": Mode(kind="dynamic", weights="int8"),
    "int8": _INT8,
    "int8_float_io": dataclasses.replace(_INT8, io=("float32",)),
    "int16x8": dataclasses.replace(
        _INT8, kind="int16x8", io=("int16", "float32"), activations="int16", takes_ranges=16,
        supported_ops="EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8",
    ),
    "int4": dataclasses.replace(_INT8, kind="int4", weights="int4", kernel_bits=4),
}  # fmt: skip
IO_TYPES = tuple(dict.fromkeys(io for mode in MODES.values() for io in mode.io))


def file_io(mode: str, io: str | None) -> str:
    """Type of a file's inputs and outputs: what was asked for, else the mode's own; floats in a mode of floats."""
    known = MODES[mode].io
    return known[0] if io is None or not MODES[mode].is_integer else io
