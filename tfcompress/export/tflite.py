"""Keras model in, proven `.tflite` file out: converted, audited, stripped, run, compared.

Invariant: a file appears at the given path only after the whole gate has passed; otherwise the path is as it was and
an ExportError names every cause with its remedy. The model is not changed. Left out: accuracy and latency of the file,
which `tfcompress.measure` takes.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcompress import files
from tfcompress.data import Dataset
from tfcompress.errors import DataError, ExportError, InvalidArgumentError, ModelError
from tfcompress.export.audit import Audit
from tfcompress.export.converter import shared_converter
from tfcompress.export.endpoint import SIGNATURE, Endpoint
from tfcompress.export.gate import Comparison, Passed, pass_gate
from tfcompress.export.int4 import with_int4_kernels
from tfcompress.export.lowering import integers_of_16_bits
from tfcompress.export.modes import MODES, file_io
from tfcompress.export.parity import Parity
from tfcompress.export.prepare import prepare
from tfcompress.export.recurrent import Prepared
from tfcompress.export.repair import repair
from tfcompress.export.samples import collect, spread

# More change the ranges little and cost time: post-training quantization sees each sample alone.
CALIBRATION_SAMPLES = 500
PARITY_SAMPLES = 256


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """A file that passed the gate, and what was found out about it.

    Args:
        path: The `.tflite` file.
        mode: A key of `MODES`, such as "int8".
        file_bytes: Its size.
        gzip_bytes: Its size after gzip at level 9.
        audit: What it computes, operation by operation.
        parity: How it agrees with its Keras model.
        seconds: What the export took, the start of the converter included.
        labels_path: The text file with one class name a line, if names were given.
        notes: What was done to the model on its way, in words; empty where nothing was.
    """

    path: Path
    mode: str
    file_bytes: int
    gzip_bytes: int
    audit: Audit
    parity: Parity
    seconds: float
    labels_path: Path | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can hold."""
        return {
            "path": str(self.path),
            "mode": self.mode,
            "file_bytes": self.file_bytes,
            "gzip_bytes": self.gzip_bytes,
            "audit": self.audit.to_dict(),
            "parity": self.parity.to_dict(),
            "seconds": self.seconds,
            "labels_path": None if self.labels_path is None else str(self.labels_path),
            "notes": list(self.notes),
        }


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    mode: str = "int8",
    io: str | None = None,
    calibration: Any = None,
    class_names: Sequence[str] | None = None,
    audit: bool = True,
    parity_samples: int = PARITY_SAMPLES,
    slim: bool = True,
    simplify: bool = True,
    sparse: bool = False,
) -> ExportResult:
    """Writes a `.tflite` file that is proven to run and to agree with its Keras model.

    In modes of integers a model with fake-quant layers (any layer whose attribute `is_fake_quantized` is true, as
    `quantize_aware` inserts them) brings its own ranges, which for mode "int16x8" are those of 16 bits; any other is
    quantized after training, with the ranges that `calibration` shows. The converter runs in a process of its own. The
    file is then parsed (no silent float or Flex operation), stripped, run in LiteRT with the default delegate, without,
    and with the reference kernels, and compared with the model. Recurrent layers are fused or unrolled for integers;
    `notes` of the result say so.

    Args:
        model: A functional or built Sequential model, whose input sizes are known but for the batch.
        path: Where to write the file; it ends in `.tflite`.
        mode: What the file computes with:
            "float32": floats.
            "float16": weights of 16 bits, half the size; the arithmetic is float32 on a CPU.
            "dynamic": weights of 8 bits, a quarter of the size; activations are rounded as they come.
            "int8": integers of 8 bits throughout.
            "int8_float_io": the same with float32 inputs and outputs.
            "int16x8": activations of 16 bits and weights of 8.
            "int4": "int8" with kernels of 4 bits, but for the first and the last.
        io: Type of the inputs and outputs of a file of integers, by default "int8", or "int16" in mode "int16x8";
            "float32" is for a caller who does not want to quantize. Modes of floats have float32 ones.
        calibration: Typical inputs: a `Dataset` (its training split gives the ranges, its validation split the
            comparison), batches `x` or `(x, y)` such as a `tf.data.Dataset`, or arrays `(samples, ...)`. Up to 500
            samples are used. Needed for integers after training; otherwise only for the comparison.
        class_names: Names of the classes in the order of the output, written one a line beside the file, into
            `<stem>.labels.txt`.
        audit: Whether findings of the audit are an error. The audit itself is always in the result.
        parity_samples: Samples to compare with the Keras model, random ones if there is no calibration data; 0 skips
            the comparison, which the result then says.
        slim: Whether to strip names and share equal parts, which changes no output bit.
        simplify: Whether to remove what `tfcompress.simplify` removes first, such as channels that are dead after
            pruning. The file is compared with the model as it was given.
        sparse: Whether to try a file that leaves out zeros of pruned kernels. It is kept if it passes the gate and is
            smaller; `notes` of the result say what became of it.

    Returns:
        The file's path, sizes, audit and parity.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        DataError: If calibration data is missing, has another shape, or holds NaN or infinity.
        ModelError: If the model has no graph, inputs of unknown size, fake-quant layers in a mode of floats, or
            recurrent layers that can be neither fused nor unrolled.
        ExportError: If the converter fails, or the file does not pass the gate.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
        >>> pixels = np.random.default_rng(0).uniform(size=(100, 8, 8, 1))
        >>> result = export_tflite(model, Path(tempfile.mkdtemp()) / "model.tflite", calibration=pixels)
        >>> result.audit.float_ops, result.parity.passed
        ((), True)
    """
    started = time.monotonic()
    path = _checked_arguments(path, mode, io, parity_samples)
    endpoint = Endpoint(model)
    labels = _labels(class_names, endpoint)
    kind = kind_of(endpoint, mode, calibration)
    is_calibrated = MODES[mode].needs_calibration and not endpoint.is_fake_quantized
    real = None
    if is_calibrated or (calibration is not None and parity_samples and not isinstance(calibration, Dataset)):
        real = collect(calibration, endpoint.inputs, max(CALIBRATION_SAMPLES, parity_samples))
    prepared = Prepared(model) if endpoint.is_fake_quantized else prepare(model, mode, simplify=simplify)
    comparison = Comparison(endpoint, kind, calibration, real, parity_samples)

    def make(*, sparse: bool) -> Passed:
        content = converted(endpoint, prepared, mode, io, real if is_calibrated else None, sparse=sparse)
        return pass_gate(content, comparison, name=path.name, mode=mode, io=io, audit=audit, slim=slim)

    passed = make(sparse=False)
    notes = list(prepared.notes)
    if sparse:
        passed, note = _smaller_sparse(passed, make)
        notes.append(note)
    files.write_bytes(path, passed.content)
    labels_path = None
    if labels is not None:
        labels_path = path.with_name(f"{path.stem}.labels.txt")
        files.write_text(labels_path, labels)
    size, seconds = len(passed.content), time.monotonic() - started
    return ExportResult(path, mode, size, files.gzip_size(path), passed.audit, passed.parity, seconds, labels_path,
                        tuple(notes))  # fmt: skip


def kind_of(endpoint: Endpoint, mode: str, calibration: Any) -> str:
    """Which gate judges; an error where mode, model and data don't go together."""
    if endpoint.is_fake_quantized:
        bits = endpoint.activation_bits
        if MODES[mode].takes_ranges == bits:
            return "qat" if bits == 8 else "qat16"
        fitting = "int8" if bits == 8 else "int16x8"
        raise ModelError(
            f"Model {endpoint.model.name!r} has fake-quant layers of {bits} bits, which would become conversions to "
            f"integers and back in a file of mode {mode!r}. Export it with mode={fitting!r}, or export the model that "
            "`quantize_aware` was given."
        )
    if MODES[mode].needs_calibration and calibration is None:
        raise DataError(
            f"Quantizing to {mode} after training needs `calibration` data, 100 to 500 typical inputs. Received: None. "
            "Without data, use mode='float32', 'float16' or 'dynamic', or a model of `quantize_aware`, which holds its "
            "ranges."
        )
    return MODES[mode].kind


def _smaller_sparse(dense: Passed, make: Callable[..., Passed]) -> tuple[Passed, str]:
    """The sparse file if it passes the gate and is smaller, and what became of it in words."""
    try:
        sparse = make(sparse=True)
    except ExportError as error:
        return dense, f"sparse encoding was left out, since its file fails the gate: {str(error).splitlines()[0]}"
    before, after = len(dense.content), len(sparse.content)
    if after >= before:
        return dense, f"sparse encoding was left out, since it saves nothing: {after:,} B, and {before:,} B without"
    return sparse, f"sparse encoding is used: {after:,} B, and {before:,} B without"


def _checked_arguments(path: str | os.PathLike, mode: str, io: str | None, parity_samples: int) -> Path:
    if mode not in MODES:
        raise InvalidArgumentError("mode", f"one of {', '.join(MODES)}", mode)
    allowed = MODES[mode].io
    if io is not None and MODES[mode].is_integer and io not in allowed:
        raise InvalidArgumentError("io", f"one of {', '.join(allowed)} in mode {mode!r}", io)
    if isinstance(parity_samples, bool) or not isinstance(parity_samples, int) or parity_samples < 0:
        raise InvalidArgumentError("parity_samples", "a number of samples, 0 to skip", parity_samples)
    if Path(path).suffix != ".tflite":
        raise InvalidArgumentError("path", "a file name that ends in .tflite", os.fspath(path))
    return Path(path)


def _labels(class_names: Sequence[str] | None, endpoint: Endpoint) -> str | None:
    """The text of the labels file."""
    if class_names is None:
        return None
    names = [str(name) for name in class_names]
    classes = keras.tree.flatten(endpoint.model.outputs)[0].shape[-1]
    if len(names) != classes or any("\n" in name for name in names):
        raise InvalidArgumentError("class_names", f"{classes} names of one line, one per class of the output", names)
    return "".join(f"{name}\n" for name in names)


def converted(
    endpoint: Endpoint,
    prepared: Prepared,
    mode: str,
    io: str | None = None,
    samples: dict[str, np.ndarray] | None = None,
    *,
    sparse: bool = False,
) -> bytes:
    """The file as it goes into the gate, with the converter's names.

    Args:
        endpoint: The model.
        prepared: What is converted in its place.
        mode: A key of `MODES`.
        io: Type of inputs and outputs; None for the mode's own.
        samples: Calibration data `(samples, ...)` by input name; None where the mode or the model needs none.
        sparse: Whether zeros of the weights may be left out.

    Raises:
        ExportError: If the converter fails.
    """
    content = _convert(endpoint, prepared, mode, io, samples, sparse=sparse)
    if MODES[mode].is_integer:
        content = repair(content)
    if MODES[mode].kernel_bits == 4 and not endpoint.is_fake_quantized:
        content = with_int4_kernels(content)
    return content


def _convert(
    endpoint: Endpoint,
    prepared: Prepared,
    mode: str,
    io: str | None,
    samples: dict[str, np.ndarray] | None,
    *,
    sparse: bool,
) -> bytes:
    converter = shared_converter()
    # While the worker imports TensorFlow, this process traces the model.
    converter.start()
    with tempfile.TemporaryDirectory(prefix="tfcompress-export-") as folder:
        saved_model = Path(folder) / "saved_model"
        if prepared.twin is not None:
            endpoint.write_legacy_saved_model(saved_model, prepared.twin)
        else:
            endpoint.write_saved_model(saved_model, prepared.model)
        calibration = None
        if samples is not None:
            calibration = Path(folder) / "calibration.npz"
            chosen = spread(len(next(iter(samples.values()))), CALIBRATION_SAMPLES)
            # The prefix keeps an input called "file" apart from the argument of `savez`.
            arrays: dict[str, Any] = {f"input:{name}": array[chosen] for name, array in samples.items()}
            np.savez(calibration, **arrays)
        if endpoint.is_fake_quantized and MODES[mode].activations == "int16":
            # Its own integers of 16 bits are no use: see `lowering.py`.
            floats = converter.convert(saved_model, signature=SIGNATURE, mode="float32")
            return integers_of_16_bits(floats, file_io(mode, io))
        return converter.convert(
            saved_model, signature=SIGNATURE, mode=mode, io=file_io(mode, io), calibration=calibration, sparse=sparse
        )
