"""Reading a `.tflite` file as objects, for everything here that parses or rewrites one.

Invariant: bytes that are no TFLite model are one `ModelError`, raised here, and never a stray exception of the parser.
Left out: writing (see `slim.py`), and running (see `tfcompress.measure`).
"""

from __future__ import annotations

import functools
import struct
import zipfile
from io import BytesIO
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.errors import ModelError

FILE_IDENTIFIER = b"TFL3"


def parse(content: bytes) -> schema.ModelT:
    """The model in `content`, with buffers and options that lie behind the flatbuffer (large files) moved into it.

    Args:
        content: The bytes of a `.tflite` file.

    Returns:
        The object tree of the TFLite schema; vectors of numbers are read-only NumPy arrays.

    Raises:
        ModelError: If `content` is no TFLite model.
    """
    if len(content) < 8 or bytes(content[4:8]) != FILE_IDENTIFIER:
        raise ModelError(f"Not a TFLite model: {len(content)} bytes that do not hold the file identifier 'TFL3'.")
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    except (struct.error, IndexError, TypeError, ValueError) as error:
        raise ModelError(f"Not a readable TFLite model of {len(content)} bytes (truncated?): {error}") from error
    if not model.subgraphs or model.buffers is None or model.operatorCodes is None:
        raise ModelError("Not a TFLite model: it holds no graph.")
    try:
        _move_in(model, content)
    except ValueError as error:
        raise ModelError(f"Not a readable TFLite model of {len(content)} bytes (truncated?): {error}") from error
    return model


def _move_in(model: schema.ModelT, content: bytes) -> None:
    # Offsets 0 and 1 mean that the data lies in the flatbuffer itself.
    for buffer in model.buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0
    for operator in (operator for graph in model.subgraphs for operator in graph.operators or ()):
        if operator.largeCustomOptionsOffset > 1:
            size, offset = operator.largeCustomOptionsSize, operator.largeCustomOptionsOffset
            operator.customOptions = np.frombuffer(content, np.uint8, size, offset)
        operator.largeCustomOptionsOffset = operator.largeCustomOptionsSize = 0


def has_appended_files(content: bytes) -> bool:
    """Whether a ZIP archive (the associated files of TFLite Metadata) follows the flatbuffer."""
    return zipfile.is_zipfile(BytesIO(content))


@functools.cache
def _names(enum: type) -> dict[int, str]:
    return {value: name for name, value in vars(enum).items() if isinstance(value, int)}


def type_name(tensor_type: int) -> str:
    """A tensor type in lower case, such as "int8"."""
    return _names(schema.TensorType).get(tensor_type, f"type {tensor_type}").lower()


def op_name(code: schema.OperatorCodeT) -> str:
    """The name of an operation, such as "CONV_2D"; a custom one by its own name, such as "FlexElu"."""
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    if builtin == schema.BuiltinOperator.CUSTOM and code.customCode:
        return code.customCode.decode(errors="replace")
    return _names(schema.BuiltinOperator).get(builtin, f"BUILTIN_{builtin}")


def is_custom(code: schema.OperatorCodeT) -> bool:
    """Whether an operation is Flex (run by TensorFlow itself) or custom, and so no part of the runtime."""
    return max(code.builtinCode, code.deprecatedBuiltinCode) == schema.BuiltinOperator.CUSTOM


def listed(values: Any) -> Any:
    """A vector of the file, or nothing to go over where the file has none."""
    return values if values is not None else ()


def tensor_name(tensor: schema.TensorT) -> str:
    """A tensor's name, empty where it was stripped."""
    return tensor.name.decode(errors="replace") if tensor.name else ""


def input_names(model: schema.ModelT) -> dict[int, str]:
    """Name of each input by tensor index, in the order of the graph: of the signature, else of the tensor."""
    names = {int(index): tensor_name(model.subgraphs[0].tensors[index]) for index in model.subgraphs[0].inputs}
    return names | {index: signed[0] for index, signed in _signature_names(model, "inputs").items()}


def outputs(model: schema.ModelT) -> list[tuple[int, str]]:
    """Tensor index and name of each output, in the order of the graph: of the signature, else of the tensor.

    A model that gives one tensor twice has two outputs of one index.
    """
    indices = [int(index) for index in model.subgraphs[0].outputs]
    names = {index: [tensor_name(model.subgraphs[0].tensors[index])] * indices.count(index) for index in indices}
    for index, signed in _signature_names(model, "outputs").items():
        names[index] = signed if len(signed) == indices.count(index) else names[index]
    return [(index, names[index].pop(0)) for index in indices]


def input_ranges(model: schema.ModelT) -> dict[str, tuple[float, float]]:
    """The (low, high) that each int8 input covers, by name; also of float32 inputs that a QUANTIZE makes int8."""
    graph = model.subgraphs[0]
    targets = {}
    for operator in graph.operators if graph.operators is not None else ():
        if op_name(model.operatorCodes[operator.opcodeIndex]) == "QUANTIZE":
            targets[int(operator.inputs[0])] = int(operator.outputs[0])
    ranges = {}
    for index, name in input_names(model).items():
        tensor = graph.tensors[targets.get(index, index)]
        if tensor.type == schema.TensorType.INT8 and tensor.quantization is not None:
            scale, zero_point = float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])
            ranges[name] = ((-128 - zero_point) * scale, (127 - zero_point) * scale)
    return ranges


def index_limits(model: schema.ModelT) -> dict[str, int]:
    """How many rows each input of whole numbers can choose from, by name, where it looks up a table."""
    graph = model.subgraphs[0]
    # Where a tensor of the graph is the input itself, or its numbers in another type or shape.
    origins = dict(input_names(model))
    limits: dict[str, int] = {}
    for operator in graph.operators if graph.operators is not None else ():
        name = op_name(model.operatorCodes[operator.opcodeIndex])
        inputs = [int(index) for index in operator.inputs]
        # Keras counts a negative index from the end, and so selects between it and another number.
        handed_on = {"CAST": inputs[:1], "RESHAPE": inputs[:1], "EXPAND_DIMS": inputs[:1], "SQUEEZE": inputs[:1],
                     "SELECT": inputs[1:], "SELECT_V2": inputs[1:]}.get(name, [])  # fmt: skip
        for index in handed_on:
            if index in origins:
                origins[int(operator.outputs[0])] = origins[index]
        if name in ("GATHER", "EMBEDDING_LOOKUP"):
            table, indices = (inputs[0], inputs[1]) if name == "GATHER" else (inputs[1], inputs[0])
            if indices in origins and table not in origins:
                rows = int(graph.tensors[table].shape[0])
                limits[origins[indices]] = min(rows, limits.get(origins[indices], rows))
    return limits


def _signature_names(model: schema.ModelT, kind: str) -> dict[int, list[str]]:
    """The names that the signature of the first graph gives to inputs or outputs, by tensor index."""
    names: dict[int, list[str]] = {}
    for signature in model.signatureDefs or ():
        if signature.subgraphIndex == 0:
            for entry in getattr(signature, kind) or ():
                names.setdefault(int(entry.tensorIndex), []).append(entry.name.decode())
    return names
