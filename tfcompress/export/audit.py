"""What a `.tflite` file really computes: every operation, its types, and every constant.

The converter leaves operations in float without a word, also when it is told not to. So the file is parsed.

Invariant: a file that passes in a mode of integers has no operation that reads or writes a float tensor, but for the
conversion at its inputs and outputs where float32 ones were asked for, and for operations of layers that were left in
float on purpose, each of which is named. What each mode demands is in `modes.py`. Left out: whether the numbers are
right, see `parity.py`; and which operations are those of a layer, see `float_layers.py`.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.errors import ExportError, InvalidArgumentError
from tfcompress.export import flatbuffer
from tfcompress.export.modes import IO_TYPES, MODES, file_io
from tfcompress.export.repair import lstm_mismatches

FLOAT_TYPES = frozenset({"float32", "float16", "bfloat16", "float64"})
_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")

# Which input of an operation is its kernel. The bias is the one after it.
KERNEL_INPUT = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "TRANSPOSE_CONV": 1, "CONV_3D": 1}
NUMPY_TYPES = {
    "float32": "<f4", "float16": "<f2", "float64": "<f8", "int8": "i1", "uint8": "u1", "int16": "<i2",
    "uint16": "<u2", "int32": "<i4", "uint32": "<u4", "int64": "<i8", "uint64": "<u8", "bool": "?",
}  # fmt: skip
REMEDIES = {
    "ELU": "use ReLU, ReLU6, HardSwish or LeakyReLU, which have int8 kernels",
    "SQUARE": "`quantize_post_training` and `quantize_aware` write it in integers; in code of your own, write `x * x`",
    "NEG": "`quantize_post_training` and `quantize_aware` write it in integers; in code of your own, write `0.0 - x`",
    "CONV_3D": "use 2D convolutions, or export with mode='float32'",
    "FAKE_QUANT": "the converter could not use this fake-quant: place it on a kernel, an input or an output",
}
_LSTM_FINDING = "UNIDIRECTIONAL_SEQUENCE_LSTM with an output in another scale than its state, off by their ratio,"
# Modes that are about the type of weights.
_WEIGHT_REMEDIES = {
    "float16": "use mode='float32', which is the same file here",
    "dynamic": "the converter leaves kernels of fewer than 1,024 values in float: use mode='float16' or 'int8'",
    "int4": "only convolutions and dense layers between the first and the last one can have 4 bits: use mode='int8'",
}
DEFAULT_REMEDY = (
    "after quantization-aware training, a fake-quant layer behind it; otherwise operations that have int8 kernels, or "
    "mode='float32'"
)


@dataclasses.dataclass(frozen=True)
class Constant:
    """One constant tensor of the file.

    Args:
        name: Its name, empty in a stripped file.
        op: The operation that reads it, such as "CONV_2D"; the first one if there are more.
        role: "kernel", "bias" or "other".
        shape: Its shape as the file has it; a convolution's is `(filters, height, width, channels)`.
        dtype: Such as "int8" or "int4".
        zeros: Share of its values that are zero (for quantized ones: equal to the zero point), in [0, 1].
        num_bytes: What it takes in the file, without its quantization parameters.
    """

    name: str
    op: str
    role: str
    shape: tuple[int, ...]
    dtype: str
    zeros: float
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class Audit:
    """What `audit_tflite` found; `findings` holds a cause with its remedy for each reason not to pass.

    Args:
        mode: What the file was checked for, a key of `MODES`.
        ops: Number of operations by name, over all subgraphs.
        float_ops: Operations that compute in float, in words.
        flex_ops: Flex and custom operations, in words.
        quantize_ops: All QUANTIZE and DEQUANTIZE operations, in words, expected ones too.
        findings: Why the file does not pass.
        weights: Every constant tensor.
        left_in_float: Operations that compute in float on purpose, in words, with the layer that was left in float.
    """

    mode: str
    ops: dict[str, int]
    float_ops: tuple[str, ...]
    flex_ops: tuple[str, ...]
    quantize_ops: tuple[str, ...]
    findings: tuple[str, ...]
    weights: tuple[Constant, ...]
    left_in_float: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether there is no finding."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can hold."""
        return {**dataclasses.asdict(self), "passed": self.passed}

    def raise_if_failed(self, path: str = "The file") -> None:
        """Raises ExportError with all findings as causes, if there are any."""
        if not self.passed:
            raise ExportError(f"{path} is not what mode {self.mode!r} promises.", self.findings)


def audit_tflite(
    content: bytes, *, mode: str = "int8", io: str | None = None, in_float: Mapping[int, str] | None = None
) -> Audit:
    """Parses a `.tflite` file and checks that it computes as its mode promises.

    Args:
        content: The bytes of the file.
        mode: A mode of `export_tflite`. In all of them: only operations of the runtime. "float32": none of them
            quantized. "float16", "dynamic": floats between operations, and weights of the mode's type. The others:
            integers throughout.
        io: Type that the inputs and outputs of a file of integers shall have; by default the mode's own.
        in_float: Operations that may compute in float all the same, by their place in the main graph, each with the
            Keras layer that was left in float; `float_operations` finds them.

    Returns:
        The audit. A file that does not pass is no error here; see `Audit.raise_if_failed`.

    Raises:
        InvalidArgumentError: If `mode` or `io` is none of the above.
        ModelError: If `content` is no TFLite model.
    """
    if mode not in MODES:
        raise InvalidArgumentError("mode", f"one of {', '.join(MODES)}", mode)
    if io is not None and io not in IO_TYPES:
        raise InvalidArgumentError("io", f"one of {', '.join(IO_TYPES)}", io)
    io = file_io(mode, io)
    model = flatbuffer.parse(content)
    ops: collections.Counter[str] = collections.Counter()
    float_ops: list[str] = []
    flex_ops: list[str] = []
    quantize_ops: list[str] = []
    # Conversions between int8 and float only surround the cause, so they are named last.
    findings: list[str] = []
    conversions: list[str] = []
    on_purpose: list[str] = []
    for step in _steps(model, in_float or {}):
        ops[step.name] += 1
        if step.is_custom:
            flex_ops.append(str(step))
            findings.append(f"{step} is no operation of the LiteRT runtime; remedy: {_remedy(step.name)}")
        if step.name in _CONVERSIONS:
            quantize_ops.append(str(step))
            if not (step.is_expected_conversion(mode, io) or step.left_in_float):
                conversions.append(f"{step} is unexpected in mode '{mode}'; remedy: have both of its sides in one type")
        elif step.touches_float:
            float_ops.append(str(step))
            if MODES[mode].is_integer and step.left_in_float:
                on_purpose.append(f"{step} computes in float, since layer '{step.left_in_float}' was left in float")
            elif MODES[mode].is_integer and not step.is_custom:
                findings.append(f"{step} computes in float; remedy: {_remedy(step.name)}")
    weights = tuple(constants(model))
    findings += [*_border_findings(model, mode, io), *conversions, *_weight_findings(weights, mode)]
    for name in lstm_mismatches(model):
        findings.append(f"{_LSTM_FINDING} makes '{name}'; remedy: report it, and leave out the layer that merges it")
    return Audit(mode, dict(sorted(ops.items())), tuple(float_ops), tuple(flex_ops), tuple(quantize_ops),
                 tuple(findings), weights, tuple(on_purpose))  # fmt: skip


def constants(model: schema.ModelT) -> list[Constant]:
    """Every constant tensor of a parsed model that some operation reads, in the order of the file."""
    found: list[Constant] = []
    for graph in model.subgraphs:
        readers: dict[int, tuple[str, str]] = {}
        for operator in _vector(graph.operators):
            name = flatbuffer.op_name(model.operatorCodes[operator.opcodeIndex])
            for position, index in enumerate(_vector(operator.inputs)):
                kernel = KERNEL_INPUT.get(name, -2)
                role = {kernel: "kernel", kernel + 1: "bias"}.get(position, "other")
                readers.setdefault(int(index), (name, role))
        for index, tensor in enumerate(graph.tensors):
            data = model.buffers[tensor.buffer].data
            if data is None or len(data) == 0 or index not in readers:
                continue
            dtype = flatbuffer.type_name(tensor.type)
            op, role = readers[index]
            shape = tuple(int(size) for size in _vector(tensor.shape))
            zeros = _zero_fraction(np.asarray(data, np.uint8), dtype, shape, tensor.quantization)
            found.append(Constant(flatbuffer.tensor_name(tensor), op, role, shape, dtype, zeros, len(data)))
    return found


def _steps(model: schema.ModelT, in_float: Mapping[int, str]) -> Iterator[_Step]:
    """Every operation of the file; the body of a loop is left in float with its loop."""
    whole: dict[int, str] = {}
    for at, graph in enumerate(model.subgraphs):
        operators = _vector(graph.operators)
        layers = in_float if at == 0 else dict.fromkeys(range(len(operators)), whole[at]) if at in whole else {}
        steps = [_Step(model, graph, operator, layers.get(place)) for place, operator in enumerate(operators)]
        for step in steps:
            if step.name in _CONVERSIONS:
                step.left_in_float = step.beside_float(steps)
            elif step.left_in_float is not None:
                whole |= dict.fromkeys(step.subgraphs, step.left_in_float)
        yield from steps


class _Step:
    """One operation with its tensors at hand; in words it names its first output, or its place where names are gone."""

    def __init__(
        self, model: schema.ModelT, graph: schema.SubGraphT, operator: schema.OperatorT, left_in_float: str | None
    ):
        self.left_in_float = left_in_float
        code = model.operatorCodes[operator.opcodeIndex]
        self.name = flatbuffer.op_name(code)
        self.is_custom = flatbuffer.is_custom(code)
        self._graph, self._buffers = graph, model.buffers
        self._inputs = [int(index) for index in _vector(operator.inputs) if index >= 0]
        self._outputs = [int(index) for index in _vector(operator.outputs) if index >= 0]
        options = vars(operator.builtinOptions) if operator.builtinOptions is not None else {}
        # Loops and branches name the graphs that they run.
        self.subgraphs = [int(value) for key, value in options.items() if key.lower().endswith("subgraphindex")]

    def _types(self, indices: list[int]) -> list[str]:
        return [flatbuffer.type_name(self._graph.tensors[index].type) for index in indices]

    def _is_constant(self, index: int) -> bool:
        data = self._buffers[self._graph.tensors[index].buffer].data
        return data is not None and len(data) > 0

    def beside_float(self, steps: Sequence[_Step]) -> str | None:
        """The layer that a conversion leads to or from, where all of these operations were left in float."""
        if self.name == "DEQUANTIZE":
            others = [step for step in steps if set(step._inputs) & set(self._outputs)]
        else:
            others = [step for step in steps if set(step._outputs) & set(self._inputs)]
        layers = [None if step.name in _CONVERSIONS else step.left_in_float for step in others]
        return layers[0] if layers and None not in layers else None

    @property
    def touches_float(self) -> bool:
        return any(name in FLOAT_TYPES for name in self._types(self._inputs + self._outputs))

    def is_expected_conversion(self, mode: str, io: str) -> bool:
        """Whether a QUANTIZE or DEQUANTIZE belongs there: at a float32 border, or from integers to integers.

        In modes of floats it is there for a constant that an operation cannot read in its own type.
        """
        if not MODES[mode].is_integer:
            return mode != "float32" and self.name == "DEQUANTIZE" and all(map(self._is_constant, self._inputs))
        if not self.touches_float:
            return True
        if io != "float32":
            return False
        graph = self._graph
        if self.name == "QUANTIZE":
            return all(index in graph.inputs for index in self._inputs)
        return all(index in graph.outputs for index in self._outputs)

    def __str__(self) -> str:
        types = f"({', '.join(self._types(self._inputs))} -> {', '.join(self._types(self._outputs))})"
        name = flatbuffer.tensor_name(self._graph.tensors[self._outputs[0]]) if self._outputs else ""
        place = name.split(";")[0] or f"tensor {self._outputs[0] if self._outputs else '?'}"
        return f"{self.name} {types} that makes '{place}'"


def _border_findings(model: schema.ModelT, mode: str, io: str) -> Iterator[str]:
    """Inputs and outputs of a file of integers with another type than asked for; indices and bools may stay."""
    if not MODES[mode].is_integer:
        return
    tensors = model.subgraphs[0].tensors
    borders = [("input", flatbuffer.input_names(model).items()), ("output", flatbuffer.outputs(model))]
    for kind, names in borders:
        for index, name in names:
            dtype = flatbuffer.type_name(tensors[index].type)
            if dtype != io and dtype in FLOAT_TYPES | {"int8", "uint8", "int16"}:
                yield (
                    f"{kind} '{name}' is {dtype} where {io} was asked for; remedy: a fake-quant layer at the {kind}, "
                    "or float32 there with io='float32'"
                )


def _weight_findings(weights: Sequence[Constant], mode: str) -> Iterator[str]:
    """A file whose weights have none of the mode's type is a file of another mode."""
    wanted = MODES[mode].weights
    others = {weight.dtype for weight in weights if weight.dtype in FLOAT_TYPES or weight.role == "kernel"}
    if mode in _WEIGHT_REMEDIES and others and not any(weight.dtype == wanted for weight in weights):
        yield f"no weight is {wanted}, all are {', '.join(sorted(others))}; remedy: {_WEIGHT_REMEDIES[mode]}"


def _zero_fraction(
    data: np.ndarray, dtype: str, shape: tuple[int, ...], quantization: schema.QuantizationParametersT | None
) -> float:
    if dtype == "int4":
        # Two values in a byte, the earlier one in the low half; an odd count leaves the last half unused.
        halves = np.stack([data & 0x0F, data >> 4], axis=-1).reshape(-1)[: math.prod(shape)]
        return float(np.mean(halves == 0))
    if dtype not in NUMPY_TYPES:
        return 0.0
    values = data.view(NUMPY_TYPES[dtype])
    if values.size != math.prod(shape):
        # A tensor in sparse form holds its non-zero values only.
        return 1.0 - float(np.count_nonzero(values)) / math.prod(shape)
    if quantization is None or quantization.zeroPoint is None or len(quantization.zeroPoint) == 0:
        return float(np.mean(values == 0))
    zero_points = quantization.zeroPoint
    if len(zero_points) == 1:
        return float(np.mean(values == zero_points[0]))
    along = [-1 if axis == quantization.quantizedDimension else 1 for axis in range(len(shape))]
    return float(np.mean(values.reshape(shape) == zero_points.reshape(along)))


def _remedy(name: str) -> str:
    return REMEDIES.get(name.removeprefix("Flex").upper(), DEFAULT_REMEDY)


def _vector(values: Any) -> Any:
    return values if values is not None else ()
