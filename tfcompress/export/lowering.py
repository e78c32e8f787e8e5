"""Integers, of 16 bits too, from a float file whose conversions say where: what the converter cannot make itself.

With fake quantization of 16 bits the converter (TensorFlow 2.21) gives sigmoid, softmax, tanh and constants 8 bits and
then refuses its own graph; it refuses concatenations; and its biases have 32 bits, with which the runtime adds up in 32
bits, which overflow, and which its depthwise kernels refuse. But without quantization it writes a float file with each
fake quantization as a pair of QUANTIZE and DEQUANTIZE, everything folded and fused. From that file integers are made
here: each tensor gets the scale of its pair, each kernel its integers of 8 bits, each bias integers of 64 bits. Where
numbers of 8 and of 16 bits meet, a QUANTIZE from integers to integers stands between.

Invariant: every scale is one that training had, or the one that the runtime demands. An operation without a scale for
all that it reads and makes stays in float, which the audit of the file reports. Left out: operations without kernels of
16 bits, and the versions of the operations, which stay those of floats (the runtime looks at the types).
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.errors import ExportError
from tfcompress.export import flatbuffer
from tfcompress.export.packing import pack

# Which inputs of an operation are its data, its kernel and its bias.
_SUMS = {
    "CONV_2D": (0, 1, 2), "DEPTHWISE_CONV_2D": (0, 1, 2), "FULLY_CONNECTED": (0, 1, 2), "TRANSPOSE_CONV": (2, 1, 3),
}  # fmt: skip
# Operations whose kernels know one scale only, for what comes in and what comes out.
_MOVING = frozenset(
    {"RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "MAX_POOL_2D", "AVERAGE_POOL_2D", "PAD", "PADV2", "MIRROR_PAD",
     "STRIDED_SLICE", "SLICE", "SPLIT", "SPLIT_V", "UNPACK", "PACK", "CONCATENATION", "GATHER", "RESIZE_BILINEAR",
     "RESIZE_NEAREST_NEIGHBOR", "TILE", "REVERSE_V2", "DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "SPACE_TO_BATCH_ND",
     "BATCH_TO_SPACE_ND", "REDUCE_MAX", "REDUCE_MIN", "MAXIMUM", "MINIMUM", "BROADCAST_TO"}
)  # fmt: skip
_RESHAPING = frozenset({"RESHAPE", "SQUEEZE", "EXPAND_DIMS"})
_LARGEST = 32767


@dataclasses.dataclass(frozen=True)
class _Grid:
    """The values of a tensor: `scale * (integer - zero_point)`, with one scale, or one for each index of `axis`."""

    scale: tuple[float, ...]
    dtype: str
    zero_point: int = 0
    axis: int = 0


def integers_of_16_bits(content: bytes, io: str) -> bytes:
    """The file of integers that a float file with conversions describes.

    Args:
        content: The bytes of a `.tflite` file, as the converter writes it without quantization for a model with fake
            quantization: of 8 and 16 bits for activations, of 8 for kernels.
        io: Type of its inputs and outputs: "int16" or "float32".

    Returns:
        The bytes of the file.

    Raises:
        ExportError: If the file has more than one graph.
    """
    model = flatbuffer.parse(content)
    if len(model.subgraphs) != 1:
        raise ExportError(
            f"A file of {len(model.subgraphs)} graphs has no form with 16-bit activations.",
            ["remedy: leave out loops and conditions, or use 8-bit activations"],
        )
    lowering = _Lowering(model)
    lowering.take_scales()
    lowering.hand_on_scales()
    lowering.make_integers()
    lowering.set_borders(io)
    return pack(model)


class _Lowering:
    """One file on its way: the scales by tensor, and the operations as they will be."""

    def __init__(self, model: schema.ModelT):
        self._model = model
        self._graph = model.subgraphs[0]
        self._grids: dict[int, _Grid] = {}
        self._converted: dict[tuple[int, _Grid], int] = {}
        self._done: list[schema.OperatorT] = []

    def take_scales(self) -> None:
        """Gives each tensor before a pair of conversions the scale of the pair, and takes the pair away."""
        sources: dict[int, int] = {}
        pairs: dict[int, tuple[int, _Grid]] = {}
        for operator in self._graph.operators:
            operator.inputs = np.array([sources.get(int(index), int(index)) for index in operator.inputs], np.int32)
            if self._name(operator) == "QUANTIZE":
                pairs[int(operator.outputs[0])] = int(operator.inputs[0]), self._grid_of(int(operator.outputs[0]))
            elif self._name(operator) == "DEQUANTIZE" and int(operator.inputs[0]) in pairs:
                source, grid = pairs[int(operator.inputs[0])]
                if self._grids.setdefault(source, grid) != grid:
                    source = self._in_grid(source, grid)
                sources[int(operator.outputs[0])] = source
            elif not self._is_transposed_constant(operator):
                self._done.append(operator)
        self._graph.operators, self._done = self._done, []
        self._graph.outputs = np.array([sources.get(int(index), int(index)) for index in self._graph.outputs], np.int32)
        for signature in self._model.signatureDefs or ():
            for entry in signature.outputs:
                entry.tensorIndex = sources.get(entry.tensorIndex, entry.tensorIndex)

    def _is_transposed_constant(self, operator: schema.OperatorT) -> bool:
        """Transposes a kernel where the converter leaves that to the runtime, which would make a tensor of it."""
        source, result = int(operator.inputs[0]), int(operator.outputs[0])
        if self._name(operator) != "TRANSPOSE" or not self._is_constant(source) or source not in self._grids:
            return False
        order = [int(axis) for axis in self._numbers(int(operator.inputs[1]), "<i4")]
        self._set_data(result, np.transpose(self._numbers(source), order))
        grid = self._grids[source]
        self._grids[result] = dataclasses.replace(grid, axis=order.index(grid.axis) if len(grid.scale) > 1 else 0)
        return True

    def _drop_scales_of_the_converter(self) -> None:
        """Where the converter moved a rounding behind a reshape: it leaves another one, of its own, before that."""
        readers = [int(index) for operator in self._graph.operators for index in operator.inputs]
        for operator in self._graph.operators:
            if self._name(operator) not in _RESHAPING:
                continue
            before, after = int(operator.inputs[0]), int(operator.outputs[0])
            own, moved = self._grids.get(before), self._grids.get(after)
            if own is None or moved is None or own.dtype != moved.dtype:
                continue
            if readers.count(before) == 1 and before not in self._graph.inputs:
                self._grids[before] = moved

    def hand_on_scales(self) -> None:
        """Gives what only moves values the scale of what comes in, or else of what goes out."""
        self._drop_scales_of_the_converter()
        moving = [operator for operator in self._graph.operators if self._name(operator) in _MOVING]
        for ordered, sides in ((moving, ("inputs", "outputs")), (moving[::-1], ("outputs", "inputs"))):
            for operator in ordered:
                known = [self._grids[index] for index in self._floats(operator, sides[0]) if index in self._grids]
                for index in self._floats(operator, sides[1]) if known else ():
                    if not self._is_constant(index):
                        self._grids.setdefault(index, known[0])

    def make_integers(self) -> None:
        """Makes the numbers of all constants, and the conversions between scales where an operation needs one."""
        for operator in self._graph.operators:
            results = self._floats(operator, "outputs")
            read = [index for index in self._floats(operator, "inputs") if not self._is_constant(index)]
            if all(index in self._grids for index in [*read, *results]):
                self._take_integers(operator, self._grids[results[0]] if results else None)
            if isinstance(operator.builtinOptions, schema.AddOptionsT | schema.SubOptionsT):
                operator.builtinOptions.potScaleInt16 = False
            self._done.append(operator)
        self._graph.operators = self._done
        for index, grid in self._grids.items():
            if not self._is_constant(index):
                self._set_grid(self._graph.tensors[index], grid)

    def set_borders(self, io: str) -> None:
        """Conversions where inputs and outputs are not of the type `io`."""
        for index in {int(index) for index in self._graph.inputs}:
            if self._differs(index, io):
                inner = self._inner(index, io)
                self._graph.operators.insert(0, self._operator("QUANTIZE", index, inner))
        for index in {int(index) for index in self._graph.outputs}:
            if self._differs(index, io):
                inner = self._inner(index, io)
                self._replace("outputs", index, inner)
                name = "DEQUANTIZE" if io == "float32" else "QUANTIZE"
                self._graph.operators.append(self._operator(name, inner, index))

    def _differs(self, index: int, io: str) -> bool:
        return index in self._grids and self._grids[index].dtype != io

    def _inner(self, index: int, io: str) -> int:
        """A tensor for what operations read in the place of an input or output, which becomes one of type `io`."""
        grid = self._grids[index]
        inner = self._new_tensor(index, grid)
        self._replace("inputs", index, inner)
        tensor = self._graph.tensors[index]
        if io == "float32":
            tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
        else:
            self._grids[index] = _widened(grid)
            self._set_grid(tensor, self._grids[index])
        return inner

    def _take_integers(self, operator: schema.OperatorT, result: _Grid | None) -> None:
        """Lets an operation with a result in the grid `result` read integers."""
        name = self._name(operator)
        inputs = [int(index) for index in operator.inputs]
        data, kernel, bias = _SUMS.get(name, (-1, -1, -1))
        for at, index in enumerate(inputs):
            if index >= 0 and at != bias and self._type(index) == "float32":
                inputs[at] = self._read(index, result, has_one_scale=name in _MOVING)
        if bias > 0:
            inputs += [-1] * (bias + 1 - len(inputs))
            inputs[bias] = self._bias(inputs[bias], inputs[data], inputs[kernel], operator)
        operator.inputs = np.array(inputs, np.int32)

    def _read(self, index: int, result: _Grid | None, *, has_one_scale: bool) -> int:
        """The integers of a tensor for an operation with a result in the grid `result`."""
        grid = self._grids.get(index)
        if self._is_constant(index):
            if grid is None:
                grid = result if has_one_scale and result is not None else self._own_grid(index, result)
            return self._constant(index, grid)
        if grid is None or result is None or grid == result:
            return index
        if has_one_scale:
            return self._in_grid(index, result)
        if grid.dtype == "int8" and result.dtype == "int16":
            return self._in_grid(index, _widened(grid))
        return index

    def _in_grid(self, index: int, grid: _Grid) -> int:
        """Another tensor with the values of `index`, in another grid."""
        if (index, grid) not in self._converted:
            self._converted[index, grid] = new = self._new_tensor(index, grid)
            self._done.append(self._operator("QUANTIZE", index, new))
        return self._converted[index, grid]

    def _own_grid(self, index: int, result: _Grid | None) -> _Grid:
        """The grid that a constant just fits in, for an operation with a result in the grid `result`."""
        numbers = self._numbers(index)
        if result is None or result.dtype == "int16":
            return _Grid((float(np.abs(numbers).max() or 1.0) / _LARGEST,), "int16")
        low, high = min(float(numbers.min()), 0.0), max(float(numbers.max()), 0.0)
        scale = (high - low or 1.0) / 255
        return _Grid((scale,), "int8", -128 - round(low / scale))

    def _constant(self, index: int, grid: _Grid) -> int:
        """A constant's integers, as a new tensor."""
        if (index, grid) not in self._converted:
            numbers = self._numbers(index).astype("float64")
            along = [-1 if len(grid.scale) > 1 and axis == grid.axis else 1 for axis in range(numbers.ndim)]
            limits = np.iinfo(grid.dtype)
            integers = np.round(numbers / np.reshape(grid.scale, along)) + grid.zero_point
            new = self._new_tensor(index, grid)
            self._set_data(new, np.clip(integers, limits.min, limits.max).astype(grid.dtype))
            self._converted[index, grid] = new
        return self._converted[index, grid]

    def _bias(self, index: int, data: int, kernel: int, operator: schema.OperatorT) -> int:
        """A bias's integers, in units of the scales of data and kernel."""
        dtype = "int64" if self._grids[data].dtype == "int16" else "int32"
        grid = _Grid(tuple(self._grids[data].scale[0] * scale for scale in self._grids[kernel].scale), dtype)
        if index >= 0:
            return self._constant(index, grid)
        if dtype == "int32":
            return index
        # Without a bias the runtime adds up products of 16 and 8 bits in 32, which overflow.
        channels = int(self._graph.tensors[int(operator.outputs[0])].shape[-1])
        new = self._new_tensor(kernel, grid)
        self._graph.tensors[new].shape = np.array([channels], np.int32)
        self._graph.tensors[new].shapeSignature = None
        self._set_data(new, np.zeros(channels, np.int64))
        return new

    def _floats(self, operator: schema.OperatorT, side: str) -> list[int]:
        """The tensors of floats that an operation reads ("inputs") or makes ("outputs")."""
        indices = [int(index) for index in getattr(operator, side) if index >= 0]
        return [index for index in indices if self._type(index) == "float32"]

    def _grid_of(self, index: int) -> _Grid:
        """The grid of a tensor that the converter made, whose integers have no sign, as the runtime has it."""
        tensor = self._graph.tensors[index]
        dtype = self._type(index).removeprefix("u")
        middle = 2 ** (np.iinfo(dtype).bits - 1) if self._type(index).startswith("u") else 0
        quantization = tensor.quantization
        scale = tuple(float(value) for value in quantization.scale)
        return _Grid(scale, dtype, int(quantization.zeroPoint[0]) - middle, int(quantization.quantizedDimension))

    def _new_tensor(self, like: int, grid: _Grid) -> int:
        tensor = copy.copy(self._graph.tensors[like])
        tensor.buffer = 0
        tensor.name = (tensor.name or b"") + f"_as_{grid.dtype}".encode()
        self._set_grid(tensor, grid)
        self._graph.tensors.append(tensor)
        index = len(self._graph.tensors) - 1
        self._grids[index] = grid
        return index

    def _set_grid(self, tensor: schema.TensorT, grid: _Grid) -> None:
        tensor.type = getattr(schema.TensorType, grid.dtype.upper())
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = np.array(grid.scale, np.float32)
        tensor.quantization.zeroPoint = np.full(len(grid.scale), grid.zero_point, np.int64)
        tensor.quantization.quantizedDimension = grid.axis if len(grid.scale) > 1 else 0

    def _set_data(self, index: int, numbers: np.ndarray) -> None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(numbers.tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        self._graph.tensors[index].buffer = len(self._model.buffers) - 1

    def _numbers(self, index: int, dtype: str = "<f4") -> np.ndarray:
        tensor = self._graph.tensors[index]
        shape = () if tensor.shape is None else tuple(tensor.shape)
        return np.frombuffer(bytes(self._model.buffers[tensor.buffer].data), dtype).reshape(shape)

    def _is_constant(self, index: int) -> bool:
        data = self._model.buffers[self._graph.tensors[index].buffer].data
        return data is not None and len(data) > 0

    def _operator(self, name: str, source: int, result: int) -> schema.OperatorT:
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code(name)
        operator.inputs, operator.outputs = np.array([source], np.int32), np.array([result], np.int32)
        return operator

    def _code(self, name: str) -> int:
        for index, code in enumerate(self._model.operatorCodes):
            if flatbuffer.op_name(code) == name:
                return index
        # Each fake quantization of the file is a pair of both.
        raise ExportError(f"The converter wrote a file without {name}.", ["remedy: report it"])

    def _replace(self, side: str, old: int, new: int) -> None:
        for operator in self._graph.operators:
            indices = getattr(operator, side)
            setattr(operator, side, np.where(indices == old, new, indices).astype(np.int32))

    def _name(self, operator: schema.OperatorT) -> str:
        return flatbuffer.op_name(self._model.operatorCodes[operator.opcodeIndex])

    def _type(self, index: int) -> str:
        return flatbuffer.type_name(self._graph.tensors[index].type)


def _widened(grid: _Grid) -> _Grid:
    """The grid of 16 bits with all values of one of 8: each integer, less its zero point, times 128."""
    return _Grid((grid.scale[0] / 128,), "int16")
