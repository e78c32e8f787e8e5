"""What a technique did to a model, layer by layer: sizes of kernels, parameters and multiply-adds, before and after.

Invariant: figures are counted on both models; layers are matched by their names, and what only one model has is shown
as added or gone. Left out: values of weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras

from tfcompress.graph.macs import layer_macs
from tfcompress.graph.trace import trace


@dataclasses.dataclass(frozen=True)
class LayerChange:
    """One layer in two models; shape `()` and zeros where one does not have it.

    Args:
        layer: Its name.
        kind: Its class, in the later model if it has it.
        shape_before: Shape of its largest weight.
        shape_after: The same, afterwards.
        params_before: Values of its weights.
        params_after: The same, afterwards.
        macs_before: Multiply-adds for one sample.
        macs_after: The same, afterwards.
    """

    layer: str
    kind: str
    shape_before: tuple[int, ...]
    shape_after: tuple[int, ...]
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int


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
        >>> import tfcompress as tfc
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="x"), keras.layers.Dense(2)])
        >>> changes = layer_changes(model, tfc.prune_channels(model, macs=0.5))
        >>> changes[0].layer, changes[0].shape_before, changes[0].shape_after
        ('x', (4, 8), (4, 4))
    """
    first, second = _layers(before), _layers(after)
    macs = layer_macs(before), layer_macs(after)
    names = [*first, *(name for name in second if name not in first)]
    return [
        LayerChange(
            name,
            type(second.get(name, first.get(name))).__name__,
            _largest(first.get(name)),
            _largest(second.get(name)),
            _params(first.get(name)),
            _params(second.get(name)),
            macs[0].get(name, 0),
            macs[1].get(name, 0),
        )
        for name in names
    ]


def changes_table(changes: Sequence[LayerChange]) -> str:
    """The rows as text, with their sums."""
    width = max([len(change.layer) for change in changes] + [len("layer")])
    lines = [f"{'layer':<{width}}  {'largest weight':>28}  {'params':>21}  {'MACs':>25}"]
    for one in changes:
        shapes = f"{_shape(one.shape_before)} -> {_shape(one.shape_after)}"
        params = f"{one.params_before:,} -> {one.params_after:,}"
        lines.append(
            f"{one.layer:<{width}}  {shapes:>28}  {params:>21}  {f'{one.macs_before:,} -> {one.macs_after:,}':>25}"
        )
    params = f"{sum(one.params_before for one in changes):,} -> {sum(one.params_after for one in changes):,}"
    macs = f"{sum(one.macs_before for one in changes):,} -> {sum(one.macs_after for one in changes):,}"
    return "\n".join([*lines, f"{'all':<{width}}  {'':>28}  {params:>21}  {macs:>25}"])


def _layers(model: keras.Model) -> dict[str, Any]:
    """The layers with weights that the graph calls, by name; not the parts that layers are made of."""
    operations = [call.operation for call in trace(model, allow_equal_names=True).calls]
    return {one.name: one for one in operations if isinstance(one, keras.layers.Layer) and one.weights}


def _largest(layer: Any) -> tuple[int, ...]:
    shapes = [tuple(weight.shape) for weight in layer.weights] if layer is not None else []
    return max(shapes, key=math.prod, default=())


def _params(layer: Any) -> int:
    return 0 if layer is None else sum(math.prod(weight.shape) for weight in layer.weights)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "-"
