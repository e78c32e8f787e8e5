"""What a technique did to a model, layer by layer: sizes of kernels, parameters, zeros, values and multiply-adds.

Invariant: layers are matched by their names, and what only one model has is shown as added or gone. Left out: counting
(`measure/layer_sizes.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

# A kernel of more different values shares none worth to speak of.
_FEW = 256


@dataclasses.dataclass(frozen=True)
class LayerSize:
    """What a layer of a model holds and computes.

    Args:
        kind: Its class.
        shape: Shape of its largest weight.
        params: Values of its weights.
        nonzero: Those of them that are not zero.
        distinct: How many different values its largest weight has.
        macs: Multiply-adds for one sample, all its calls together.
    """

    kind: str
    shape: tuple[int, ...]
    params: int
    nonzero: int
    distinct: int
    macs: int


_NONE = LayerSize("", (), 0, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class LayerChange:
    """One layer in two models; shape `()` and zeros where one does not have it.

    Args:
        layer: Its name.
        before: What it was.
        after: What it is afterwards.
    """

    layer: str
    before: LayerSize
    after: LayerSize

    def cells(self) -> list[str]:
        """The layer's row: name, largest weight, parameters, those not zero, values of the kernel, multiply-adds."""
        before, after = self.before, self.after
        few = min(before.distinct, after.distinct or before.distinct) <= _FEW
        return [
            self.layer,
            _arrow(_shape(before.shape), _shape(after.shape)),
            _arrow(f"{before.params:,}", f"{after.params:,}"),
            _arrow(f"{before.nonzero:,}", f"{after.nonzero:,}"),
            _arrow(f"{before.distinct:,}", f"{after.distinct:,}") if few else "",
            _arrow(f"{before.macs:,}", f"{after.macs:,}"),
        ]


HEADINGS = ("layer", "largest weight", "params", "not zero", "values", "MACs")


def layer_changes(before: keras.Model, after: keras.Model) -> list[LayerChange]:
    """Compares the layers with weights of two models.

    Args:
        before: The model that a technique was given.
        after: The model that it gave.

    Returns:
        A row for each layer with weights, those of `before` first, in its order.

    Raises:
        ModelError: If a model has no graph.

    Example:
        >>> import keras
        >>> import tfcompress as tfc
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="x"), keras.layers.Dense(2)])
        >>> changes = layer_changes(model, tfc.prune_channels(model, macs=0.5))
        >>> changes[0].layer, changes[0].before.shape, changes[0].after.shape
        ('x', (4, 8), (4, 4))
    """
    from tfcompress.measure.layer_sizes import layer_sizes  # A report of stored figures needs no Keras.

    return compare(_sizes(layer_sizes(before)), _sizes(layer_sizes(after)))


def compare(before: Mapping[str, LayerSize], after: Mapping[str, LayerSize]) -> list[LayerChange]:
    """The rows of two models that were counted, as `layer_changes` gives them."""
    names = [*before, *(name for name in after if name not in before)]
    return [LayerChange(name, before.get(name, _NONE), after.get(name, _NONE)) for name in names]


def compare_stages(layers: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, list[LayerChange]]:
    """What each stage of a run did to the model of the stage before, where it did more than move weights.

    Args:
        layers: Stage to layer to the fields of `LayerSize`, in the order of the run. With a stage `"student"`, and
            with each assistant, a model of its own begins.
    """
    counted = {stage: _sizes(sizes) for stage, sizes in layers.items()}
    changes = {}
    for (_, before), (stage, after) in zip(list(counted.items())[:-1], list(counted.items())[1:], strict=True):
        if stage == "student" or stage.startswith("assistant-"):
            continue
        rows = [change for change in compare(before, after) if _is_worth_a_row(change)]
        if rows:
            changes[stage] = rows
    return changes


def changes_table(changes: Sequence[LayerChange]) -> str:
    """The rows as text, with their sums."""
    rows = [list(HEADINGS), *(change.cells() for change in changes), sums(changes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    )


def sums(changes: Sequence[LayerChange]) -> list[str]:
    """The last row: what all layers have together."""

    def total(field: str) -> str:
        before, after = (sum(getattr(getattr(one, side), field) for one in changes) for side in ("before", "after"))
        return _arrow(f"{before:,}", f"{after:,}")

    return ["all", "", total("params"), total("nonzero"), "", total("macs")]


def _sizes(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, LayerSize]:
    return {name: LayerSize(**{**fields, "shape": tuple(fields["shape"])}) for name, fields in figures.items()}


def _is_worth_a_row(change: LayerChange) -> bool:
    before, after = change.before, change.after
    shares = min(before.distinct, after.distinct) <= _FEW < max(before.distinct, after.distinct)
    zeros = before.params - before.nonzero, after.params - after.nonzero
    pruned = abs(zeros[0] - zeros[1]) > 0.01 * max(before.params, 1)
    return before.shape != after.shape or before.params != after.params or before.macs != after.macs or shares or pruned


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "-"
