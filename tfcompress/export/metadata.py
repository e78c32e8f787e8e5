"""Class labels and normalization inside a `.tflite` file, as Android's metadata reader finds them.

TensorFlow Lite Metadata is a second flatbuffer (file identifier "M001") in a buffer of the model that an entry called
`TFLITE_METADATA` names; label files are a ZIP archive behind the model. The scales and zero points that the reader
gives are those of the model's own tensors. The schema is metadata_schema.fbs of
https://github.com/tensorflow/tflite-support, version 1.0; its Python package is no longer maintained, so the few tables
that are needed are written here by their numbers.

Invariant: the model computes the same; an earlier `TFLITE_METADATA` is replaced. Left out: reading it back (the tests
do), tokenizers, score calibration and bounding boxes.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.errors import ModelError
from tfcompress.export import flatbuffer
from tfcompress.export.packing import pack

ENTRY = b"TFLITE_METADATA"
_IDENTIFIER = b"M001"
# All tables and fields that are written here exist since the first version.
_MIN_PARSER_VERSION = "1.0.0"
_TENSOR_AXIS_LABELS = 2
_FEATURE, _IMAGE = 1, 2  # types of content
_RGB, _GRAYSCALE = 1, 2
_NORMALIZATION = 1  # type of process unit
# A fixed time, so that equal models give equal files.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class _Byte:
    value: int


@dataclasses.dataclass(frozen=True)
class _Table:
    """A table of a flatbuffer: values by the number of their field; a table, a list, a string or a number each."""

    fields: dict[int, Any]


def add_metadata(
    content: bytes,
    *,
    name: str,
    description: str = "",
    class_names: Sequence[str] | None = None,
    labels_name: str = "labels.txt",
    normalization: tuple[float, float] | None = None,
) -> bytes:
    """Adds TensorFlow Lite Metadata to a `.tflite` file.

    Args:
        content: The bytes of the file.
        name: Of the model, for people.
        description: Of the model, for people.
        class_names: One name for each value of the first output; they become the label file of that output.
        labels_name: Name of the label file in the archive.
        normalization: (mean, std): what turns a pixel of 0 to 255 into the input of the Keras model,
            `(pixel - mean) / std`. None for inputs that are no images.

    Returns:
        The bytes of the file with metadata.

    Raises:
        ModelError: If `content` is no TFLite model, or carries associated files already.

    Example:
        >>> from pathlib import Path
        >>> content = Path("model.tflite").read_bytes()   # doctest: +SKIP
        >>> with_labels = add_metadata(content, name="digits", class_names=["zero", "one"])   # doctest: +SKIP
    """
    if flatbuffer.has_appended_files(content):
        raise ModelError("The TFLite file carries associated files already. Give the file without metadata.")
    model = flatbuffer.parse(content)
    label_file = None
    if class_names is not None:
        label_file = _Table({0: labels_name, 1: "One class name a line.", 2: _Byte(_TENSOR_AXIS_LABELS)})
    tensors = model.subgraphs[0].tensors
    inputs = [_input(text, tensors[index], normalization) for index, text in flatbuffer.input_names(model).items()]
    outputs = [
        _tensor(text, files=[label_file] if label_file is not None and position == 0 else [])
        for position, (_, text) in enumerate(flatbuffer.outputs(model))
    ]
    graph = _Table({2: inputs, 3: outputs})
    described = _Table({0: name, 1: description, 3: [graph], 7: _MIN_PARSER_VERSION})
    content = _embed(model, _written(described))
    if class_names is None:
        return content
    target = io.BytesIO(content)
    with zipfile.ZipFile(target, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(labels_name, _ZIP_TIME), "".join(f"{label}\n" for label in class_names))
    return target.getvalue()


def _input(name: str, tensor: schema.TensorT, normalization: tuple[float, float] | None) -> _Table:
    shape = [int(size) for size in tensor.shape] if tensor.shape is not None else []
    if normalization is None:
        return _tensor(name)
    mean, std = (np.array([value], "<f4") for value in normalization)
    unit = _Table({0: _Byte(_NORMALIZATION), 1: _Table({0: mean, 1: std})})
    if len(shape) != 4 or shape[3] not in (1, 3):
        return _tensor(name, units=[unit])
    size = _Table({0: shape[2], 1: shape[1]})
    image = _Table({0: _Byte(_RGB if shape[3] == 3 else _GRAYSCALE), 1: size})
    return _tensor(name, content=(_IMAGE, image), units=[unit])


def _tensor(
    name: str,
    *,
    content: tuple[int, _Table] = (_FEATURE, _Table({})),
    units: Sequence[_Table] = (),
    files: Sequence[_Table] = (),
) -> _Table:
    kind, properties = content
    fields: dict[int, Any] = {0: name, 3: _Table({0: _Byte(kind), 1: properties})}
    if units:
        fields[4] = list(units)
    if files:
        fields[6] = list(files)
    return _Table(fields)


def _embed(model: schema.ModelT, described: bytes) -> bytes:
    data = np.frombuffer(described, np.uint8)
    earlier = [entry for entry in model.metadata or () if entry.name == ENTRY]
    if earlier:
        model.buffers[earlier[0].buffer].data = data
    else:
        model.metadata = [*(model.metadata or ()), schema.MetadataT(name=ENTRY, buffer=len(model.buffers))]
        model.buffers = [*model.buffers, schema.BufferT(data=data)]
    return pack(model)


def _written(root: _Table) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(_write(builder, root), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _write(builder: flatbuffers.Builder, value: Any) -> int:
    """Writes a table, a list of tables, a vector of floats or a string; returns its offset."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, np.ndarray):
        return builder.CreateNumpyVector(value)
    if isinstance(value, list):
        offsets = [_write(builder, entry) for entry in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    # What a table refers to must be written before the table is begun.
    children = {field: _write(builder, entry) for field, entry in value.fields.items() if not _is_inline(entry)}
    builder.StartObject(max(value.fields, default=-1) + 1)
    for field, entry in value.fields.items():
        if isinstance(entry, _Byte):
            builder.PrependUint8Slot(field, entry.value, 0)
        elif isinstance(entry, int):
            builder.PrependUint32Slot(field, entry, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(field, children[field], 0)
    return builder.EndObject()


def _is_inline(value: Any) -> bool:
    return isinstance(value, (_Byte, int))
