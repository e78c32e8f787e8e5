"""Two mistakes of the TFLite converter (TensorFlow 2.21), put right in the file.

- An operation with a result that nobody uses stays in float between conversions, since the converter finds no range
  for that result. It happens to the SPLIT of an unrolled recurrent layer, whose first step needs no forget gate. Where
  the operation only moves values, it is done on the integers: the same to the bit.
- A fused LSTM writes its hidden values to its state and its output as they are, so that all three must have one scale;
  the converter gives the state or the output another one where a CONCATENATION wants it, and every value is off by
  their ratio (a Bidirectional LSTM: 11 to 21 dB instead of 34). State and output get the scale of the hidden values,
  and a conversion from integers to integers behind the LSTM gives what the CONCATENATION wants.

Invariant: a file without these mistakes comes back as it is. Left out: any other mistake, which the gate reports.
"""

from __future__ import annotations

import copy

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.export import flatbuffer
from tfcompress.export.packing import pack

# Operations that give values on as they are.
_MOVING = frozenset({"SPLIT", "SPLIT_V", "UNPACK", "RESHAPE", "TRANSPOSE"})
_LSTM = "UNIDIRECTIONAL_SEQUENCE_LSTM"
# Which input of the LSTM is its state, and which of its intermediate tensors has the scale of the hidden values.
_LSTM_STATE = 18
_LSTM_HIDDEN = 4


def repair(content: bytes) -> bytes:
    """The file with both mistakes put right.

    Args:
        content: The bytes of a `.tflite` file, as the converter wrote it.

    Returns:
        The same bytes where there is nothing to repair.
    """
    model = flatbuffer.parse(content)
    graph = model.subgraphs[0]
    names = {
        id(operator): flatbuffer.op_name(model.operatorCodes[operator.opcodeIndex]) for operator in graph.operators
    }
    moved = _move_integers(graph, names)
    rescaled = _rescale_lstm_outputs(model, graph, names)
    return pack(model) if moved or rescaled else content


def lstm_mismatches(model: schema.ModelT) -> list[str]:
    """Names of the outputs of fused LSTMs in integers whose scale is not that of their hidden values."""
    found = []
    for graph in model.subgraphs:
        for operator in graph.operators or ():
            if flatbuffer.op_name(model.operatorCodes[operator.opcodeIndex]) == _LSTM and _is_rescaled(graph, operator):
                found.append(flatbuffer.tensor_name(graph.tensors[operator.outputs[0]]))
    return found


def _move_integers(graph: schema.SubGraphT, names: dict[int, str]) -> bool:
    """Takes away DEQUANTIZE -> moving operation -> QUANTIZE, where scale and zero point come out as they went in."""
    makers = {int(index): operator for operator in graph.operators for index in operator.outputs}
    readers: dict[int, list[schema.OperatorT]] = {}
    for operator in graph.operators:
        for index in operator.inputs:
            readers.setdefault(int(index), []).append(operator)
    gone: list[schema.OperatorT] = []
    for operator in graph.operators:
        floats = [at for at, index in enumerate(operator.inputs) if _type(graph, index) == "float32"]
        if names[id(operator)] not in _MOVING or len(floats) != 1:
            continue
        before = makers.get(int(operator.inputs[floats[0]]))
        after = [one for index in operator.outputs for one in readers.get(int(index), [])]
        if before is None or names[id(before)] != "DEQUANTIZE" or any(names[id(one)] != "QUANTIZE" for one in after):
            continue
        source = int(before.inputs[0])
        if not after or any(not _same_scale(graph, source, int(one.outputs[0])) for one in after):
            continue
        operator.inputs = np.where(operator.inputs == before.outputs[0], source, operator.inputs).astype(np.int32)
        for index in operator.outputs:
            graph.tensors[index].type = graph.tensors[source].type
            graph.tensors[index].quantization = copy.copy(graph.tensors[source].quantization)
        for one in after:
            _replace(graph, int(one.outputs[0]), int(one.inputs[0]))
        gone += after
        if len(readers[int(before.outputs[0])]) == 1:
            gone.append(before)
    kept = {id(operator) for operator in gone}
    graph.operators = [operator for operator in graph.operators if id(operator) not in kept]
    return bool(gone)


def _rescale_lstm_outputs(model: schema.ModelT, graph: schema.SubGraphT, names: dict[int, str]) -> bool:
    wrong = [one for one in graph.operators if names[id(one)] == _LSTM and _is_rescaled(graph, one)]
    for operator in wrong:
        hidden = graph.tensors[operator.intermediates[_LSTM_HIDDEN]].quantization
        graph.tensors[operator.inputs[_LSTM_STATE]].quantization = copy.copy(hidden)
        output = int(operator.outputs[0])
        if _same_scale(graph, output, int(operator.intermediates[_LSTM_HIDDEN])):
            continue
        tensor = copy.copy(graph.tensors[output])
        tensor.quantization = copy.copy(hidden)
        tensor.name = (tensor.name or b"") + b"_in_its_own_scale"
        graph.tensors.append(tensor)
        operator.outputs = np.array([len(graph.tensors) - 1], np.int32)
        conversion = schema.OperatorT()
        conversion.opcodeIndex = _quantize_code(model)
        conversion.inputs = operator.outputs
        conversion.outputs = np.array([output], np.int32)
        graph.operators.insert(graph.operators.index(operator) + 1, conversion)
    return bool(wrong)


def _is_rescaled(graph: schema.SubGraphT, operator: schema.OperatorT) -> bool:
    output, state = int(operator.outputs[0]), int(operator.inputs[_LSTM_STATE])
    if _type(graph, output) != "int8":
        return False
    hidden = int(operator.intermediates[_LSTM_HIDDEN])
    return not (_same_scale(graph, output, hidden) and _same_scale(graph, state, hidden))


def _quantize_code(model: schema.ModelT) -> int:
    for index, code in enumerate(model.operatorCodes):
        if flatbuffer.op_name(code) == "QUANTIZE":
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.QUANTIZE
    code.version = 2  # The first one that takes integers.
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _replace(graph: schema.SubGraphT, old: int, new: int) -> None:
    for operator in graph.operators:
        operator.inputs = np.where(operator.inputs == old, new, operator.inputs).astype(np.int32)


def _type(graph: schema.SubGraphT, index: int) -> str:
    return flatbuffer.type_name(graph.tensors[index].type) if index >= 0 else ""


def _same_scale(graph: schema.SubGraphT, first: int, second: int) -> bool:
    one, other = (graph.tensors[index].quantization for index in (first, second))
    if one is None or other is None or one.scale is None or other.scale is None:
        return False
    return np.array_equal(one.scale, other.scale) and np.array_equal(one.zeroPoint, other.zeroPoint)
