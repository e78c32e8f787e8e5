"""The gate: what a file has to pass before it is written. Audited, stripped, run by each kernel set, compared.

The first run is in the process of the converter, so that a crash of the runtime is an error and no more.

Invariant: what comes out of `pass_gate` is the content that was checked, to the byte. Left out: the bounds, which are
in `modes.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np

from tfcompress.data import Dataset
from tfcompress.errors import ExportError
from tfcompress.export import flatbuffer
from tfcompress.export.audit import Audit, audit_tflite
from tfcompress.export.converter import shared_converter
from tfcompress.export.endpoint import Endpoint
from tfcompress.export.float_layers import float_operations, left_in_float
from tfcompress.export.parity import DELEGATES, REFERENCE, Parity, compare_with_keras, random_inputs
from tfcompress.export.samples import collect, spread
from tfcompress.export.slim import slim_bytes
from tfcompress.graph.trace import trace
from tfcompress.measure.tflite_runner import DELEGATES as RESOLVERS


@dataclasses.dataclass(frozen=True)
class Passed:
    """A file that passed.

    Args:
        content: Its bytes.
        audit: What it computes.
        parity: How it agrees with its Keras model.
    """

    content: bytes
    audit: Audit
    parity: Parity


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a file is compared with.

    Args:
        endpoint: The Keras model it was made from.
        kind: A key of `GATES`.
        calibration: What the caller gave as calibration data; the validation split of a `Dataset` is compared.
        real: Samples of it by input name, where they were collected.
        count: Samples to compare; 0 skips it.
    """

    endpoint: Endpoint
    kind: str
    calibration: Any
    real: dict[str, np.ndarray] | None
    count: int

    def run(self, content: bytes, missing: dict[str, str]) -> Parity:
        """Compares a file; `missing` has the reason why a kernel set cannot run it."""
        if self.count == 0:
            return Parity(self.kind, 0, "skipped: parity_samples is 0")
        if isinstance(self.calibration, Dataset):
            inputs = collect(self.calibration, self.endpoint.inputs, self.count, split="validation")
            described = "validation split"
        elif self.real is not None:
            chosen = spread(len(next(iter(self.real.values()))), self.count)
            inputs, described = {name: array[chosen] for name, array in self.real.items()}, "calibration data"
        else:
            inputs, described = random_inputs(content, self.endpoint, self.count)
        is_real = self.calibration is not None
        return compare_with_keras(
            content, self.endpoint, inputs, kind=self.kind, described=described, real=is_real, missing=missing
        )


def pass_gate(
    content: bytes,
    comparison: Comparison,
    *,
    name: str,
    mode: str,
    io: str | None,
    audit: bool,
    slim: bool,
    float_layers: Collection[str] = (),
) -> Passed:
    """Checks a file.

    Args:
        content: The bytes of the `.tflite` file, with its names.
        comparison: What it is compared with.
        name: What errors call it.
        mode: A key of `MODES`.
        io: Type that inputs and outputs shall have; None for the mode's own.
        audit: Whether findings of the audit are an error.
        slim: Whether to strip it first.
        float_layers: Names of Keras layers that may compute in float in a mode of integers, besides those that
            quantization-aware training left there.

    Returns:
        The file, stripped if asked for, and what was found out about it.

    Raises:
        ExportError: If it does not pass; the causes are all that was found at the first check that failed.
    """
    in_float = _in_float(content, comparison.endpoint, float_layers)
    found = audit_tflite(content, mode=mode, io=io, in_float=in_float)
    if audit:
        found.raise_if_failed(name)
    if slim:
        content = slim_bytes(content)
        if audit:
            # The names of the first audit say more; the second one is of the file that ships.
            audit_tflite(content, mode=mode, io=io, in_float=in_float).raise_if_failed(name)
    missing = _run_once(content, with_reference=comparison.count > 0)
    parity = comparison.run(content, missing)
    parity.raise_if_failed(name)
    return Passed(content, found, parity)


def _in_float(content: bytes, endpoint: Endpoint, float_layers: Collection[str]) -> dict[int, str]:
    """The operations that may compute in float, by their place, which slimming does not change."""
    if not float_layers and not endpoint.is_fake_quantized:
        return {}
    traced = trace(endpoint.model, allow_equal_names=True)
    layers = {*float_layers, *left_in_float(traced)}
    if not layers:
        return {}
    return float_operations(flatbuffer.parse(content), traced, endpoint.output_names, layers)


def _run_once(content: bytes, *, with_reference: bool) -> dict[str, str]:
    """Loads and runs a file with each kernel set; returns why the reference kernels cannot, which is no failure."""
    converter = shared_converter()
    for delegate in DELEGATES:
        try:
            converter.invoke(content, RESOLVERS[delegate].name)
        except ExportError as error:
            raise ExportError(f"The file does not run with delegate '{delegate}'.", [str(error)]) from error
    if with_reference:
        try:
            converter.invoke(content, RESOLVERS[REFERENCE].name)
        except ExportError as error:
            return {REFERENCE: " ".join(str(error).split())}
    return {}
