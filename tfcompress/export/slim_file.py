"""A `.tflite` file in, a smaller one out that was seen to give the same bits.

Invariant: a file appears at the second path only after both files gave bit-identical outputs under every kernel set of
LiteRT that runs the first one; the first file is not touched. Left out: what is stripped, which is in `slim.py`.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from tfcompress import files
from tfcompress.errors import ExportError, InvalidArgumentError, ModelError
from tfcompress.export import flatbuffer
from tfcompress.export.random_inputs import random_tensors
from tfcompress.export.slim import slim_bytes
from tfcompress.measure.tflite_runner import DELEGATES

# The stripped parts reach no kernel, so that a difference would show at once; reference kernels are slow.
_SAMPLES = 2


@dataclasses.dataclass(frozen=True)
class SlimResult:
    """What slimming a file did.

    Args:
        path: The smaller file.
        bytes_before: Size of the file that was given.
        bytes_after: Size of the smaller one.
        gzip_bytes_before: The former after gzip at level 9.
        gzip_bytes_after: The latter after gzip at level 9.
        removed: What went, as (what, how many) in words that a table can show; kinds of which nothing went are not in.
        checked: Kernel sets under which both files gave the same bits: of "default", "none" and "reference".
    """

    path: Path
    bytes_before: int
    bytes_after: int
    gzip_bytes_before: int
    gzip_bytes_after: int
    removed: tuple[tuple[str, int], ...]
    checked: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can hold."""
        return {**dataclasses.asdict(self), "path": str(self.path), "removed": dict(self.removed)}


def slim_tflite(path_in: str | os.PathLike, path_out: str | os.PathLike) -> SlimResult:
    """Rewrites a `.tflite` file to its fewest bytes, with bit-identical outputs.

    Names that nobody reads, ranges noted while converting and unused parts are dropped, scales that are equal for all
    channels become one, equal vectors, buffers and tables are stored once. Inputs, outputs and signatures stay. Both
    files are run on random inputs under each kernel set before the new one is written.

    Args:
        path_in: The file to make smaller.
        path_out: Where to write the result; not the same file.

    Returns:
        Sizes before and after, and what was removed.

    Raises:
        InvalidArgumentError: If both paths are the same file, or the second does not end in `.tflite`.
        ModelError: If there is no TFLite model at `path_in`, LiteRT cannot run it, or it carries associated files.
        ExportError: If an output differs, which would be a mistake of ours; nothing is written.

    Example:
        >>> slim_tflite("model.tflite", "slim.tflite").bytes_after   # doctest: +SKIP
        86016
    """
    path_in, path_out = Path(path_in), Path(path_out)
    if path_out.suffix != ".tflite":
        raise InvalidArgumentError("path_out", "a file name that ends in .tflite", os.fspath(path_out))
    if path_in.resolve() == path_out.resolve() or (
        path_out.exists() and path_in.exists() and path_in.samefile(path_out)
    ):
        raise InvalidArgumentError("path_out", "another file than `path_in`", os.fspath(path_out))
    try:
        before = path_in.read_bytes()
    except OSError as error:
        raise ModelError(f"No TFLite file can be read at {os.fspath(path_in)!r}: {error.strerror}.") from error
    after = slim_bytes(before)
    checked = _compare(before, after, path_in.name)
    files.write_bytes(path_out, after)
    return SlimResult(
        path=path_out,
        bytes_before=len(before),
        bytes_after=len(after),
        gzip_bytes_before=files.gzip_size(path_in),
        gzip_bytes_after=files.gzip_size(path_out),
        removed=_removed(flatbuffer.parse(before), flatbuffer.parse(after)),
        checked=checked,
    )


def _compare(before: bytes, after: bytes, name: str) -> tuple[str, ...]:
    """Kernel sets that run the first content and give the same bits for the second."""
    checked, reasons = [], []
    for delegate in DELEGATES:
        try:
            expected = _outputs(before, delegate)
        except (ValueError, RuntimeError) as error:
            reasons.append(f"delegate {delegate}: {str(error).strip().splitlines()[0]}")
            continue
        try:
            found = _outputs(after, delegate)
        except (ValueError, RuntimeError) as error:
            raise ExportError(f"Slimmed, {name} does not run with delegate {delegate}: {error}") from error
        if expected != found:
            raise ExportError(f"Slimmed, {name} gives other outputs with delegate {delegate}. Nothing was written.")
        checked.append(delegate)
    if not checked:
        raise ModelError(f"LiteRT cannot run {name}, so slimming it cannot be checked: {'; '.join(reasons)}")
    return tuple(checked)


def _outputs(content: bytes, delegate: str) -> list[bytes]:
    """The bits of every output for a few random inputs, the same ones for every file of the same inputs."""
    interpreter = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=DELEGATES[delegate])
    interpreter.allocate_tensors()
    rng = np.random.default_rng(0)
    outputs = []
    for _ in range(_SAMPLES):
        interpreter.reset_all_variables()
        inputs = interpreter.get_input_details()
        for details, values in zip(inputs, random_tensors(content, inputs, rng), strict=True):
            interpreter.set_tensor(details["index"], values)
        interpreter.invoke()
        outputs += [interpreter.get_tensor(details["index"]).tobytes() for details in interpreter.get_output_details()]
    return outputs


def _removed(before: schema.ModelT, after: schema.ModelT) -> tuple[tuple[str, int], ...]:
    first, second = _counts(before), _counts(after)
    return tuple((what, count - second[what]) for what, count in first.items() if count > second[what])


def _counts(model: schema.ModelT) -> dict[str, int]:
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    quantized = [tensor.quantization for tensor in tensors if tensor.quantization is not None]
    return {
        "tensors": len(tensors),
        "tensor names": sum(bool(tensor.name) for tensor in tensors),
        "buffers": len(model.buffers),
        "operator codes": len(model.operatorCodes),
        "ranges (min, max)": sum(entry.min is not None or entry.max is not None for entry in quantized),
        "scales": sum(len(entry.scale) for entry in quantized if entry.scale is not None),
        "metadata entries": len(model.metadata or ()),
        "descriptions and graph names": sum(
            bool(text) for text in [model.description, *(g.name for g in model.subgraphs)]
        ),
    }
