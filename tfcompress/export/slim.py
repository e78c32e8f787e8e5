"""A smaller `.tflite` file that computes exactly the same: stripped of what no runtime reads, with equal parts shared.

In a small int8 file the weights are little more than half: the rest is names, ranges noted while converting,
per-channel zero points that are all zero, and many equal vectors and tables. A flatbuffer refers to its parts by
offset, so equal parts can be written once.

Invariant: same operations in the same order, on the same numbers, with the same signatures: outputs are bit-identical.
Left out: anything that changes how the file computes (pruning channels, other types, other operations).
"""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.errors import ModelError
from tfcompress.export import flatbuffer

# What the converter notes for itself. Any other metadata was put there on purpose.
CONVERTER_METADATA = (b"min_runtime_version", b"CONVERSION_METADATA")
# The schema asks for it (`force_align: 16`), and vectorised kernels may rely on it.
BUFFER_ALIGNMENT = 16


def slim_tflite(content: bytes) -> bytes:
    """Strips a `.tflite` file without changing a bit of what it computes.

    Tensor names go, but for inputs and outputs, which are called as in their signature where there is one; so do
    min/max ranges, the converter's notes, unused operator codes and empty buffers. Equal buffers, vectors and tables
    are stored once.

    Args:
        content: The bytes of the file.

    Returns:
        The bytes of the smaller file.

    Raises:
        ModelError: If `content` is no TFLite model, or carries files appended to it, which would be lost.

    Example:
        >>> from pathlib import Path
        >>> slim_tflite(Path("model.tflite").read_bytes())   # doctest: +SKIP
    """
    if flatbuffer.has_appended_files(content):
        raise ModelError(
            "The TFLite file carries associated files (a ZIP archive at its end), which slimming would lose. "
            "Slim it before metadata is added."
        )
    model = flatbuffer.parse(content)
    _drop_notes(model)
    _drop_names(model)
    _drop_empty_quantization(model)
    _merge_operator_codes(model)
    _merge_buffers(model)
    return _serialize(model)


def _drop_notes(model: schema.ModelT) -> None:
    model.description = None
    model.metadataBuffer = None
    kept = [entry for entry in model.metadata or () if entry.name not in CONVERTER_METADATA]
    model.metadata = kept or None


def _drop_names(model: schema.ModelT) -> None:
    for graph in model.subgraphs:
        graph.name = None
        borders = {int(index) for index in [*graph.inputs, *graph.outputs]}
        for index, tensor in enumerate(graph.tensors):
            if index not in borders:
                tensor.name = None
    for signature in model.signatureDefs or ():
        tensors = model.subgraphs[signature.subgraphIndex].tensors
        for entry in [*(signature.inputs or ()), *(signature.outputs or ())]:
            tensors[entry.tensorIndex].name = entry.name


def _drop_empty_quantization(model: schema.ModelT) -> None:
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            quantization = tensor.quantization
            if quantization is None:
                continue
            quantization.min = quantization.max = None
            has_scale = quantization.scale is not None and len(quantization.scale) > 0
            if not has_scale and quantization.details is None:
                tensor.quantization = None


def _merge_operator_codes(model: schema.ModelT) -> None:
    """Keeps each operator code once, and only those in use."""
    kept: dict[tuple, int] = {}
    codes: list[schema.OperatorCodeT] = []
    for graph in model.subgraphs:
        for operator in graph.operators or ():
            code = model.operatorCodes[operator.opcodeIndex]
            key = (code.builtinCode, code.deprecatedBuiltinCode, code.customCode, code.version)
            if key not in kept:
                kept[key] = len(codes)
                codes.append(code)
            operator.opcodeIndex = kept[key]
    model.operatorCodes = codes


def _merge_buffers(model: schema.ModelT) -> None:
    """Keeps each content once, and only those in use. Buffer 0 is the empty one by convention, of every variable."""
    kept = {b"": 0}
    buffers = [schema.BufferT()]
    holders = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    for holder in [*holders, *(model.metadata or ())]:
        buffer = model.buffers[holder.buffer]
        key = b"" if buffer.data is None else bytes(buffer.data)
        if key not in kept:
            kept[key] = len(buffers)
            buffers.append(buffer)
        holder.buffer = kept[key]
    model.buffers = buffers


def _serialize(model: schema.ModelT) -> bytes:
    shared: dict[Any, _SharedTable] = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.quantization = _share(tensor.quantization, shared)
        for operator in graph.operators or ():
            operator.builtinOptions = _share(operator.builtinOptions, shared)
    builder = _SharingBuilder(1024)
    builder.Finish(model.Pack(builder), file_identifier=flatbuffer.FILE_IDENTIFIER)
    return bytes(builder.Output())


class _SharingBuilder(flatbuffers.Builder):
    """Writes each vector of numbers and each string once."""

    def __init__(self, initial_size: int):
        super().__init__(initial_size)
        self._written: dict[Any, int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        key = (x.dtype.str, x.tobytes())
        if key not in self._written:
            if x.dtype == np.uint8:
                self.Prep(BUFFER_ALIGNMENT, x.size)
            self._written[key] = super().CreateNumpyVector(x)
        return self._written[key]

    def CreateString(self, s: str | bytes, *arguments: Any) -> int:
        if s not in self._written:
            self._written[s] = super().CreateString(s, *arguments)
        return self._written[s]


class _SharedTable:
    """A table that is packed once; whoever holds an equal one refers to the same offset."""

    def __init__(self, table: Any):
        self._table = table
        self._offset: int | None = None

    def Pack(self, builder: flatbuffers.Builder) -> int:
        if self._offset is None:
            self._offset = self._table.Pack(builder)
        return self._offset


def _share(table: Any, shared: dict[Any, _SharedTable]) -> _SharedTable | None:
    if table is None:
        return None
    return shared.setdefault(_key(table), _SharedTable(table))


def _key(value: Any) -> Any:
    """Equal for equal contents: tables by type and fields, vectors by type and bytes."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.tobytes())
    if isinstance(value, (list, tuple)):
        return tuple(_key(entry) for entry in value)
    if hasattr(value, "__dict__"):
        return (type(value).__name__, *((name, _key(entry)) for name, entry in sorted(vars(value).items())))
    return value
