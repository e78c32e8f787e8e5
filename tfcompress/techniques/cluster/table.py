"""What clustering made of a model, layer by layer.

Invariant: everything is read from the kernels as they are now, whoever clustered them. Left out: what a file makes of
them; see `tfcompress.size_ledger`.
"""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

from tfcompress.errors import ModelError
from tfcompress.measure.size import coded_size
from tfcompress.techniques.kernels import find_kernels

_TEXT_WIDTH = 100


@dataclasses.dataclass(frozen=True)
class LayerClusters:
    """One kernel.

    Args:
        layer: Name of its layer.
        kernel: Its own name there.
        weights: How many it holds.
        values: How many of them differ.
        zeros: Share of zeros, in [0, 1].
        float_bytes: Bytes of its weights as they are.
        huffman_bytes: Bytes of its weights by Huffman codes, with their table.
        error: Relative to its size (the square root of the sum of squares) how far it is from before, or None.
    """

    layer: str
    kernel: str
    weights: int
    values: int
    zeros: float
    float_bytes: int
    huffman_bytes: int
    error: float | None


@dataclasses.dataclass(frozen=True)
class ClusterTable:
    """The kernels of a model; `print` it, or show `table()` with Rich.

    Args:
        name: Of the model.
        layers: A row for each trainable kernel.
    """

    name: str
    layers: tuple[LayerClusters, ...]

    def rows(self) -> list[dict[str, Any]]:
        """The rows as plain values, for JSON."""
        return [dataclasses.asdict(row) for row in self.layers]

    def table(self) -> Table:
        """The rows as a table of Rich."""
        table = Table(title=self.name)
        table.add_column("layer", overflow="fold")
        table.add_column("kernel", overflow="fold")
        for heading in ("weights", "values", "zeros", "float bytes", "Huffman bytes", "error"):
            table.add_column(heading, justify="right")
        for row in self.layers:
            error = "" if row.error is None else f"{row.error:.3f}"
            counts = (f"{row.weights:,}", f"{row.values:,}", f"{row.zeros:.0%}")
            sizes = (f"{row.float_bytes:,}", f"{row.huffman_bytes:,}", error)
            table.add_row(row.layer, row.kernel, *counts, *sizes)
        return table

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=_TEXT_WIDTH)
        console.print(self.table())
        return console.file.getvalue()  # type: ignore[attr-defined]


def cluster_table(model: keras.Model, before: keras.Model | None = None) -> ClusterTable:
    """How many values each kernel of a model holds, and what they would take in ideal codes.

    Args:
        model: A built Keras model, clustered or not.
        before: The same before clustering, to say how far each kernel has moved.

    Raises:
        ModelError: If the kernels of `before` are not those of `model`.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="hidden")])
        >>> model.layers[0].kernel.assign(np.where(np.eye(8), 0.5, 0.25)).shape
        TensorShape([8, 8])
        >>> (row,) = cluster_table(model).layers
        >>> (row.layer, row.weights, row.values, row.float_bytes, row.huffman_bytes)
        ('hidden', 64, 2, 256, 18)
    """
    now = _kernels(model)
    then = _kernels(before) if before is not None else [(name, None) for name, _ in now]
    if [name for name, _ in now] != [name for name, _ in then]:
        raise ModelError(
            f"`before` must have the kernels of {model.name!r}, {[name for name, _ in now]}. "
            f"Received: {[name for name, _ in then]}."
        )
    rows = []
    for ((layer, name), kernel), (_, old) in zip(now, then, strict=True):
        error = None if old is None else float(np.linalg.norm(kernel - old) / max(np.linalg.norm(old), 1e-30))
        rows.append(
            LayerClusters(
                layer=layer,
                kernel=name,
                weights=kernel.size,
                values=len(np.unique(kernel)),
                zeros=float(np.mean(kernel == 0)),
                float_bytes=kernel.nbytes,
                huffman_bytes=coded_size(kernel).huffman_bytes,
                error=error,
            )
        )
    return ClusterTable(model.name, tuple(rows))


def _kernels(model: keras.Model) -> list[tuple[tuple[str, str], Any]]:
    return [
        ((kernel.layer.name, kernel.variable.name), keras.ops.convert_to_numpy(kernel.variable))
        for kernel in find_kernels(model, tables=True)
    ]
