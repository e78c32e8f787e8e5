"""Does the file compute what its Keras model computes? Both are run on the same samples and compared.

The file runs with each kernel set of the runtime: the default delegate (XNNPACK on a CPU), the optimized kernels
without a delegate, and the reference kernels that define what is right. These are slow, so they get fewer samples of a
large network; and they lack some operations, which is no failure of the file: phones and microcontrollers run others.

Invariant: an agreement is measured, or the result says in words that it was skipped. Left out: accuracy on labels; see
`tfcompress.measure`. What the gates ask for is in `modes.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.errors import ExportError, ModelError
from tfcompress.export import flatbuffer
from tfcompress.export.audit import KERNEL_INPUT
from tfcompress.export.endpoint import Endpoint
from tfcompress.export.modes import GATES as GATES
from tfcompress.export.modes import REMEDIES
from tfcompress.measure.tflite_runner import TFLiteRunner

# Whose failure is one of the file; reference kernels are in `REFERENCE`.
DELEGATES = ("default", "none")
REFERENCE = "reference"
# The reference kernels do about 0.7 billion multiply-adds a second, and get about 6 seconds.
REFERENCE_MACS = 4e9
REFERENCE_SAMPLES = 64
# With fewer samples a share of equal top classes says little.
_LEAST_FOR_TOP1 = 20
# How far Keras may stay behind the agreement of the runtime's own kernels, where that is low.
# The more they differ among themselves, the more chance there is in each of them.
KERNEL_MARGIN = 0.1
LARGEST_KERNEL_MARGIN = 0.2
KERNEL_MARGIN_DB = 2.0
# Below this SNR there is as much noise as a third of the signal, whatever the kernels do.
LEAST_SNR_DB = 10.0
# What stands for "no difference at all", since JSON has no infinity.
MAX_SNR_DB = 200.0


@dataclasses.dataclass(frozen=True)
class Grid:
    """The values an int8 or int16 output can take: `scale * (q - zero_point)` for q in [low, high]."""

    scale: float
    zero_point: int
    low: int = -128
    high: int = 127


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How one output of the file, under one delegate, agrees with Keras (or, as a yardstick, with another delegate).

    Args:
        delegate: "default", "none" or "reference"; "default against none" where the file is compared with itself.
        output: Name of the output.
        max_difference: Largest absolute difference, in units of the output.
        snr_db: Power of the Keras output over power of the difference, in dB, at most 200.
        equal: Share of values equal once the Keras output is rounded to the file's grid; None for float files.
        within_1: Share of values at most one step apart.
        within_2: Share of values at most two steps apart.
        saturation: Share of Keras values more than one step beyond the file's range.
        top1: Share of samples with the same largest class; None for outputs that are no `(batch, classes)`.
        top1_or_tied: The same, where a tie in the file counts as agreement: an int8 grid ties what float separates.
        samples: Number of samples that were compared.
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
    samples: int = 0


@dataclasses.dataclass(frozen=True)
class Parity:
    """The comparison of a file with its Keras model.

    Args:
        kind: A key of `GATES`, which picks the gate.
        samples: Number of samples compared; 0 if skipped.
        inputs: Where the samples came from, in words, or that and why nothing was compared.
        agreements: One for each kernel set and output.
        kernels: How the file agrees with itself under the default delegate and another kernel set, one for each output.
        findings: Why the file does not pass, each with its remedy.
        notes: Which kernel set could not run the file, and why.
    """

    kind: str
    samples: int
    inputs: str
    agreements: tuple[Agreement, ...] = ()
    kernels: tuple[Agreement, ...] = ()
    findings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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
    content: bytes,
    endpoint: Endpoint,
    inputs: Mapping[str, np.ndarray],
    *,
    kind: str,
    described: str,
    real: bool,
    missing: Mapping[str, str] | None = None,
) -> Parity:
    """Runs file and model on the same samples and judges how they agree.

    Args:
        content: The bytes of the `.tflite` file.
        endpoint: The Keras model it was made from.
        inputs: Arrays `(samples, ...)` by input name.
        kind: A key of `GATES`.
        described: Where the samples came from, in words.
        real: Whether they are real data, so that the top class means something.
        missing: Kernel sets that cannot run the file, with the reason, which goes into the notes.

    Returns:
        The comparison. One that does not pass is no error here; see `Parity.raise_if_failed`.
    """
    grids = output_grids(content)
    expected = endpoint.predict(inputs)
    count = len(next(iter(inputs.values())))
    actual = {delegate: run_file(content, inputs, delegate) for delegate in DELEGATES}
    if not missing:
        few = reference_samples(content, count)
        actual[REFERENCE] = run_file(content, {name: array[:few] for name, array in inputs.items()}, REFERENCE)
    kernels = tuple(
        _agree_on_common(values, actual["default"][name], grids.get(name), f"default against {delegate}", name)
        for delegate in list(actual)[1:]
        for name, values in actual[delegate].items()
    )
    agreements = tuple(
        _agree_on_common(values, actual[delegate][name], grids.get(name), delegate, name)
        for delegate in actual
        for name, values in expected.items()
    )
    # The default delegate itself is compared with what it has in common with the kernels without one.
    yardsticks = {(kernel.delegate.removeprefix("default against "), kernel.output): kernel for kernel in kernels}
    notes = [f"not run with the {kernel_set} kernels: {reason}" for kernel_set, reason in (missing or {}).items()]
    findings: list[str] = []
    for agreement in agreements:
        other = agreement.delegate if agreement.delegate != "default" else "none"
        enough = agreement.samples >= min(count, _LEAST_FOR_TOP1)
        findings += _judge(agreement, kind, real=real and enough, kernels=yardsticks[other, agreement.output])
    return Parity(kind, count, described, agreements, kernels, tuple(findings), tuple(notes))


def reference_samples(content: bytes, count: int) -> int:
    """How many of `count` samples the reference kernels get: fewer of a large network, 2 at least."""
    affordable = int(REFERENCE_MACS / max(1, _kernel_macs(flatbuffer.parse(content))))
    return min(count, REFERENCE_SAMPLES, max(2, affordable))


def _kernel_macs(model: schema.ModelT) -> int:
    """Multiply-adds of the operations with a kernel, for one sample."""
    total = 0
    for graph in model.subgraphs:
        for operator in graph.operators or ():
            position = KERNEL_INPUT.get(flatbuffer.op_name(model.operatorCodes[operator.opcodeIndex]))
            if position is None:
                continue
            kernel, output = graph.tensors[operator.inputs[position]], graph.tensors[operator.outputs[0]]
            # Whatever the layout of the kernel, each output value takes the kernel's share of one output channel.
            total += math.prod(map(int, output.shape)) * math.prod(map(int, kernel.shape)) // int(output.shape[-1])
    return total


def _agree_on_common(
    expected: np.ndarray, actual: np.ndarray, grid: Grid | None, delegate: str, output: str
) -> Agreement:
    count = min(len(expected), len(actual))
    return agree(expected[:count], actual[:count], grid, delegate=delegate, output=output)


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
        samples=len(expected),
        **{name: float(np.mean(share)) for name, share in shares.items()},
    )


def snr_db(expected: np.ndarray, actual: np.ndarray) -> float:
    """Power of `expected` over the power of the difference, in dB; `MAX_SNR_DB` where there is none."""
    return decibels(float(np.sum(expected**2)), float(np.sum((expected - actual) ** 2)))


def decibels(signal: float, noise: float) -> float:
    """The ratio of two powers in dB, between `-MAX_SNR_DB` and `MAX_SNR_DB`, which is without noise."""
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
        remedy = "remedy: see whether mode='float32' runs; if so, an operation has no such kernel for its shapes"
        raise ExportError(f"The file does not run with delegate '{delegate}'.", [str(error), remedy]) from error
    names = [name for _, name in flatbuffer.outputs(model)]
    return dict(zip(names, [outputs] if len(names) == 1 else outputs, strict=True))


def output_grids(content: bytes) -> dict[str, Grid]:
    """The grid of each integer output by name, also of float32 outputs that a DEQUANTIZE makes from integers."""
    model = flatbuffer.parse(content)
    graph = model.subgraphs[0]
    sources: dict[int, int] = {}
    for operator in graph.operators or ():
        if flatbuffer.op_name(model.operatorCodes[operator.opcodeIndex]) == "DEQUANTIZE":
            sources[int(operator.outputs[0])] = int(operator.inputs[0])
    grids = {}
    for index, name in flatbuffer.outputs(model):
        tensor = graph.tensors[sources.get(index, index)]
        dtype = flatbuffer.type_name(tensor.type)
        if dtype in ("int8", "int16") and tensor.quantization is not None and tensor.quantization.scale is not None:
            limits = np.iinfo(dtype)
            zero_point = int(tensor.quantization.zeroPoint[0])
            grids[name] = Grid(float(tensor.quantization.scale[0]), zero_point, int(limits.min), int(limits.max))
    return grids


def random_inputs(content: bytes, endpoint: Endpoint, samples: int) -> tuple[dict[str, np.ndarray], str]:
    """Uniform random inputs where there are no real ones, and where their range comes from, in words.

    The range is the one that the file's input quantization covers; a float file knows none and gets [0, 1]. Indices go
    up to the size of the table that they look up, other whole numbers are 0 and 1.
    """
    generator = np.random.default_rng(0)
    model = flatbuffer.parse(content)
    ranges, limits = flatbuffer.input_ranges(model), flatbuffer.index_limits(model)
    arrays, words = {}, []
    for spec in endpoint.inputs:
        if np.dtype(spec.dtype).kind in "iu" and spec.name not in ranges:
            limit = limits.get(spec.name, 2)
            arrays[spec.name] = generator.integers(0, limit, (samples, *spec.shape)).astype(spec.dtype)
            words.append(f"'{spec.name}' whole numbers below {limit}")
            continue
        low, high = ranges.get(spec.name, (0.0, 1.0))
        arrays[spec.name] = generator.uniform(low, high, (samples, *spec.shape)).astype(spec.dtype)
        words.append(f"'{spec.name}' in [{low:g}, {high:g}]")
    origin = "of the input quantization" if ranges else "assumed"
    return arrays, f"uniform random, range {origin}: {', '.join(words)}"


def _judge(agreement: Agreement, kind: str, *, real: bool, kernels: Agreement) -> Iterator[str]:
    """One finding for each measure that misses the gate of its kind."""
    gate = GATES[kind]
    where = f"output '{agreement.output}' with delegate '{agreement.delegate}'"
    misses = []
    if gate.snr_db is not None:
        # What rounds alike on paper may differ as much as the runtime's kernels differ, and no more.
        natural_db = max(LEAST_SNR_DB, kernels.snr_db - KERNEL_MARGIN_DB) if kind.startswith("qat") else gate.snr_db
        least_db = min(gate.snr_db, natural_db)
        if agreement.snr_db < least_db:
            misses.append(f"SNR {agreement.snr_db:.1f} dB, at least {least_db:.3g} needed")
    if gate.within_1 is not None and agreement.within_1 is not None:
        natural = 1.0 if kernels.within_1 is None else kernels.within_1
        margin = min(LARGEST_KERNEL_MARGIN, KERNEL_MARGIN + 1.0 - natural)
        least = min(gate.within_1, natural - margin)
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
