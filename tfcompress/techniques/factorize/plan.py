"""What a factorization is asked for, and what it does to each layer.

Invariant: a `Selection` that exists is valid in itself; the totals of a `FactorizationPlan` are the parameters and
multiply-adds of the models before and after. Left out: deciding (`factorize.py`).
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tfcompress.errors import InvalidArgumentError

# "auto" takes the best of these for each layer.
AUTO = ("svd", "spatial", "tucker")
METHODS = ("auto", *AUTO, "separable")
TARGETS = ("energy", "error", "ratio", "params", "macs")
_TEXT_WIDTH = 120  # columns of a table that is not printed on a terminal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The arguments of `factorize`, checked. Exactly one of the first five is given.

    Args:
        energy: Share of the squares of each kernel's singular values to keep, in (0, 1).
        error: Largest error of each kernel relative to its norm, in (0, 1).
        ratio: Largest share of its parameters that each layer may keep, in (0, 1).
        params: Share of the model's parameters to keep, in (0, 1).
        macs: Share of the model's multiply-adds to keep, in (0, 1).
        method: One of `METHODS`.
        include: Patterns of names of the layers to factorize; `None` is all.
        exclude: Patterns of names of layers to leave alone.

    Raises:
        InvalidArgumentError: If not exactly one of `TARGETS` is given, or an argument is out of its range.
    """

    energy: float | None = None
    error: float | None = None
    ratio: float | None = None
    params: float | None = None
    macs: float | None = None
    method: str = "auto"
    include: Sequence[str] | None = None
    exclude: Sequence[str] = ()

    def __post_init__(self):
        given = {name: value for name in TARGETS if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            raise InvalidArgumentError("factorize", f"given exactly one of {', '.join(TARGETS)}", given)
        ((name, value),) = given.items()
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise InvalidArgumentError(f"factorize.{name}", "a number between 0 and 1, both excluded", value)
        if self.method not in METHODS:
            raise InvalidArgumentError("factorize.method", f"one of {METHODS}", self.method)

    @property
    def methods(self) -> tuple[str, ...]:
        """The ways of factorizing that may be taken."""
        return AUTO if self.method == "auto" else (self.method,)

    @property
    def is_budget(self) -> bool:
        """Whether it is a budget over all layers, rather than a bound for each."""
        return self.params is not None or self.macs is not None

    @property
    def squared_error(self) -> float | None:
        """The largest squared relative error of a kernel, where `energy` or `error` bounds it."""
        if self.energy is not None:
            return 1 - self.energy
        return None if self.error is None else self.error**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerFactorization:
    """What becomes of one layer.

    Args:
        layer: Its name.
        kind: Its class.
        method: `"svd"`, `"spatial"`, `"tucker"` or `"separable"`; None if the layer is left alone.
        rank: The rank, or of Tucker-2 that of inputs and outputs; empty if the layer is left alone. Of a grouped
            convolution that of each group; of a separable one the depth multiplier.
        num_params_before: Values of its weights, bias included.
        num_params_after: Those of the layers in its place.
        macs_before: Multiply-adds for one sample, or None where a size is unknown.
        macs_after: Those of the layers in its place.
        relative_error: Frobenius norm of what the kernel lost, relative to that of the kernel, in [0, 1].
        reason: Why the layer is left alone; empty if it is not.
    """

    layer: str
    kind: str
    method: str | None
    rank: tuple[int, ...]
    num_params_before: int
    num_params_after: int
    macs_before: int | None
    macs_after: int | None
    relative_error: float
    reason: str = ""

    @property
    def kept_energy(self) -> float:
        """Share of the squares of the kernel's singular values that is kept, in [0, 1]."""
        return 1 - self.relative_error**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorizationPlan:
    """What becomes of a model; `print` it, or show `table()` with Rich.

    Args:
        name: The model's name.
        layers: A row for each layer that has a matrix of weights, in the order in which they run.
        num_params_before: Values of all weights of the model.
        num_params_after: Those after factorization.
        macs_before: Multiply-adds for one sample, or None where a size is unknown.
        macs_after: Those after factorization.
    """

    name: str
    layers: tuple[LayerFactorization, ...]
    num_params_before: int
    num_params_after: int
    macs_before: int | None
    macs_after: int | None

    def rows(self) -> list[dict[str, Any]]:
        """The layers as plain values, `kept_energy` among them, for JSON and for pictures."""
        return [
            {**dataclasses.asdict(row), "rank": list(row.rank), "kept_energy": row.kept_energy} for row in self.layers
        ]

    def table(self) -> Table:
        """The layers and the totals as a table of Rich."""
        totals = f"{_change(self.num_params_before, self.num_params_after)} parameters"
        if self.macs_before is not None and self.macs_after is not None:
            totals += f", {_change(self.macs_before, self.macs_after)} MACs"
        table = Table(title=self.name, caption=totals, caption_justify="left")
        table.add_column("layer", overflow="fold")
        table.add_column("method")
        for heading in ("rank", "parameters", "MACs", "error"):
            table.add_column(heading, justify="right")
        table.add_column("why left alone", overflow="fold")
        for row in self.layers:
            table.add_row(row.layer, *_cells(row), row.reason)
        return table

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=_TEXT_WIDTH)
        console.print(self.table())
        return console.file.getvalue()  # type: ignore[attr-defined]


def _cells(row: LayerFactorization) -> Iterator[str]:
    if row.method is None:
        yield from ("", "", f"{row.num_params_before:,}", "" if row.macs_before is None else f"{row.macs_before:,}", "")
        return
    yield row.method
    yield " x ".join(map(str, row.rank))
    yield _change(row.num_params_before, row.num_params_after)
    yield "" if row.macs_before is None or row.macs_after is None else _change(row.macs_before, row.macs_after)
    yield f"{row.relative_error:.3f}"


def _change(before: int, after: int) -> str:
    return f"{before:,} > {after:,}"
