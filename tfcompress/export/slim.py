"""A smaller `.tflite` file that computes exactly the same: stripped of what no runtime reads, with equal parts shared.

In a small int8 file the weights are little more than half: the rest is names, ranges noted while converting,
per-channel zero points that are all zero, and many equal vectors and tables.

Tried, and not done, since LiteRT 2.3 refuses the file: zero points left out or shorter than the scales ("must have same
number"), biases without their scales (FULLY_CONNECTED does not prepare). A convolution's bias without its scales loads,
but XNNPACK leaves it to another kernel, and outputs change.

Invariant: same operations in the same order, on the same numbers, with the same signatures: outputs are bit-identical.
Left out: anything that changes how the file computes (pruning channels, other types, other operations).
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.errors import ModelError
from tfcompress.export import flatbuffer
from tfcompress.export.packing import pack

# What the converter notes for itself. Any other metadata was put there on purpose.
CONVERTER_METADATA = (b"min_runtime_version", b"CONVERSION_METADATA")
# Operations whose kernel may have one scale for all channels in every kernel set.
_PER_TENSOR_KERNELS = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1}


def slim_bytes(content: bytes) -> bytes:
    """Strips a `.tflite` file without changing a bit of what it computes.

    Tensor names go, but for inputs and outputs, which are called as in their signature where there is one; so do
    min/max ranges, the converter's notes, unused tensors and operator codes, and empty buffers. Scales that are equal
    for all channels become one. Equal buffers, vectors and tables are stored once.

    Args:
        content: The bytes of the file.

    Returns:
        The bytes of the smaller file.

    Raises:
        ModelError: If `content` is no TFLite model, or carries files appended to it, which would be lost.

    Example:
        >>> from pathlib import Path
        >>> slim_bytes(Path("model.tflite").read_bytes())   # doctest: +SKIP
    """
    if flatbuffer.has_appended_files(content):
        raise ModelError(
            "The TFLite file carries associated files (a ZIP archive at its end), which slimming would lose. "
            "Slim it before metadata is added."
        )
    model = flatbuffer.parse(content)
    _drop_notes(model)
    _drop_unused_tensors(model)
    _drop_names(model)
    _drop_what_is_implied(model)
    _join_equal_scales(model)
    _drop_empty_quantization(model)
    _merge_operator_codes(model)
    _merge_buffers(model)
    return pack(model)


def _drop_notes(model: schema.ModelT) -> None:
    model.description = None
    model.metadataBuffer = None
    kept = [entry for entry in model.metadata or () if entry.name not in CONVERTER_METADATA]
    model.metadata = kept or None


def _drop_unused_tensors(model: schema.ModelT) -> None:
    """Drops tensors that nothing refers to, and renumbers the others."""
    for number, graph in enumerate(model.subgraphs):
        holders = list(_index_vectors(graph))
        entries = [
            entry
            for signature in flatbuffer.listed(model.signatureDefs)
            if signature.subgraphIndex == number
            for entry in [*flatbuffer.listed(signature.inputs), *flatbuffer.listed(signature.outputs)]
        ]
        used = {int(entry.tensorIndex) for entry in entries}
        for holder, field in holders:
            used |= {int(index) for index in getattr(holder, field) if index >= 0}
        kept = sorted(used)
        if len(kept) == len(graph.tensors):
            continue
        renumbered = {old: new for new, old in enumerate(kept)} | {-1: -1}
        for holder, field in holders:
            indices = [renumbered[int(index)] for index in getattr(holder, field)]
            setattr(holder, field, np.array(indices, "<i4"))
        for entry in entries:
            entry.tensorIndex = renumbered[int(entry.tensorIndex)]
        graph.tensors = [graph.tensors[index] for index in kept]


def _index_vectors(graph: schema.SubGraphT) -> Iterator[tuple[Any, str]]:
    """Every table and field that holds indices of tensors; -1 in them stands for an operand that is left out."""
    for field in ("inputs", "outputs"):
        if getattr(graph, field) is not None:
            yield graph, field
    for operator in flatbuffer.listed(graph.operators):
        for field in ("inputs", "outputs", "intermediates"):
            if getattr(operator, field) is not None:
                yield operator, field


def _drop_names(model: schema.ModelT) -> None:
    for number, graph in enumerate(model.subgraphs):
        graph.name = None
        # Those of other graphs, which loops and conditions run, are read by nobody without a signature.
        borders = (
            {int(index) for index in [*flatbuffer.listed(graph.inputs), *flatbuffer.listed(graph.outputs)]}
            if number == 0
            else set()
        )
        for index, tensor in enumerate(graph.tensors):
            if index not in borders:
                tensor.name = None
    for signature in flatbuffer.listed(model.signatureDefs):
        tensors = model.subgraphs[signature.subgraphIndex].tensors
        for entry in [*flatbuffer.listed(signature.inputs), *flatbuffer.listed(signature.outputs)]:
            tensors[entry.tensorIndex].name = entry.name


def _drop_what_is_implied(model: schema.ModelT) -> None:
    """Drops signatures of shapes without a free size, and the mark that a shape with sizes has a rank.

    Files of TensorFlow before 2.12 have no such mark, so every reader takes a shape that has sizes for known.
    """
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if tensor.shapeSignature is not None and np.array_equal(tensor.shapeSignature, tensor.shape):
                tensor.shapeSignature = None
            if tensor.shape is not None and len(tensor.shape):
                tensor.hasRank = False


def _join_equal_scales(model: schema.ModelT) -> None:
    """One scale in place of many equal ones, for kernels of 8 bits with their biases, where all operations allow it.

    Operations on floats or 16 bits have other kernels for one scale than for many, which round differently.
    """
    for graph in model.subgraphs:
        readers: dict[int, list[tuple[Any, int]]] = collections.defaultdict(list)
        for operator in flatbuffer.listed(graph.operators):
            for position, index in enumerate(flatbuffer.listed(operator.inputs)):
                readers[int(index)].append((operator, position))
        for index, uses in readers.items():
            tensor = graph.tensors[index] if index >= 0 else None
            if tensor is None or tensor.type != schema.TensorType.INT8 or not _has_equal_scales(tensor):
                continue
            operators = [
                operator
                for operator, position in uses
                if _kernel_position(model, operator) == position
                and graph.tensors[int(operator.inputs[0])].type == schema.TensorType.INT8
            ]
            biases = [graph.tensors[int(operator.inputs[2])] for operator in operators if _has_bias(operator)]
            alone = all(len(readers[int(operator.inputs[2])]) == 1 for operator in operators if _has_bias(operator))
            if len(operators) == len(uses) and alone and all(_has_equal_scales(bias) for bias in biases):
                for member in [tensor, *biases]:
                    quantization = member.quantization
                    quantization.scale, quantization.zeroPoint = quantization.scale[:1], quantization.zeroPoint[:1]
                    quantization.quantizedDimension = 0


def _kernel_position(model: schema.ModelT, operator: schema.OperatorT) -> int:
    return _PER_TENSOR_KERNELS.get(flatbuffer.op_name(model.operatorCodes[operator.opcodeIndex]), -1)


def _has_bias(operator: schema.OperatorT) -> bool:
    return len(operator.inputs) > 2 and operator.inputs[2] >= 0


def _has_equal_scales(tensor: schema.TensorT) -> bool:
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None or len(quantization.scale) < 2:
        return False
    return len({bytes(scale) for scale in quantization.scale}) == 1 and len(set(quantization.zeroPoint)) == 1


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
    """Keeps each operator code once, and only those in use; the most frequent is number 0, which takes no bytes."""
    codes: dict[tuple, schema.OperatorCodeT] = {}
    counts: collections.Counter[tuple] = collections.Counter()
    holders: list[tuple[schema.OperatorT, tuple]] = []
    for graph in model.subgraphs:
        for operator in flatbuffer.listed(graph.operators):
            code = model.operatorCodes[operator.opcodeIndex]
            key = (code.builtinCode, code.deprecatedBuiltinCode, code.customCode, code.version)
            codes.setdefault(key, code)
            counts[key] += 1
            holders.append((operator, key))
    order = [key for key, _ in counts.most_common()]
    for operator, key in holders:
        operator.opcodeIndex = order.index(key)
    model.operatorCodes = [codes[key] for key in order]


def _merge_buffers(model: schema.ModelT) -> None:
    """Keeps each content once, and only those in use. Buffer 0 is the empty one by convention, of every variable."""
    kept = {b"": 0}
    buffers = [schema.BufferT()]
    holders = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    for holder in [*holders, *flatbuffer.listed(model.metadata)]:
        buffer = model.buffers[holder.buffer]
        key = b"" if buffer.data is None else bytes(buffer.data)
        if key not in kept:
            kept[key] = len(buffers)
            buffers.append(buffer)
        holder.buffer = kept[key]
    model.buffers = buffers
