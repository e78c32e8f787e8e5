"""Layer removal: whole residual blocks are left out, so that a plain, shallower Keras model is left.

A block is ranked by how much the model's outputs change when it alone is left out: on data, or on random inputs where
there is none.

Invariant: the model that comes out computes what the input model computes with the outputs of the removed blocks set to
zero, but for BatchNormalization statistics taken again from data; the input model is not changed. Left out: blocks
beside which the shortcut is projected, and training after the removal (`block_stage.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.macs import layer_macs
from tfcompress.graph.random_inputs import random_inputs
from tfcompress.graph.residual_blocks import ResidualBlock, residual_blocks, without
from tfcompress.graph.simplify.rewriting import as_model
from tfcompress.graph.trace import Trace, trace
from tfcompress.measure.size import num_params
from tfcompress.techniques.channels.before_quantization import refuse_ranges
from tfcompress.techniques.channels.budget import ChannelBudget
from tfcompress.techniques.channels.forward import run_calls
from tfcompress.techniques.channels.statistics import reestimate_batch_norm
from tfcompress.techniques.labelled import labelled_batches
from tfcompress.techniques.layer_names import check_patterns, fits

_RANDOM_SAMPLES = 16
_SMALLEST = 1e-12


def remove_blocks(
    model: keras.Model,
    *,
    count: int | None = None,
    macs: float | int | None = None,
    params: float | int | None = None,
    exclude: Sequence[str] = (),
    data: Any = None,
    samples: int = 128,
) -> keras.Model:
    """Leaves out the residual blocks of a model that change its outputs least, so that it has fewer layers.

    A block is what lies between a tensor and the sum of that tensor with what was made of it: the two convolutions of a
    ResNet, the inverted bottleneck of a MobileNetV2, the attention of a transformer. Blocks whose shortcut is projected
    to another size stay. Give one of `count`, `macs` and `params`.

    Args:
        model: A functional or Sequential model. It is not changed. Nested models are opened.
        count: How many blocks go, at least 1.
        macs: The most multiply-adds for one sample: a share of the model's, in (0, 1), or a number.
        params: The most values of all weights, likewise.
        exclude: Patterns of names of layers whose blocks stay.
        data: Real data, as `prune_channels` takes it: blocks are ranked on it, and BatchNormalization statistics are
            taken again from it. Without it, blocks are ranked on random inputs.
        samples: How many of its samples are used, at least 1.

    Returns:
        A new functional model of plain Keras layers with the names and weights that they had.

    Raises:
        InvalidArgumentError: If an argument is out of its range, or a pattern fits no layer.
        ModelError: If the model has no graph or no block that may go, or the budget cannot be met.

    Example:
        >>> inputs = keras.Input((4,))
        >>> x = keras.layers.Dense(8, name="stem")(inputs)
        >>> x = keras.layers.Add()([x, keras.layers.Dense(8, name="block")(x)])
        >>> model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
        >>> [layer.name for layer in remove_blocks(model, count=1).layers[1:]]
        ['stem', 'head']

    Reference:
        Veit et al., "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", 2016,
        https://arxiv.org/abs/1605.06431
    """
    check_removal("remove_blocks", count, macs, params, samples)
    traced, blocks = removable_blocks(model, exclude)
    batches = [] if data is None else [inputs for inputs, _ in labelled_batches(model, data, samples)]
    changes = output_changes(traced, blocks, batches or [random_inputs(traced, _RANDOM_SAMPLES)])
    ordered = [blocks[at] for at in np.argsort(changes, kind="stable")]
    small = as_model(without(traced, _fewest(model, traced, ordered, count, macs, params)))
    reestimate_batch_norm(small, batches)
    return small


def check_removal(owner: str, count: Any, macs: Any, params: Any, samples: Any) -> None:
    """Raises an `InvalidArgumentError` for the first argument of `owner` that is out of its range."""
    given = {key: value for key, value in (("count", count), ("macs", macs), ("params", params)) if value is not None}
    if len(given) != 1:
        raise InvalidArgumentError(f"{owner}.budget", "one of `count`, `macs` and `params`", given)
    if count is None:
        ChannelBudget(macs=macs, params=params)
    for name, value in (("count", 1 if count is None else count), ("samples", samples)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidArgumentError(f"{owner}.{name}", "a whole number, at least 1", value)


def removable_blocks(model: keras.Model, exclude: Sequence[str] = ()) -> tuple[Trace, list[ResidualBlock]]:
    """The calls of a model, and its blocks that may go.

    Raises:
        InvalidArgumentError: If a pattern fits no layer.
        ModelError: If the model has no graph, fake quantization, or no block that may go.
    """
    refuse_ranges(model, "Remove blocks")
    traced = trace(model)
    check_patterns([call.operation.name for call in traced.calls], {"exclude": exclude})
    blocks = [one for one in residual_blocks(traced) if not any(fits(name, exclude) for name in one.layers)]
    if not blocks:
        raise ModelError(
            f"Model {model.name!r} has no residual block that may go: none ends in a sum of two whose other operand is "
            "what the block takes, shares no layer with the rest and is not in `exclude`. Blocks whose shortcut is "
            "projected stay. Remove channels by `prune_channels` instead."
        )
    return traced, blocks


def output_changes(traced: Trace, blocks: Sequence[ResidualBlock], batches: Sequence[Any]) -> np.ndarray:
    """How much the outputs change when each block alone is left out, relative to them (L2), largest over the outputs.

    Args:
        traced: The calls of a model.
        blocks: Its blocks.
        batches: Inputs, each in the model's own structure or as a flat list.

    Returns:
        A number for each block, at least 0.
    """
    graphs = [traced, *(without(traced, [block]) for block in blocks)]
    squares: list[Any] = [0.0] * len(graphs)
    for inputs in batches:
        outputs = [_outputs(graph, inputs) for graph in graphs]
        for at, made in enumerate(outputs):
            # The first has nothing to be compared with: its own size.
            parts = made if at == 0 else [one - whole for one, whole in zip(made, outputs[0], strict=True)]
            squares[at] = squares[at] + np.array([np.square(part).sum() for part in parts])
    whole = np.maximum(squares[0], _SMALLEST)
    return np.array([np.sqrt(each / whole).max() for each in squares[1:]])


def _outputs(graph: Trace, inputs: Any) -> list[np.ndarray]:
    refs = keras.tree.flatten(graph.outputs)
    values = run_calls(graph, inputs, refs)
    return [np.asarray(values[ref], "float64") for ref in refs]


def _fewest(
    model: keras.Model,
    traced: Trace,
    ordered: Sequence[ResidualBlock],
    count: int | None,
    macs: float | None,
    params: float | None,
) -> Sequence[ResidualBlock]:
    """As many of the blocks, from the first on, as are asked for or needed."""
    if count is not None:
        if count > len(ordered):
            names = [block.layers[-1] for block in ordered]
            raise InvalidArgumentError("count", f"at most {len(ordered)}, the blocks that end in {names}", count)
        return ordered[:count]
    costs = layer_macs(model) if macs is not None else _params_of_layers(traced)
    whole = sum(costs.values()) if macs is not None else num_params(model)
    limit = ChannelBudget(macs=macs, params=params).limit(whole)
    cost = _cost_without(traced, costs, whole)
    for number in range(len(ordered) + 1):
        if cost(ordered[:number]) <= limit:
            return ordered[:number]
    raise ModelError(
        f"Model {model.name!r} cannot be made that small by leaving out blocks: {cost(ordered):,.0f} are left when all "
        f"{len(ordered)} go, of {whole:,.0f}. Allow more, or a larger budget. Received: {limit:,.0f}."
    )


def _params_of_layers(traced: Trace) -> dict[str, int]:
    layers = {call.operation.name: call.operation for call in traced.calls}
    return {
        name: sum(int(np.prod(weight.shape)) for weight in getattr(layer, "weights", ()))
        for name, layer in layers.items()
    }


def _cost_without(traced: Trace, costs: dict[str, int], whole: float) -> Callable[[Sequence[ResidualBlock]], float]:
    names = {call.operation.name for call in traced.calls}

    def cost(blocks: Sequence[ResidualBlock]) -> float:
        left = {call.operation.name for call in without(traced, blocks).calls}
        return whole - sum(costs.get(name, 0) for name in names - left)

    return cost
