"""What is in a model: its layers with their parameters, multiply-adds, zeros and bytes, for Keras models and files.

Invariant: the totals are those that a run measures (`measure.size`, `graph.macs`, `export.audit`), not sums of rounded
rows. Left out: accuracy and latency (`tfcompress.evaluate`, `tfcompress.measure_latency`).
"""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
from rich.console import Console
from rich.table import Table

from tfcompress.bridge.load import load
from tfcompress.errors import ModelError
from tfcompress.export import audit, flatbuffer
from tfcompress.export.ledger import SizeLedger, size_ledger
from tfcompress.graph.macs import layer_macs
from tfcompress.measure.size import file_size, layer_sparsity, num_nonzero, num_params

_TEXT_WIDTH = 120  # columns of a table that is not printed on a terminal


@dataclasses.dataclass(frozen=True)
class LayerInspection:
    """One layer of a Keras model, or one operation of a TFLite file.

    Args:
        name: Its name; for an operation its number and, where the file still has it, the name of its output.
        kind: Class of the layer, or name of the operation.
        output_shape: Shape of its first output; None where a size is unknown.
        dtype: Type of its first output in a file, or the type that a layer computes in.
        num_params: Values of its weights, all of them.
        sparsity: Share of zeros in its kernels, in [0, 1], or None without a kernel.
        macs: Multiply-adds for one sample, or None where they are not known.
        num_bytes: Bytes of its weights.
    """

    name: str
    kind: str
    output_shape: tuple[int | None, ...]
    dtype: str
    num_params: int
    sparsity: float | None
    macs: int | None
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect` found; `print` it, or show `table()` with Rich.

    Args:
        name: The file, or the name of the model.
        kind: `keras` or `tflite`.
        layers: One row for each layer or operation.
        num_params: Values of all weights.
        num_nonzero: Those that are not zero.
        macs: Multiply-adds for one sample, or None where they are not known; `notes` says why.
        file_bytes: Size of the file, or None for a model in memory.
        gzip_bytes: Size of the file after gzip, or None for a model in memory.
        notes: What else to know.
        ledger: Where the bytes of a `.tflite` file go, or None for a Keras model.
    """

    name: str
    kind: str
    layers: tuple[LayerInspection, ...]
    num_params: int
    num_nonzero: int
    macs: int | None
    file_bytes: int | None = None
    gzip_bytes: int | None = None
    notes: tuple[str, ...] = ()
    ledger: SizeLedger | None = None

    def table(self) -> Table:
        """The layers and the totals as a table of Rich."""
        foot = [self._totals(), *([] if self.ledger is None else self.ledger.lines()), *self.notes]
        table = Table(title=self.name, caption="\n".join(foot), caption_justify="left")
        table.add_column("layer" if self.kind == "keras" else "operation", overflow="fold")
        table.add_column("kind", overflow="fold")
        table.add_column("output", overflow="fold")
        table.add_column("type")
        for heading in ("parameters", "zeros", "MACs", "bytes"):
            table.add_column(heading, justify="right")
        for row in self.layers:
            zeros = "" if row.sparsity is None else f"{row.sparsity:.1%}"
            shape = "x".join("?" if size is None else str(size) for size in row.output_shape)
            numbers = (f"{row.num_params:,}", zeros, _number(row.macs), f"{row.num_bytes:,}")
            table.add_row(row.name, row.kind, shape, row.dtype, *numbers)
        return table

    def _totals(self) -> str:
        zeros = 1 - self.num_nonzero / self.num_params if self.num_params else 0.0
        parts = [f"{self.num_params:,} parameters, {zeros:.1%} zero", f"{_number(self.macs)} MACs"]
        if self.file_bytes is not None:
            parts.append(f"{self.file_bytes:,} bytes ({_number(self.gzip_bytes)} after gzip)")
        return "; ".join(parts)

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=_TEXT_WIDTH)
        console.print(self.table())
        return console.file.getvalue()  # type: ignore[attr-defined]


def inspect(model_or_path: keras.Model | str | os.PathLike) -> Inspection:
    """Lists the layers of a model with their parameters, sparsity, multiply-adds and bytes.

    Args:
        model_or_path: A built Keras model, or the path of a `.tflite` file, or of any Keras model that `load` reads.

    Returns:
        One row for each layer (of nested models too) or operation, and totals.

    Raises:
        ModelError: If the file is missing or cannot be read, or the model has no weights yet.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="classes")])
        >>> inspect(model).layers[0].num_params
        15
    """
    if isinstance(model_or_path, keras.Model):
        return _inspect_keras(model_or_path, model_or_path.name)
    path = Path(model_or_path)
    if path.suffix == ".tflite":
        inspection = _inspect_tflite(path)
    else:
        inspection = _inspect_keras(load(path), str(path))
        if path.is_dir():
            return inspection
    size = file_size(path)
    return dataclasses.replace(inspection, file_bytes=size.file_bytes, gzip_bytes=size.gzip_bytes)


def _inspect_keras(model: keras.Model, name: str) -> Inspection:
    if not model.built:
        raise ModelError(f"Model {model.name!r} has no weights yet. Build it, or call it on a batch of data, first.")
    notes: tuple[str, ...] = ()
    macs: dict[str, int] | None
    try:
        macs = layer_macs(model)
    except ModelError as error:
        macs, notes = None, (f"MACs are not known: {error}",)
    sparsity = layer_sparsity(model)
    rows = tuple(
        LayerInspection(
            name=layer.name,
            kind=type(layer).__name__,
            output_shape=_output_shape(layer),
            dtype=layer.compute_dtype,
            num_params=sum(math.prod(weight.shape) for weight in layer.weights),
            sparsity=sparsity.get(layer.name),
            macs=None if macs is None else macs.get(layer.name, 0),
            num_bytes=sum(keras.ops.convert_to_numpy(weight).nbytes for weight in layer.weights),
        )
        for layer in _leaves(model.layers)
    )
    total = None if macs is None else sum(macs.values())
    return Inspection(name, "keras", rows, num_params(model), num_nonzero(model), total, notes=notes)


def _leaves(layers: Sequence[keras.layers.Layer]) -> Iterator[keras.layers.Layer]:
    for layer in layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer.layers)
        elif not isinstance(layer, keras.layers.InputLayer):
            yield layer


def _output_shape(layer: keras.layers.Layer) -> tuple[int | None, ...]:
    try:
        output = keras.tree.flatten(layer.output)[0]
    except (AttributeError, ValueError):  # a layer without a graph, or with several calls
        return (None,)
    return tuple(output.shape[1:])


def _inspect_tflite(path: Path) -> Inspection:
    if not path.is_file():
        raise ModelError(f"No model file at {str(path)!r}.")
    model = flatbuffer.parse(path.read_bytes())
    rows = []
    for graph in model.subgraphs:
        for number, operator in enumerate(graph.operators if graph.operators is not None else ()):
            rows.append(_operation(model, graph, operator, number))
    weights = [constant for constant in audit.constants(model) if constant.role != "other"]
    values = sum(math.prod(constant.shape) for constant in weights)
    nonzero = sum(round(math.prod(constant.shape) * (1 - constant.zeros)) for constant in weights)
    known = [row.macs for row in rows if row.macs is not None]
    notes = [f"MACs of {row.kind} are not known and not counted." for row in rows if row.macs is None]
    return Inspection(
        name=str(path),
        kind="tflite",
        layers=tuple(rows),
        num_params=values,
        num_nonzero=nonzero,
        macs=sum(known),
        notes=tuple(dict.fromkeys(notes)),
        ledger=size_ledger(path),
    )


def _operation(model: Any, graph: Any, operator: Any, number: int) -> LayerInspection:
    kind = flatbuffer.op_name(model.operatorCodes[operator.opcodeIndex])
    outputs = [int(index) for index in operator.outputs] if operator.outputs is not None else []
    output = graph.tensors[outputs[0]] if outputs else None
    shape = _shape(output)
    constants = _constants_of(model, graph, operator)
    kernels = [constant for constant in constants if constant.role == "kernel"]
    weights = [constant for constant in constants if constant.role != "other"]
    label = flatbuffer.tensor_name(output).split(";")[0] if output is not None else ""
    return LayerInspection(
        name=f"{number} {label}".rstrip(),
        kind=kind,
        output_shape=shape,
        dtype=flatbuffer.type_name(output.type) if output is not None else "",
        num_params=sum(math.prod(constant.shape) for constant in weights),
        sparsity=kernels[0].zeros if kernels else None,
        macs=_operation_macs(kind, graph, operator, shape),
        num_bytes=sum(constant.num_bytes for constant in constants),
    )


def _constants_of(model: Any, graph: Any, operator: Any) -> list[audit.Constant]:
    """The constants that one operation reads: those of a model that has no other."""
    part, whole = copy.copy(graph), copy.copy(model)
    part.operators, whole.subgraphs = [operator], [part]
    return audit.constants(whole)


def _operation_macs(kind: str, graph: Any, operator: Any, output: tuple[int, ...]) -> int | None:
    """Multiply-adds of one operation for one sample: output values x kernel values that each of them reads."""
    inputs = (
        [_shape(graph.tensors[int(index)]) for index in operator.inputs if index >= 0]
        if operator.inputs is not None
        else []
    )
    positions = math.prod(output[1:])
    if kind == "CONV_2D" or kind == "CONV_3D":
        return positions * (math.prod(inputs[1][1:]) if kind == "CONV_2D" else math.prod(inputs[1][:-1]))
    if kind == "DEPTHWISE_CONV_2D":
        return positions * math.prod(inputs[1][1:3])
    if kind == "FULLY_CONNECTED":
        return positions * inputs[1][-1]
    if kind == "TRANSPOSE_CONV":  # its inputs are (output shape, kernel, data)
        return math.prod(inputs[2][1:]) * math.prod(inputs[1][:3])
    if kind == "BATCH_MATMUL":
        adjoint = operator.builtinOptions is not None and operator.builtinOptions.adjX
        return positions * inputs[0][-2 if adjoint else -1]
    if kind in ("UNIDIRECTIONAL_SEQUENCE_LSTM", "WHILE", "CALL_ONCE", "IF"):
        return None
    return 0


def _shape(tensor: Any) -> tuple[int, ...]:
    return () if tensor is None or tensor.shape is None else tuple(int(size) for size in tensor.shape)


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
