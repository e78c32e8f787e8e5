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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcompress import files
from tfcompress.data import Dataset
from tfcompress.errors import DataError, InvalidArgumentError, ModelError
from tfcompress.export.audit import IO_TYPES, MODES, Audit, audit_tflite
from tfcompress.export.converter import shared_converter
from tfcompress.export.endpoint import SIGNATURE, Endpoint
from tfcompress.export.parity import Parity, compare_with_keras, random_inputs
from tfcompress.export.samples import collect, spread
from tfcompress.export.slim import slim_tflite

# More change the ranges little and cost time: post-training quantization sees each sample alone.
CALIBRATION_SAMPLES = 500
PARITY_SAMPLES = 256


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """A file that passed the gate, and what was found out about it.

    Args:
        path: The `.tflite` file.
        mode: "float32" or "int8".
        file_bytes: Its size.
        gzip_bytes: Its size after gzip at level 9.
        audit: What it computes, operation by operation.
        parity: How it agrees with its Keras model.
        seconds: What the export took, the start of the converter included.
        labels_path: The text file with one class name a line, if names were given.
    """

    path: Path
    mode: str
    file_bytes: int
    gzip_bytes: int
    audit: Audit
    parity: Parity
    seconds: float
    labels_path: Path | None = None

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
        }


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    mode: str = "int8",
    io: str = "int8",
    calibration: Any = None,
    class_names: Sequence[str] | None = None,
    audit: bool = True,
    parity_samples: int = PARITY_SAMPLES,
    slim: bool = True,
) -> ExportResult:
    """Writes a `.tflite` file that is proven to run and to agree with its Keras model.

    In mode "int8" a model with fake-quant layers (any layer whose attribute `is_fake_quantized` is true, as
    `quantize_aware` inserts them) brings its own ranges; any other is quantized after training, with the ranges that
    `calibration` shows. The converter runs in a process of its own. The file is then parsed (no silent float or Flex
    operation), stripped, run in LiteRT with the default delegate and without, and compared with the model.

    Args:
        model: A functional or built Sequential model, whose input sizes are known but for the batch.
        path: Where to write the file; it ends in `.tflite`.
        mode: "int8" or "float32".
        io: Type of the file's inputs and outputs in mode "int8": "int8", or "float32" for a caller who does not want
            to quantize. Mode "float32" has float32 ones.
        calibration: Typical inputs: a `Dataset` (its training split gives the ranges, its validation split the
            comparison), batches `x` or `(x, y)` such as a `tf.data.Dataset`, or arrays `(samples, ...)`. Up to 500
            samples are used. Needed for int8 after training; otherwise only for the comparison.
        class_names: Names of the classes in the order of the output, written one a line beside the file, into
            `<stem>.labels.txt`.
        audit: Whether findings of the audit are an error. The audit itself is always in the result.
        parity_samples: Samples to compare with the Keras model, random ones if there is no calibration data; 0 skips
            the comparison, which the result then says.
        slim: Whether to strip names and share equal parts, which changes no output bit.

    Returns:
        The file's path, sizes, audit and parity.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        DataError: If calibration data is missing, has another shape, or holds NaN or infinity.
        ModelError: If the model has no graph, inputs of unknown size, or fake-quant layers in mode "float32".
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
    if mode == "float32" and endpoint.is_fake_quantized:
        raise ModelError(
            f"Model {model.name!r} has fake-quant layers, which would become conversions to integers and back in a "
            "float file. Export it with mode='int8', or export the model that `quantize_aware` was given."
        )
    kind = "float32" if mode == "float32" else "qat" if endpoint.is_fake_quantized else "ptq"
    if kind == "ptq" and calibration is None:
        raise DataError(
            "Quantizing to int8 after training needs `calibration` data, 100 to 500 typical inputs. Received: None. "
            "Without data, use mode='float32', or a model of `quantize_aware`, which holds its ranges."
        )
    real = None
    if kind == "ptq" or (calibration is not None and parity_samples and not isinstance(calibration, Dataset)):
        real = collect(calibration, endpoint.inputs, max(CALIBRATION_SAMPLES, parity_samples))
    content = _convert(endpoint, mode, io, real if kind == "ptq" else None)

    found = audit_tflite(content, mode=mode, io=io)
    if audit:
        found.raise_if_failed(path.name)
    if slim:
        content = slim_tflite(content)
        if audit:
            # The names of the first audit say more; the second one is of the file that ships.
            audit_tflite(content, mode=mode, io=io).raise_if_failed(path.name)
    parity = _compare(content, endpoint, kind, calibration, real, parity_samples)
    parity.raise_if_failed(path.name)

    files.write_bytes(path, content)
    labels_path = None
    if labels is not None:
        labels_path = path.with_name(f"{path.stem}.labels.txt")
        files.write_text(labels_path, labels)
    size, seconds = len(content), time.monotonic() - started
    return ExportResult(path, mode, size, files.gzip_size(path), found, parity, seconds, labels_path)


def _checked_arguments(path: str | os.PathLike, mode: str, io: str, parity_samples: int) -> Path:
    if mode not in MODES:
        raise InvalidArgumentError("mode", f"one of {MODES}", mode)
    if io not in IO_TYPES:
        raise InvalidArgumentError("io", f"one of {IO_TYPES}", io)
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


def _convert(endpoint: Endpoint, mode: str, io: str, samples: dict[str, np.ndarray] | None) -> bytes:
    converter = shared_converter()
    # While the worker imports TensorFlow, this process traces the model.
    converter.start()
    with tempfile.TemporaryDirectory(prefix="tfcompress-export-") as folder:
        saved_model = Path(folder) / "saved_model"
        endpoint.write_saved_model(saved_model)
        calibration = None
        if samples is not None:
            calibration = Path(folder) / "calibration.npz"
            chosen = spread(len(next(iter(samples.values()))), CALIBRATION_SAMPLES)
            # The prefix keeps an input called "file" apart from the argument of `savez`.
            arrays: dict[str, Any] = {f"input:{name}": array[chosen] for name, array in samples.items()}
            np.savez(calibration, **arrays)
        return converter.convert(saved_model, signature=SIGNATURE, mode=mode, io=io, calibration=calibration)


def _compare(
    content: bytes,
    endpoint: Endpoint,
    kind: str,
    calibration: Any,
    real: dict[str, np.ndarray] | None,
    count: int,
) -> Parity:
    if count == 0:
        return Parity(kind, 0, "skipped: parity_samples is 0")
    if isinstance(calibration, Dataset):
        inputs, described = collect(calibration, endpoint.inputs, count, split="validation"), "validation split"
    elif real is not None:
        chosen = spread(len(next(iter(real.values()))), count)
        inputs, described = {name: array[chosen] for name, array in real.items()}, "calibration data"
    else:
        inputs, described = random_inputs(content, endpoint, count)
    return compare_with_keras(content, endpoint, inputs, kind=kind, described=described, real=calibration is not None)
