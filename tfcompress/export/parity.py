"""Does the file compute what its Keras model computes? Both are run on the same samples and compared.

The file runs twice, with the default delegate (XNNPACK on a CPU) and without any, since the two use different kernels.

Invariant: an agreement is measured, or the result says in words that it was skipped. Left out: accuracy on labels; see
`tfcompress.measure`.

The gate, by the kind of export:
- "float32": same arithmetic in another order. An SNR of 60 dB leaves room for approximated activations, and a wrong
  kernel or lost layer gives less than 30.
- "qat": the Keras model rounds where the file rounds, so that outputs are equal or one step apart but for what later
  layers make of rounding ties, biases and pooling. How much that is depends on the network, and the runtime shows it:
  its own two kernels differ in the same way. So 0.95 within one step, or at most 0.1 less than the kernels agree among
  themselves (ResNet-8 without training: 0.60 against Keras, 0.64 between kernels, 29 dB, top class equal on 0.98). The
  SNR of 15 dB holds in any case; ranges that the converter did not take over give less.
- "ptq": the file is an approximation. Min/max calibration gives about 35 dB, a poor moving average 18 dB; below 10 dB
  (noise a third of the signal), or where every fifth decision changes, the file is broken rather than coarse. Outputs
  beyond the file's range mean that the calibration data was not like the samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfcompress.errors import ExportError, ModelError
from tfcompress.export import flatbuffer
from tfcompress.export.endpoint import Endpoint
from tfcompress.measure.tflite_runner import TFLiteRunner

DELEGATES = ("default", "none")
# How far Keras may stay behind the agreement of the runtime's own kernels, where that is low.
KERNEL_MARGIN = 0.1
# What stands for "no difference at all", since JSON has no infinity.
MAX_SNR_DB = 200.0


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
    "qat": Gate(snr_db=15.0, within_1=0.95, top1=0.95),
    "ptq": Gate(snr_db=10.0, top1=0.8, saturation=0.05),
}
REMEDIES: dict[str, str] = {
    "float32": "an operation behaves differently in the file: report the layer, or replace it",
    "qat": "check that every kernel, input and output has its fake-quant layer, and train or calibrate their ranges",
    "ptq": "calibrate with more, or more typical, samples, or train with `quantize_aware` first",
}


@dataclasses.dataclass(frozen=True)
class Grid:
    """The values an int8 output can take: `scale * (q - zero_point)` for q in [-128, 127]."""

    scale: float
    zero_point: int
    low: int = -128
    high: int = 127


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How one output of the file, under one delegate, agrees with Keras (or, as a yardstick, with another delegate).

    Args:
        delegate: "default" or "none"; "default against none" where the file is compared with itself.
        output: Name of the output.
        max_difference: Largest absolute difference, in units of the output.
        snr_db: Power of the Keras output over power of the difference, in dB, at most 200.
        equal: Share of values equal once the Keras output is rounded to the file's grid; None for float files.
        within_1: Share of values at most one step apart.
        within_2: Share of values at most two steps apart.
        saturation: Share of Keras values more than one step beyond the file's range.
        top1: Share of samples with the same largest class; None for outputs that are no `(batch, classes)`.
        top1_or_tied: The same, where a tie in the file counts as agreement: an int8 grid ties what float separates.
    """

    delegate: str
    output: str
    max_difference: float
    snr_db: float
    equal: float | None = None
    within_1: float | None = None
    within_2: float | None = None
    saturation: float | None = None
    top1: float | None = None
    top1_or_tied: float | None = None


@dataclasses.dataclass(frozen=True)
class Parity:
    """The comparison of a file with its Keras model.

    Args:
        kind: "float32", "qat" or "ptq", which picks the gate.
        samples: Number of samples compared; 0 if skipped.
        inputs: Where the samples came from, in words, or that and why nothing was compared.
        agreements: One for each delegate and output.
        kernels: How the file agrees with itself under the two delegates, one for each output.
        findings: Why the file does not pass, each with its remedy.
    """

    kind: str
    samples: int
    inputs: str
    agreements: tuple[Agreement, ...] = ()
    kernels: tuple[Agreement, ...] = ()
    findings: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether there is no finding."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can hold, with the gate it was judged by."""
        return {**dataclasses.asdict(self), "passed": self.passed, "gate": dataclasses.asdict(GATES[self.kind])}

    def raise_if_failed(self, path: str = "The file") -> None:
        """Raises ExportError with all findings as causes, if there are any."""
        if not self.passed:
            raise ExportError(f"{path} does not agree with its Keras model.", self.findings)


def compare_with_keras(
    content: bytes, endpoint: Endpoint, inputs: Mapping[str, np.ndarray], *, kind: str, described: str, real: bool
) -> Parity:
    """Runs file and model on the same samples and judges how they agree.

    Args:
        content: The bytes of the `.tflite` file.
        endpoint: The Keras model it was made from.
        inputs: Arrays `(samples, ...)` by input name.
        kind: "float32", "qat" or "ptq".
        described: Where the samples came from, in words.
        real: Whether they are real data, so that the top class means something.

    Returns:
        The comparison. One that does not pass is no error here; see `Parity.raise_if_failed`.
    """
    expected = endpoint.predict(inputs)
    grids = output_grids(content)
    actual = {delegate: run_file(content, inputs, delegate) for delegate in DELEGATES}
    kernels = tuple(
        agree(values, actual["default"][name], grids.get(name), delegate="default against none", output=name)
        for name, values in actual["none"].items()
    )
    agreements = tuple(
        agree(values, actual[delegate][name], grids.get(name), delegate=delegate, output=name)
        for delegate in DELEGATES
        for name, values in expected.items()
    )
    yardsticks = {kernel.output: kernel.within_1 for kernel in kernels}
    findings = tuple(
        finding
        for agreement in agreements
        for finding in _judge(agreement, kind, real=real, kernels_within_1=yardsticks[agreement.output])
    )
    return Parity(kind, len(next(iter(inputs.values()))), described, agreements, kernels, findings)


def agree(expected: np.ndarray, actual: np.ndarray, grid: Grid | None, *, delegate: str, output: str) -> Agreement:
    """Measures how `actual` agrees with `expected`, both `(samples, ...)` in units of the output."""
    expected, actual = expected.astype("float64"), actual.astype("float64")
    shares: dict[str, np.ndarray] = {}
    if grid is not None:
        unbounded = np.round(expected / grid.scale) + grid.zero_point
        steps = np.abs(np.clip(unbounded, grid.low, grid.high) - np.round(actual / grid.scale) - grid.zero_point)
        shares |= {"equal": steps == 0, "within_1": steps <= 1, "within_2": steps <= 2}
        shares["saturation"] = (unbounded < grid.low - 1) | (unbounded > grid.high + 1)
    if expected.ndim == 2 and expected.shape[1] > 1:
        top = expected.argmax(axis=1)
        shares["top1"] = actual.argmax(axis=1) == top
        shares["top1_or_tied"] = np.take_along_axis(actual, top[:, None], 1)[:, 0] == actual.max(axis=1)
    return Agreement(
        delegate,
        output,
        max_difference=float(np.max(np.abs(expected - actual))),
        snr_db=snr_db(expected, actual),
        **{name: float(np.mean(share)) for name, share in shares.items()},
    )


def snr_db(expected: np.ndarray, actual: np.ndarray) -> float:
    """Power of `expected` over the power of the difference, in dB; `MAX_SNR_DB` where there is none."""
    signal, noise = float(np.sum(expected**2)), float(np.sum((expected - actual) ** 2))
    if not np.isfinite(noise):
        return -MAX_SNR_DB
    if noise == 0:
        return MAX_SNR_DB
    if signal == 0:
        return -MAX_SNR_DB
    return float(np.clip(10 * np.log10(signal / noise), -MAX_SNR_DB, MAX_SNR_DB))


def run_file(content: bytes, inputs: Mapping[str, np.ndarray], delegate: str) -> dict[str, np.ndarray]:
    """Float outputs `(samples, ...)` of a file by name, from inputs `(samples, ...)` by name.

    Raises:
        ExportError: If LiteRT cannot load or run the file.
    """
    model = flatbuffer.parse(content)
    arrays = [inputs[name] for name in flatbuffer.input_names(model).values()]
    try:
        outputs = TFLiteRunner(content, delegate=delegate).predict(arrays)
    except ModelError as error:
        remedy = "remedy: see whether mode='float32' runs; if so, an operation has no int8 kernel for its shapes"
        raise ExportError(f"The file does not run with delegate '{delegate}'.", [str(error), remedy]) from error
    names = list(flatbuffer.output_names(model).values())
    return dict(zip(names, [outputs] if len(names) == 1 else outputs, strict=True))


def output_grids(content: bytes) -> dict[str, Grid]:
    """The grid of each int8 output by name, also of float32 outputs that a DEQUANTIZE makes from int8."""
    model = flatbuffer.parse(content)
    graph = model.subgraphs[0]
    sources: dict[int, int] = {}
    for operator in graph.operators or ():
        if flatbuffer.op_name(model.operatorCodes[operator.opcodeIndex]) == "DEQUANTIZE":
            sources[int(operator.outputs[0])] = int(operator.inputs[0])
    grids = {}
    for index, name in flatbuffer.output_names(model).items():
        tensor = graph.tensors[sources.get(index, index)]
        if flatbuffer.type_name(tensor.type) == "int8" and tensor.quantization is not None:
            grids[name] = Grid(float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0]))
    return grids


def random_inputs(content: bytes, endpoint: Endpoint, samples: int) -> tuple[dict[str, np.ndarray], str]:
    """Uniform random inputs where there are no real ones, and where their range comes from, in words.

    The range is the one that the file's input quantization covers; a float file knows none and gets [0, 1].
    """
    generator = np.random.default_rng(0)
    ranges = flatbuffer.input_ranges(flatbuffer.parse(content))
    arrays, words = {}, []
    for spec in endpoint.inputs:
        low, high = ranges.get(spec.name, (0.0, 1.0))
        arrays[spec.name] = generator.uniform(low, high, (samples, *spec.shape)).astype(spec.dtype)
        words.append(f"'{spec.name}' in [{low:g}, {high:g}]")
    origin = "of the input quantization" if ranges else "assumed"
    return arrays, f"uniform random, range {origin}: {', '.join(words)}"


def _judge(agreement: Agreement, kind: str, *, real: bool, kernels_within_1: float | None) -> Iterator[str]:
    """One finding for each measure that misses the gate of its kind."""
    gate = GATES[kind]
    where = f"output '{agreement.output}' with delegate '{agreement.delegate}'"
    misses = []
    if gate.snr_db is not None and agreement.snr_db < gate.snr_db:
        misses.append(f"SNR {agreement.snr_db:.1f} dB, at least {gate.snr_db:g} needed")
    if gate.within_1 is not None and agreement.within_1 is not None:
        natural = 1.0 if kernels_within_1 is None else kernels_within_1
        least = min(gate.within_1, natural - KERNEL_MARGIN)
        if agreement.within_1 < least:
            misses.append(f"{agreement.within_1:.1%} of values within one step, at least {least:.1%} needed")
    top1 = agreement.top1_or_tied
    if real and gate.top1 is not None and top1 is not None and top1 < gate.top1:
        misses.append(f"same top class on {top1:.1%} of samples, at least {gate.top1:.0%} needed")
    most = gate.saturation
    if most is not None and agreement.saturation is not None and agreement.saturation > most:
        misses.append(f"{agreement.saturation:.1%} of values beyond the file's range, at most {most:.0%} allowed")
    for miss in misses:
        yield f"{where}: {miss}; remedy: {REMEDIES[kind]}"
