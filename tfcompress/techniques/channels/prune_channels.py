"""Channel pruning: whole channels, filters, units and heads removed, so that a plain, smaller Keras model is left.

Invariant: the model that comes out computes what the input model computes with the removed channels set to zero, but
for BatchNormalization statistics taken again from data, and kernels where it is asked to reconstruct; the input model
is not changed. Left out: training before and
after (`stage.py`), the removal of layers, and export: what measures a file is given (`measure`).
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.errors import DataError, InvalidArgumentError, ModelError
from tfcompress.graph.channels import ChannelGraph, channel_graph
from tfcompress.graph.shrink import shrink
from tfcompress.techniques.channels.before_quantization import refuse_ranges
from tfcompress.techniques.channels.budget import ChannelBudget, Measure
from tfcompress.techniques.channels.counted import prune_until_counted
from tfcompress.techniques.channels.importance import CRITERIA, Criterion, Evidence, scores_by
from tfcompress.techniques.channels.measured import prune_until_measured
from tfcompress.techniques.channels.reconstruction import fit_kernels
from tfcompress.techniques.channels.selection import RANKINGS, Removals, ranked
from tfcompress.techniques.channels.statistics import reestimate_batch_norm
from tfcompress.techniques.kernels import why_hidden
from tfcompress.techniques.labelled import labelled_batches, loss_of_classes
from tfcompress.techniques.layer_names import check_patterns, fits


def prune_channels(
    model: keras.Model,
    *,
    macs: float | int | None = None,
    params: float | int | None = None,
    tflite_kb: float | int | None = None,
    latency_ms: float | int | None = None,
    criterion: str | Criterion = "l2",
    ranking: str = "isomorphic",
    round_to: int = 1,
    exclude: Sequence[str] = (),
    data: Any = None,
    samples: int = 1000,
    loss: Callable[[Any, Any], Any] | None = None,
    reconstruct: bool = False,
    seed: int = 0,
    measure: Measure | None = None,
) -> keras.Model:
    """Removes the least important channels of a model until it is within a budget.

    Channels that belong together go together: those of all layers of a residual stage, of a gate and what it gates,
    heads of attention, units of recurrent layers. Give one budget.

    Args:
        model: A functional or Sequential model. It is not changed. Nested models are opened.
        macs: The most multiply-adds for one sample: a share of the model's, in (0, 1), or a number.
        params: The most values of all weights, likewise.
        tflite_kb: The most kilobytes (1 kB is 1000 B) of the exported int8 `.tflite`: a share of the file of `model` in
            (0, 1), or a number, at least 1.
        latency_ms: The most milliseconds of one inference of that file in LiteRT, likewise; 0.3 is three tenths of what
            `model` takes, not 0.3 ms. It is the median of 50 runs on this machine: another machine, and this one when
            it has other work, gives another model.
        criterion: What makes a channel important: a name of `CRITERIA` (`"l1"`, `"l2"`, `"batch_norm_scale"`,
            `"geometric_median"`; on data `"taylor"`, `"hessian"`, `"activation_mean"`, `"activation_nonzero"`; and
            `"random"`, a control), or a function from `Evidence` to scores of shape `(units,)`.
        ranking: How channels of different layers are compared: `"layer"`, `"global"` or `"isomorphic"`; see `ranked`.
        round_to: A group of channels that loses some keeps a multiple of it, at least 1; a group that has fewer stays
            whole. Kernels of phones like 8.
        exclude: Patterns of names of layers that keep all the channels that they make, or carry from their input to
            their output as a BatchNormalization or a sum does. Those that they only read may go.
        data: Real data: a `Dataset` (its train split), a `tf.data.Dataset` of batches `(x, y)`, or a tuple of arrays
            `(x, y)`; for several inputs x is a list of arrays. BatchNormalization statistics are taken again from it;
            some criteria need it.
        samples: How many of its samples are used, at least 1.
        loss: `(y, outputs) -> numbers`, for criteria with gradients; by default cross-entropy, if the model has one
            output of at least 2 classes and `y` are integers below their number.
        reconstruct: Whether kernels are fitted anew to what the whole model computes on `data`, by least squares, which
            makes up for much of what is lost where no training follows, or before one; see
            `tfcompress.techniques.channels.reconstruction`. It takes a solution of a linear system for each layer.
        seed: Seed of the random criterion, and of the positions that kernels are fitted on.
        measure: What gives the kilobytes or milliseconds of a model, for `tflite_kb` and `latency_ms`. By default
            `tfcompress.prune_channels` exports to int8, with ranges from `data`, and measures the file;
            `tfcompress.techniques` knows no export, and needs it. One of your own may export in another mode, or time
            the file on a device. It is called for `model` and for at most 5 smaller ones.

    Returns:
        A new functional model of plain Keras layers, with the names of the input model's. What was measured is this
        model, before `reconstruct`; training changes a file by few bytes, if the network was trained before.

    Raises:
        InvalidArgumentError: If an argument is out of its range, or a pattern fits no layer.
        ModelError: If the model has no graph, no channel that may go or NaN weights, or the budget cannot be met.
        DataError: If a criterion, `reconstruct` or the export needs data or a loss that was not given.
        ExportError: If a model cannot be exported.

    Example:
        >>> inputs = keras.Input((8, 8, 3))
        >>> x = keras.layers.Conv2D(16, 3, activation="relu", name="conv")(inputs)
        >>> model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
        >>> prune_channels(model, macs=0.5).get_layer("conv").filters
        8

    Reference:
        Fang et al., "DepGraph: Towards Any Structural Pruning", 2023, https://arxiv.org/abs/2301.12900
    """
    budget = ChannelBudget(macs=macs, params=params, tflite_kb=tflite_kb, latency_ms=latency_ms)
    budget.check_measure(measure)
    check_arguments("prune_channels", criterion, ranking, round_to, samples)
    if reconstruct and data is None:
        raise DataError("`reconstruct` fits kernels on data. Pass `data`. Received: no data.")
    graph = prunable_graph(model, exclude)
    allowed = allowed_groups(graph, exclude)
    batches = [] if data is None else list(labelled_batches(model, data, samples))
    loss = loss_of_classes(model, batches) if batches and loss is None else loss
    scores = ranked(graph, scores_by(criterion, Evidence(graph, model, batches, loss, seed), allowed), ranking)

    def without(removed: np.ndarray) -> keras.Model:
        small = shrink(graph, removed)
        reestimate_batch_norm(small, (inputs for inputs, _ in batches))
        return small

    removals = Removals(graph, scores, round_to=round_to, groups=allowed)
    if measure is None:
        removed, small = prune_until_counted(model, removals, without, budget)
    else:
        removed, small = prune_until_measured(model, removals, without, budget, measure)
    if reconstruct:
        fit_kernels(graph, removed, small, [inputs for inputs, _ in batches], seed=seed)
    return small


def check_arguments(owner: str, criterion: Any, ranking: str, round_to: int, samples: int) -> None:
    """Raises an `InvalidArgumentError` for the first argument of `owner` that is out of its range."""
    if not callable(criterion) and criterion not in CRITERIA:
        raise InvalidArgumentError(f"{owner}.criterion", f"a function or one of {', '.join(CRITERIA)}", criterion)
    if ranking not in RANKINGS:
        raise InvalidArgumentError(f"{owner}.ranking", f"one of {RANKINGS}", ranking)
    for name, value in (("round_to", round_to), ("samples", samples)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise InvalidArgumentError(f"{owner}.{name}", "a whole number, at least 1", value)


def prunable_graph(model: keras.Model, exclude: Sequence[str] = ()) -> ChannelGraph:
    """The units of a model of which some may go.

    Raises:
        InvalidArgumentError: If a pattern fits no layer.
        ModelError: If the model has no graph, fake quantization, or no channel that may go.
    """
    refuse_ranges(model, "Prune channels")
    graph = channel_graph(model)
    names = [call.operation.name for call in graph.traced.calls]
    check_patterns(names, {"exclude": exclude})
    if not allowed_groups(graph, exclude):
        raise ModelError(
            f"Model {model.name!r} has no channel that may go: each is an input, an output, in `exclude`, or goes "
            f"through an operation that cannot do without it.{why_hidden(model)}"
        )
    return graph


def allowed_groups(graph: ChannelGraph, exclude: Sequence[str]) -> list[int]:
    """The groups of whose channels no excluded layer makes, holds or gives any; what it only reads may go."""
    units = [member.units for member in graph.members if member.makes and fits(member.layer, exclude)]
    units += [
        labels.vector
        for ref, labels in graph.results.items()
        if fits(graph.traced.calls[ref.call].operation.name, exclude)
    ]
    kept = np.zeros(graph.num_units + 1, bool)  # The last is that of what is in no unit.
    kept[np.concatenate([[-1], *units]).astype(int)] = True
    return [index for index, group in enumerate(graph.groups) if not kept[group].any()]
