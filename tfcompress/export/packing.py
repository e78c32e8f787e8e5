"""A parsed `.tflite` model to the fewest bytes: equal parts stored once, and no padding that something could fill.

A flatbuffer refers to its parts by offset, so equal vectors, strings and tables may be one. Buffers of weights are
aligned to 16 bytes; the gaps that this leaves are filled with the small vectors of shapes, scales and operands.

Invariant: the packed model, parsed again, has the same tables and values in the same order. Left out: what a model
could do without; see `slim.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.errors import ModelError
from tfcompress.export import flatbuffer

# The schema asks for it (`force_align: 16`), and vectorised kernels may rely on it.
BUFFER_ALIGNMENT = 16
_LENGTH_BYTES = 4
# Offsets of a flatbuffer are of 32 bits, and signed in places.
_LARGEST_BYTES = 2**31 - 2**20


def pack(model: schema.ModelT) -> bytes:
    """Writes a model, as `flatbuffer.parse` gives it, to as few bytes as its content allows.

    Args:
        model: The object tree. Its tables are replaced by shared ones: use it no more.

    Returns:
        The bytes of a `.tflite` file.

    Raises:
        ModelError: If the model is larger than a flatbuffer can be, 2 GB.
    """
    size = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    if size > _LARGEST_BYTES:
        raise ModelError(f"A TFLite file that is rewritten must be below 2 GB. Received: {size:,} bytes of buffers.")
    builder = _SharingBuilder(1024)
    builder.write_vectors(model)
    shared: dict[Any, _SharedTable] = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.quantization = _share(tensor.quantization, shared)
            tensor.sparsity = _share(tensor.sparsity, shared)
        for operator in flatbuffer.listed(graph.operators):
            operator.builtinOptions = _share(operator.builtinOptions, shared)
            operator.builtinOptions2 = _share(operator.builtinOptions2, shared)
        graph.tensors = [_share(tensor, shared) for tensor in graph.tensors]
    for signature in flatbuffer.listed(model.signatureDefs):
        signature.inputs = [_share(entry, shared) for entry in flatbuffer.listed(signature.inputs)]
        signature.outputs = [_share(entry, shared) for entry in flatbuffer.listed(signature.outputs)]
    builder.Finish(model.Pack(builder), file_identifier=flatbuffer.FILE_IDENTIFIER)
    return bytes(builder.Output())


class _SharingBuilder(flatbuffers.Builder):
    """Writes each vector of numbers and each string once; a builder writes from the end of the file to its start."""

    def __init__(self, initial_size: int):
        super().__init__(initial_size)
        self._written: dict[Any, int] = {}

    def write_vectors(self, model: schema.ModelT) -> None:
        """Writes all buffers and all vectors of 8-byte numbers, the gaps before them filled with smaller vectors."""
        small: dict[Any, np.ndarray] = {}
        wide: dict[Any, np.ndarray] = {}
        for vector in _vectors([model.subgraphs, model.operatorCodes, model.signatureDefs]):
            if vector.itemsize == 4:
                small.setdefault(_vector_key(vector), vector)
            elif vector.itemsize == 8:
                wide.setdefault(_vector_key(vector), vector)
        waiting = sorted(small.values(), key=lambda vector: vector.nbytes, reverse=True)
        for buffer in model.buffers:
            if buffer.data is not None and len(buffer.data):
                self._fill_gap(waiting, buffer.data.nbytes, BUFFER_ALIGNMENT)
                self.CreateNumpyVector(buffer.data)
        for vector in wide.values():
            self._fill_gap(waiting, vector.nbytes, vector.itemsize)
            self.CreateNumpyVector(vector)

    def _fill_gap(self, waiting: list[np.ndarray], size: int, alignment: int) -> None:
        """Writes waiting vectors until `size` bytes can follow aligned without padding, or nothing fits."""
        while gap := -(self.Offset() + size) % alignment:
            sizes = [_LENGTH_BYTES + vector.nbytes for vector in waiting]
            exact = [at for at, total in enumerate(sizes) if total % alignment == gap]
            fitting = [at for at, total in enumerate(sizes) if total < gap]
            if not exact and not fitting:
                return
            # The largest first: it is the hardest to place.
            self.CreateNumpyVector(waiting.pop((exact or fitting)[0]))

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        key = _vector_key(x)
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
    if isinstance(value, _SharedTable):
        return id(value)
    if hasattr(value, "__dict__"):
        return (type(value).__name__, *((name, _key(entry)) for name, entry in sorted(vars(value).items())))
    # The bits, since 0.0 equals -0.0 but is not the same.
    return value.hex() if isinstance(value, float) else value


def _vector_key(vector: np.ndarray) -> Any:
    """Equal for vectors that are the same in the file; numbers of another type may have the same bytes.

    Bytes of buffers are kept apart: only they are aligned.
    """
    return ("buffer" if vector.dtype == np.uint8 else vector.itemsize, vector.tobytes())


def _vectors(value: Any) -> Iterator[np.ndarray]:
    """Every vector of numbers in lists and tables, those of no element left out."""
    if isinstance(value, np.ndarray):
        if value.size:
            yield value
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _vectors(entry)
    elif hasattr(value, "__dict__"):
        yield from _vectors(list(vars(value).values()))
