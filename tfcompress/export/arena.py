"""How much memory the activations of a `.tflite` file take while it runs, planned as TensorFlow Lite Micro plans it.

A tensor lives from the operation that writes it to the last one that reads it; tensors that are never alive together
may lie in the same place. The planner places the largest first, each at the lowest free offset ("greedy by size", in
Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, https://arxiv.org/abs/2001.03288).

Invariant: `peak_bytes <= planned_bytes`, and no two tensors that live together overlap in the plan. Left out: what
kernels take besides (scratch buffers, and in TensorFlow Lite Micro some 100 bytes for each operation and tensor).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from tfcompress.export import flatbuffer
from tfcompress.export.audit import NUMPY_TYPES

# TensorFlow Lite Micro aligns every tensor so.
_ALIGNMENT = 16


@dataclasses.dataclass(frozen=True)
class Arena:
    """Memory for activations, inputs and outputs included.

    Args:
        peak_bytes: The most that is alive at once: no plan can take less.
        planned_bytes: What the greedy plan takes.
        num_tensors: Tensors that need a place.
    """

    peak_bytes: int
    planned_bytes: int
    num_tensors: int


@dataclasses.dataclass(frozen=True)
class _Life:
    size: int
    first: int
    last: int

    def meets(self, other: _Life) -> bool:
        return self.first <= other.last and other.first <= self.last


def activation_arena(content: bytes) -> Arena:
    """Plans the activations of the main graph of a `.tflite` file.

    Args:
        content: The bytes of the file. Unknown sizes (-1, written as 1) count as 1.

    Returns:
        The arena. Graphs that control flow calls are left out.

    Raises:
        ModelError: If `content` is no TFLite model.

    Example:
        >>> from pathlib import Path
        >>> activation_arena(Path("model.tflite").read_bytes())   # doctest: +SKIP
        Arena(peak_bytes=49152, planned_bytes=49152, num_tensors=17)
    """
    model = flatbuffer.parse(content)
    lives = _lives(model)
    steps = range(max((life.last for life in lives), default=-1) + 1)
    peak = max((sum(life.size for life in lives if life.first <= step <= life.last) for step in steps), default=0)
    return Arena(peak, _plan(lives), len(lives))


def _lives(model: schema.ModelT) -> list[_Life]:
    graph = model.subgraphs[0]
    operators = graph.operators if graph.operators is not None else []
    first: dict[int, int] = {int(index): 0 for index in graph.inputs}
    last: dict[int, int] = dict(first)
    for step, operator in enumerate(operators):
        for index in _indices(operator.outputs):
            first.setdefault(index, step)
            last[index] = step
        for index in [*_indices(operator.inputs), *_indices(operator.intermediates)]:
            if model.buffers[graph.tensors[index].buffer].data is None:
                first.setdefault(index, step)
                last[index] = step
    end = max(len(operators) - 1, 0)
    last |= {int(index): end for index in graph.outputs if int(index) in first}
    # State is kept from one run to the next.
    variables = [index for index in first if graph.tensors[index].isVariable]
    first |= dict.fromkeys(variables, 0)
    last |= dict.fromkeys(variables, end)
    lives = [_Life(_aligned(_num_bytes(graph.tensors[index])), first[index], last[index]) for index in sorted(first)]
    return [life for life in lives if life.size]


def _plan(lives: list[_Life]) -> int:
    placed: list[tuple[int, _Life]] = []
    for life in sorted(lives, key=lambda life: -life.size):
        offset = 0
        for start, other in sorted(placed, key=lambda entry: entry[0]):
            if not life.meets(other):
                continue
            if start - offset >= life.size:
                break
            offset = max(offset, start + other.size)
        placed.append((offset, life))
    return max((offset + life.size for offset, life in placed), default=0)


def _num_bytes(tensor: schema.TensorT) -> int:
    dtype = flatbuffer.type_name(tensor.type)
    count = math.prod(int(size) for size in tensor.shape) if tensor.shape is not None else 1
    if dtype == "int4":
        return (count + 1) // 2
    if dtype not in NUMPY_TYPES:
        return 0  # Strings and resources have no size of their own in the file.
    return count * int(NUMPY_TYPES[dtype].strip("<iuf")) if dtype != "bool" else count


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _indices(values: Any) -> list[int]:
    return [] if values is None else [int(index) for index in values if index >= 0]
