"""Whether a `.tflite` file keeps the rules of Coral's Edge TPU compiler, operation by operation.

The rules are those of Coral's "TensorFlow models on the Edge TPU" (https://coral.ai/docs/edgetpu/models-intro/, runtime
14): 8-bit tensors of fixed sizes, constant parameters, at most three dimensions above 1, and a list of operations with
their limitations. The compiler runs everything from the first operation that breaks a rule on the CPU.

Invariant: a file without a violation here holds nothing that Coral's page excludes. Left out: what only the compiler
knows (the size of its memory, and operations "not mapped due to some unspecified limitation").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.export import flatbuffer
from tfcompress.export.audit import KERNEL_INPUT

_DATA_TYPES = ("int8", "uint8")
# Biases, shapes and axes.
_CONSTANT_TYPES = ("int8", "uint8", "int32", "int64")
_MOST_SOFTMAX = 16_000
SUPPORTED = {
    "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "EXPAND_DIMS", "FULLY_CONNECTED",
    "L2_NORMALIZATION", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "PACK", "PAD", "PRELU",
    "QUANTIZE", "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SLICE", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT", "SQUARED_DIFFERENCE",
    "SQUEEZE", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TRANSPOSE", "TRANSPOSE_CONV", "UNIDIRECTIONAL_SEQUENCE_LSTM",
}  # fmt: skip


def edgetpu_violations(content: bytes) -> tuple[str, ...]:
    """Checks a `.tflite` file against the rules of the Edge TPU.

    Args:
        content: The bytes of the file.

    Returns:
        One line for each violation with its remedy; none if the file keeps all rules.

    Raises:
        ModelError: If `content` is no TFLite model.

    Example:
        >>> from pathlib import Path
        >>> edgetpu_violations(Path("model_int8.tflite").read_bytes())   # doctest: +SKIP
        ()
    """
    model = flatbuffer.parse(content)
    found: dict[str, None] = {}
    if len(model.subgraphs) > 1:
        found["the file has several graphs; remedy: a model without loops and conditions"] = None
    for graph in model.subgraphs:
        for number, operator in enumerate(flatbuffer.listed(graph.operators)):
            operation = _Operation(model, graph, operator, number)
            for reason in operation.violations():
                found[f"{operation}: {reason}"] = None
    return tuple(found)


class _Operation:
    """One operation with what its rules ask about."""

    def __init__(self, model: schema.ModelT, graph: schema.SubGraphT, operator: schema.OperatorT, number: int):
        self.kind = flatbuffer.op_name(model.operatorCodes[operator.opcodeIndex])
        self.options = operator.builtinOptions
        self._model = model
        self._number = number
        self.inputs = [graph.tensors[index] if index >= 0 else None for index in flatbuffer.listed(operator.inputs)]
        self.outputs = [graph.tensors[index] for index in flatbuffer.listed(operator.outputs)]

    def __str__(self) -> str:
        return f"{self.kind} (operation {self._number})"

    def violations(self) -> Iterator[str]:
        if self.kind not in SUPPORTED:
            yield "the Edge TPU has no such operation; remedy: layers made of the operations in Coral's list"
        for tensor in [*self.inputs, *self.outputs]:
            if tensor is not None:
                yield from self._tensor_violations(tensor)
        kernel = KERNEL_INPUT.get(self.kind)
        if kernel is not None:
            parameters = [tensor for tensor in self.inputs[kernel : kernel + 2] if tensor is not None]
            if self.kind == "TRANSPOSE_CONV":
                parameters = [tensor for position, tensor in enumerate(self.inputs) if position in (1, 3) and tensor]
            if any(self.constant(tensor) is None for tensor in parameters):
                yield "its kernel or bias is computed while it runs; remedy: constant weights"
        if self.kind in _RULES:
            yield from _RULES[self.kind](self)

    def _tensor_violations(self, tensor: schema.TensorT) -> Iterator[str]:
        dtype, shape = flatbuffer.type_name(tensor.type), _shape(tensor)
        constant = self.constant(tensor) is not None
        if dtype not in (_CONSTANT_TYPES if constant else _DATA_TYPES):
            remedy = "int8 throughout: mode='int8' with int8 inputs and outputs, and weights of 8 bits"
            yield f"a tensor of {dtype}, which the Edge TPU does not compute with; remedy: {remedy}"
        if tensor.shapeSignature is not None and any(size < 0 for size in tensor.shapeSignature):
            sizes = [int(size) for size in tensor.shapeSignature]
            yield f"a tensor of unknown size {sizes}; remedy: fixed sizes, batch 1"
        if not constant and math.prod(shape[:-3]) > 1:
            yield f"a tensor of shape {shape}, where only the last three sizes may be above 1; remedy: batch 1"

    def constant(self, tensor: schema.TensorT) -> np.ndarray | None:
        """The bytes of a constant, None for a tensor that is computed."""
        data = self._model.buffers[tensor.buffer].data
        return None if data is None or len(data) == 0 else np.asarray(data, np.uint8)

    def integers(self, position: int) -> list[int]:
        """The values of a constant integer input, such as axes; none if it is computed."""
        tensor = self.inputs[position] if position < len(self.inputs) else None
        data = None if tensor is None else self.constant(tensor)
        if tensor is None or data is None:
            return []
        return [int(value) for value in data.view("<i8" if flatbuffer.type_name(tensor.type) == "int64" else "<i4")]

    @property
    def shape(self) -> list[int]:
        return _shape(self.inputs[0])

    def axes(self, position: int = 1) -> list[int]:
        return [axis % max(len(self.shape), 1) for axis in self.integers(position)]


def _no_activation(operation: _Operation) -> Iterator[str]:
    if operation.options is not None and operation.options.fusedActivationFunction:
        yield "has a fused activation; remedy: none in or right behind it"


def _concatenation(operation: _Operation) -> Iterator[str]:
    yield from _no_activation(operation)
    constants = [tensor for tensor in operation.inputs if operation.constant(tensor) is not None]
    zero = all(_is_zero(operation, tensor) for tensor in constants)
    if constants and not (zero and len(operation.inputs) == 2):
        yield "joins a constant, which must be all zeros and one of two inputs; remedy: no constants in it"


def _is_zero(operation: _Operation, tensor: schema.TensorT) -> bool:
    zero_point = 0
    if tensor.quantization is not None and tensor.quantization.zeroPoint is not None:
        zero_point = int(tensor.quantization.zeroPoint[0])
    return bool(np.all(operation.constant(tensor).view(np.int8) == np.uint8(zero_point & 0xFF).view(np.int8)))  # type: ignore[union-attr]


def _dilation(operation: _Operation) -> Iterator[str]:
    if operation.options.dilationWFactor != operation.options.dilationHFactor:
        yield "has different dilations in x and y; remedy: the same in both"


def _fully_connected(operation: _Operation) -> Iterator[str]:
    if operation.options.weightsFormat:
        yield "has weights in another than the default format; remedy: a plain Dense layer"
    if math.prod(_shape(operation.outputs[0])[:-1]) > 1:
        yield "has an output of more than one dimension; remedy: flatten before Dense, or a 1x1 convolution"


def _mean(operation: _Operation) -> Iterator[str]:
    yield from _no_batch_axis(operation)
    shape = operation.shape
    if len(shape) == 4 and 3 in operation.axes() and shape[3] % 4:
        yield "averages channels whose number is no multiple of 4; remedy: a multiple of 4"


def _no_batch_axis(operation: _Operation) -> Iterator[str]:
    if len(operation.shape) > 1 and 0 in operation.axes():
        yield "works along the batch dimension; remedy: other axes"


def _pack(operation: _Operation) -> Iterator[str]:
    if operation.options.axis == 0 and len(operation.shape) > 1:
        yield "stacks along the batch dimension; remedy: another axis"


def _pad(operation: _Operation) -> Iterator[str]:
    if len(operation.shape) == 4 and any(operation.integers(1)[:2]):
        yield "pads the batch dimension; remedy: pad the others only"


def _prelu(operation: _Operation) -> Iterator[str]:
    if math.prod(_shape(operation.inputs[1])[:-1]) > 1:
        yield "has slopes of more than one dimension; remedy: shared_axes=[1, 2]"


def _softmax(operation: _Operation) -> Iterator[str]:
    if math.prod(operation.shape[:-1]) > 1 or math.prod(operation.shape) > _MOST_SOFTMAX:
        yield f"is of more than one dimension or {_MOST_SOFTMAX:,} values; remedy: export logits"


def _split(operation: _Operation) -> Iterator[str]:
    if 0 in [axis % max(len(_shape(operation.inputs[1])), 1) for axis in operation.integers(0)]:
        yield "splits the batch dimension; remedy: another axis"


def _squeeze(operation: _Operation) -> Iterator[str]:
    shape, squeezed = operation.shape, flatbuffer.listed(operation.options.squeezeDims)
    if any(math.prod(shape[: axis % len(shape)]) > 1 for axis in squeezed):
        yield "drops a dimension behind one above 1; remedy: Reshape or Flatten"


def _strided_slice(operation: _Operation) -> Iterator[str]:
    if any(stride != 1 for stride in operation.integers(3)):
        yield "has a stride that is not 1; remedy: strides of 1"
    if operation.options.ellipsisMask or operation.options.newAxisMask:
        yield "has an ellipsis or a new axis; remedy: plain slices"


_RULES: dict[str, Callable[[_Operation], Iterator[str]]] = {
    "AVERAGE_POOL_2D": _no_activation,
    "MAX_POOL_2D": _no_activation,
    "CONCATENATION": _concatenation,
    "CONV_2D": _dilation,
    "DEPTHWISE_CONV_2D": _dilation,
    "FULLY_CONNECTED": _fully_connected,
    "MEAN": _mean,
    "SUM": _no_batch_axis,
    "REDUCE_MAX": _no_batch_axis,
    "REDUCE_MIN": _no_batch_axis,
    "PACK": _pack,
    "PAD": _pad,
    "PRELU": _prelu,
    "SOFTMAX": _softmax,
    "SPLIT": _split,
    "SQUEEZE": _squeeze,
    "STRIDED_SLICE": _strided_slice,
}


def _shape(tensor: Any) -> list[int]:
    return [] if tensor is None or tensor.shape is None else [int(size) for size in tensor.shape]
