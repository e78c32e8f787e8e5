"""The operations of an integer file that may compute in float, since their Keras layers were left there on purpose.

Quantization-aware training marks such layers (`LeftInFloat`); a file of mixed precision names them.

Invariant: an operation is in what `float_operations` gives only if it comes from one of the named layers; what cannot
be traced to a layer is not. Left out: whether an operation does compute in float, which is the audit's to see.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ai_edge_litert import schema_py_generated as schema

from tfcompress.export import flatbuffer
from tfcompress.export.layer_names import Result, before_rounding, layer_results
from tfcompress.graph.trace import Trace
from tfcompress.layers import LeftInFloat

# They hand on the numbers they get, and the converter may round these in front of them or behind.
_MOVING = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "PAD")


def left_in_float(traced: Trace) -> frozenset[str]:
    """Names of the layers and operations that quantization-aware training was told to leave in float."""
    marks = [index for index, call in enumerate(traced.calls) if isinstance(call.operation, LeftInFloat)]
    return frozenset(traced.calls[at].operation.name for mark in marks for at in traced.consumers(mark))


def float_operations(
    model: schema.ModelT, traced: Trace, output_names: Sequence[str], layers: Collection[str]
) -> dict[int, str]:
    """The layer of each operation that comes from one of some layers, by its place in the main graph.

    An operation with no name of its own, as one of `keras.ops` has none, belongs to the layer whose fake quantization
    comes next, and so does one that only moves the numbers about before they are rounded.

    Args:
        model: The file, with its names.
        traced: The calls of the Keras model.
        output_names: The names that the file gives to the outputs of the model, in the model's order.
        layers: Names of layers.
    """
    results = {result.operation: result for result in layer_results(model, traced, output_names)}
    found = {place: result.owner for place, result in results.items() if result.owner in layers}
    graph = model.subgraphs[0]
    operators = flatbuffer.listed(graph.operators)
    names = [flatbuffer.op_name(model.operatorCodes[operator.opcodeIndex]) for operator in operators]
    makers = {int(index): place for place, operator in enumerate(operators) for index in operator.outputs}
    for place, result in results.items():
        layer = next((name for name in _rounded_here(result, traced) if name in layers), None)
        due = [place] if layer is not None and sum(int(at) in makers for at in operators[place].inputs) == 1 else []
        while due:
            at = due.pop()
            if flatbuffer.type_name(graph.tensors[operators[at].outputs[0]].type) == "float32":
                # Back to the conversion to floats: whatever else stands on the way would have been rounded itself.
                is_other = at in results and results[at].owner is not None and names[at] not in _MOVING
                if at in found or names[at] == "DEQUANTIZE" or is_other:
                    continue
                found[at] = layer
            elif at != place and names[at] != "QUANTIZE":
                continue
            due += [makers[int(index)] for index in operators[at].inputs if int(index) in makers]
    return {place: str(layer) for place, layer in found.items()}


def _rounded_here(result: Result, traced: Trace) -> list[str]:
    """The layers whose results are rounded in an operation or right before it, by the fake quantization in its name."""
    at = [index for index, call in enumerate(traced.calls) if call.operation.name in result.ranges]
    return [before_rounding(traced, index).operation.name for index in at]
