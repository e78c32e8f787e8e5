"""Where the bytes of a `.tflite` file go, and what it takes in a download, in an app and in memory.

Invariant: each byte of the file counts in exactly one part, so the parts sum to the size of the file; a vector that
several tensors share counts once. Left out: which layer the bytes belong to; see `tfcompress.inspect`.
"""

from __future__ import annotations

import dataclasses
import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.errors import ModelError
from tfcompress.export import flatbuffer
from tfcompress.export.arena import Arena, activation_arena
from tfcompress.export.audit import KERNEL_INPUT
from tfcompress.files import gzip_size
from tfcompress.measure.size import coded_size

PARTS = ("weights", "biases", "quantization", "graph", "names", "metadata")
# zipalign puts uncompressed entries of an APK at multiples of it.
_APK_ALIGNMENT = 4
_INT_TYPES = ("int32", "int64", "uint32", "bool")


@dataclasses.dataclass(frozen=True)
class SizeLedger:
    """Bytes of a `.tflite` file by what they are for.

    Args:
        path: The file.
        file_bytes: Its size: the sum of `parts`.
        parts: Bytes of "weights" (kernels, tables and other numbers that are computed with), "biases", "quantization"
            (scales, zero points, ranges and their tables), "graph" (tensors, operations, shapes, axes, alignment),
            "names" (of tensors, graphs, inputs and outputs) and "metadata" (with associated files).
        gzip_bytes: The file after gzip at level 9.
        apk_deflated_bytes: What it takes in an APK or another ZIP file when it is compressed there.
        entropy_bytes: The weights (the part of that name), if each tensor's values had ideal codes. No reader of this
            file can do that; it is what few values and zeros are worth at best.
        huffman_bytes: The same by Huffman codes, with their tables; see `tfcompress.measure.size.coded_size`.
        apk_stored_bytes: What it takes in an APK uncompressed and aligned, as Android's build tools put `.tflite`
            files so that they can be mapped into memory.
        arena: Memory for activations while it runs.
    """

    path: Path
    file_bytes: int
    parts: dict[str, int]
    gzip_bytes: int
    apk_deflated_bytes: int
    apk_stored_bytes: int
    arena: Arena
    entropy_bytes: float
    huffman_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can hold."""
        return {**dataclasses.asdict(self), "path": str(self.path)}

    def lines(self) -> list[str]:
        """The ledger in words, for a table's foot."""
        parts = ", ".join(f"{name} {count:,} ({count / self.file_bytes:.1%})" for name, count in self.parts.items())
        return [
            f"Bytes: {parts}.",
            f"In an APK: {self.apk_stored_bytes:,} stored, {self.apk_deflated_bytes:,} deflated.",
            f"Weights coded: {self.huffman_bytes:,} (Huffman, with tables), {self.entropy_bytes:,.0f} (entropy).",
            f"Activations: {self.arena.planned_bytes:,} bytes of memory.",
        ]


def size_ledger(path: str | os.PathLike) -> SizeLedger:
    """Says where the bytes of a `.tflite` file go.

    Args:
        path: The file.

    Returns:
        Bytes by part, compressed and in an APK, and the memory for its activations.

    Raises:
        ModelError: If there is no TFLite model at `path`.

    Example:
        >>> size_ledger("model.tflite").parts["weights"]   # doctest: +SKIP
        77360
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"No TFLite file can be read at {os.fspath(path)!r}: {error.strerror}.") from error
    model = flatbuffer.parse(content)
    marks = _Marks(content)
    _mark_model(marks, model)
    coded = [coded_size(values) for values in _weights(model)]
    return SizeLedger(
        path=path,
        file_bytes=len(content),
        parts=marks.counts(),
        gzip_bytes=gzip_size(path),
        apk_deflated_bytes=_apk_bytes(path.name, content, zipfile.ZIP_DEFLATED),
        apk_stored_bytes=_apk_bytes(path.name, content, zipfile.ZIP_STORED),
        arena=activation_arena(content),
        entropy_bytes=sum(each.entropy_bytes for each in coded),
        huffman_bytes=sum(each.huffman_bytes for each in coded),
    )


class _Marks:
    """A part for each byte of the file; what is not marked is "graph", what is marked twice stays with the first."""

    def __init__(self, content: bytes):
        self.content = content
        self._parts = np.full(len(content), -1, np.int8)

    def mark(self, start: int, size: int, part: str) -> None:
        section = self._parts[start : start + size]
        section[section == -1] = PARTS.index(part)

    def table(self, table: Any, part: str) -> None:
        """Marks the fields of a table, and where they are (its vtable, which tables of one kind share)."""
        position = table._tab.Pos
        vtable = position - self._number(position, 4, signed=True)
        self.mark(position, self._number(vtable + 2, 2), part)
        self.mark(vtable, self._number(vtable, 2), part)

    def vector(self, table: Any, field: int, item_bytes: int, part: str) -> None:
        """Marks a vector or string, the field of this number of a table, with its length."""
        offset = table._tab.Offset(4 + 2 * field)
        if offset:
            start = table._tab.Vector(offset)
            closing = 1 if part == "names" else 0  # the zero byte that ends a string
            self.mark(start - 4, 4 + table._tab.VectorLen(offset) * item_bytes + closing, part)

    def counts(self) -> dict[str, int]:
        parts = np.where(self._parts == -1, PARTS.index("graph"), self._parts)
        return {name: int(np.count_nonzero(parts == index)) for index, name in enumerate(PARTS)}

    def _number(self, at: int, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.content[at : at + size], "little", signed=signed)


def _mark_model(marks: _Marks, parsed: schema.ModelT) -> None:
    model = schema.Model.GetRootAs(marks.content, 0)
    _mark_metadata(marks, model)
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        marks.vector(graph, 4, 1, "names")
        roles = _roles(parsed, number)
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            marks.vector(tensor, 3, 1, "names")
            if tensor.Quantization() is not None:
                _mark_quantization(marks, tensor.Quantization())
            _mark_buffer(marks, model.Buffers(tensor.Buffer()), roles.get(index, "graph"))
    for number in range(model.SignatureDefsLength()):
        signature = model.SignatureDefs(number)
        marks.vector(signature, 2, 1, "names")
        entries = [signature.Inputs(index) for index in range(signature.InputsLength())]
        for entry in [*entries, *(signature.Outputs(index) for index in range(signature.OutputsLength()))]:
            marks.vector(entry, 0, 1, "names")


def _mark_metadata(marks: _Marks, model: schema.Model) -> None:
    marks.vector(model, 3, 1, "metadata")
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        marks.table(entry, "metadata")
        marks.vector(entry, 0, 1, "metadata")
        _mark_buffer(marks, model.Buffers(entry.Buffer()), "metadata")
    if flatbuffer.has_appended_files(marks.content):
        with zipfile.ZipFile(io.BytesIO(marks.content)) as archive:
            start = min((entry.header_offset for entry in archive.infolist()), default=len(marks.content))
        marks.mark(start, len(marks.content) - start, "metadata")


def _mark_quantization(marks: _Marks, quantization: schema.QuantizationParameters) -> None:
    marks.table(quantization, "quantization")
    for field, item_bytes in ((0, 4), (1, 4), (2, 4), (3, 8)):
        marks.vector(quantization, field, item_bytes, "quantization")


def _mark_buffer(marks: _Marks, buffer: schema.Buffer, part: str) -> None:
    if buffer.Offset() > 1:  # behind the flatbuffer, in large files
        marks.mark(buffer.Offset(), buffer.Size(), part)
    else:
        marks.vector(buffer, 0, 1, part)


def _roles(model: schema.ModelT, number: int) -> dict[int, str]:
    """The part that each constant belongs to, by tensor: integers without a scale are shapes and axes of the graph."""
    graph = model.subgraphs[number]
    biases = set()
    for operator in graph.operators if graph.operators is not None else ():
        kernel = KERNEL_INPUT.get(flatbuffer.op_name(model.operatorCodes[operator.opcodeIndex]))
        if kernel is not None and len(operator.inputs) > kernel + 1:
            biases.add(int(operator.inputs[kernel + 1]))
    roles = {}
    for index, tensor in enumerate(graph.tensors):
        quantization = tensor.quantization
        has_scale = quantization is not None and quantization.scale is not None and len(quantization.scale) > 0
        dtype = flatbuffer.type_name(tensor.type)
        if index in biases or (dtype in _INT_TYPES and has_scale):
            roles[index] = "biases"
        else:
            roles[index] = "graph" if dtype in _INT_TYPES else "weights"
    return roles


def _weights(model: schema.ModelT) -> list[np.ndarray]:
    """The values of each constant that is computed with, once for each buffer; types that NumPy lacks as bytes."""
    arrays: dict[int, np.ndarray] = {}
    for number, graph in enumerate(model.subgraphs):
        for index, part in _roles(model, number).items():
            tensor = graph.tensors[index]
            data = model.buffers[tensor.buffer].data
            if part == "weights" and data is not None and len(data):
                name = flatbuffer.type_name(tensor.type)
                dtype = np.dtype(name if name in ("int8", "uint8", "int16", "float16", "float32") else "uint8")
                arrays[tensor.buffer] = np.frombuffer(bytes(data), dtype)
    return list(arrays.values())


def _apk_bytes(name: str, content: bytes, method: int) -> int:
    """Bytes that the file adds to a ZIP archive: its data, both of its headers, and alignment."""
    entry = len(f"assets/{name}".encode())
    local, central = 30 + entry, 46 + entry
    if method == zipfile.ZIP_STORED:
        return local + -local % _APK_ALIGNMENT + len(content) + central
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return local + len(deflate.compress(content) + deflate.flush()) + central
