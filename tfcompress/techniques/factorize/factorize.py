"""`factorize`: a copy of a Keras model whose kernels are products of smaller ones.

Invariant: the input model is unchanged; what comes out is a functional model of plain Keras layers, with the layers of
the old one under their names, and before each factorized layer the new ones that do the first part of its work. A layer
that would get more parameters or multiply-adds is left as it is. Left out: training afterwards, which is the caller's
`fit` or the `Factorize` stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfcompress.graph.copy_layer import LayerCopies
from tfcompress.graph.flatten import flatten, has_equal_names, unused_name
from tfcompress.graph.trace import Call, Trace, replay, trace
from tfcompress.techniques.factorize.candidates import find_candidates, known_macs
from tfcompress.techniques.factorize.decide import Decision, decide, nothing_to_factorize
from tfcompress.techniques.factorize.plan import FactorizationPlan, Selection


def factorize(
    model: keras.Model,
    *,
    energy: float | None = None,
    error: float | None = None,
    ratio: float | None = None,
    params: float | None = None,
    macs: float | None = None,
    method: str = "auto",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> keras.Model:
    """Replaces layers by chains of smaller ones whose kernels multiply to nearly the same kernel.

    Exactly one of `energy`, `error`, `ratio`, `params` and `macs` says how far to go. The result loses accuracy until
    it is trained again; compile it and `fit` some epochs at a low learning rate.

    Args:
        model: A built functional or Sequential model; nested models are opened. It is not changed.
        energy: Share of the squares of each kernel's singular values to keep, in (0, 1).
        error: Largest Frobenius error of each kernel, relative to its norm, in (0, 1). The same as an energy of
            `1 - error ** 2`.
        ratio: Largest share of its parameters that each layer may keep, in (0, 1).
        params: Share of the parameters of the whole model to keep, in (0, 1). Ranks go where they lower the relative
            squared error of a kernel most for their parameters.
        macs: The same of the multiply-adds.
        method: `"svd"` for dense layers and 1 x 1 convolutions; for larger ones `"spatial"` (h x 1 and 1 x w),
            `"tucker"` (1 x 1, smaller, 1 x 1) or `"separable"` (depthwise, 1 x 1); other layers are left alone.
            `"auto"` takes for each layer the best of the first three.
        include: Patterns of names of the layers to factorize (`fnmatch`, such as `"conv*"`); by default all.
        exclude: Patterns of names of layers to leave alone.

    Returns:
        A new functional model. A factorized layer keeps its name, bias and activation for the last layer of its chain;
        those before it are called `<name>_u`, with Tucker-2 `<name>_core` too, or `<name>_depthwise`. They have its
        kernel's regularizer, its dtype and its `trainable`.

    Raises:
        InvalidArgumentError: If an argument is out of its range, or a pattern fits no layer.
        ModelError: If the model has no graph, no layer gets smaller, or the budget is below what rank 1 everywhere has.

    Example:
        >>> inputs = keras.Input((64,))
        >>> model = keras.Model(inputs, keras.layers.Dense(64, name="wide")(inputs))
        >>> smaller = factorize(model, ratio=0.25)
        >>> [(layer.name, layer.count_params()) for layer in smaller.layers[1:]]
        [('wide_u', 448), ('wide', 512)]

    Reference:
        Denton et al., 2014, https://arxiv.org/abs/1404.0736 (SVD); Jaderberg et al., 2014,
        https://arxiv.org/abs/1405.3866 (spatial); Kim et al., 2016, https://arxiv.org/abs/1511.06530 (Tucker-2); Guo et
        al., 2018, https://arxiv.org/abs/1808.05517 (depthwise-separable)
    """
    selection = Selection(
        energy=energy, error=error, ratio=ratio, params=params, macs=macs,
        method=method, include=include, exclude=exclude,
    )  # fmt: skip
    whole = own_names(model)
    traced, candidates = find_candidates(whole, selection)
    decisions = decide(whole, candidates, selection)
    if all(one.way is None for one in decisions):
        raise nothing_to_factorize(model, {one.candidate.layer.name: one.reason for one in decisions})
    return _replace(traced, decisions)


def factorization_plan(model: keras.Model, **target: Any) -> FactorizationPlan:
    """What `factorize` with the same arguments does to each layer, and why it leaves others alone.

    Args:
        model: A built functional or Sequential model. It is not changed.
        **target: The arguments of `factorize`.

    Returns:
        The plan: `print` it, or take its `rows()`.

    Raises:
        InvalidArgumentError: As `factorize`.
        ModelError: As `factorize`, but not if no layer gets smaller: then the plan says why.

    Example:
        >>> inputs = keras.Input((64,))
        >>> model = keras.Model(inputs, keras.layers.Dense(64, name="wide")(inputs))
        >>> plan = factorization_plan(model, ratio=0.25)
        >>> plan.layers[0].rank, plan.num_params_before, plan.num_params_after
        ((7,), 4160, 960)
    """
    selection = Selection(**target)
    whole = own_names(model)
    _, candidates = find_candidates(whole, selection)
    rows = tuple(one.row() for one in decide(whole, candidates, selection))
    known = known_macs(whole)
    macs_before = None if known is None else sum(known.values())
    saved = sum(row.num_params_before - row.num_params_after for row in rows)
    saved_macs = sum((row.macs_before or 0) - (row.macs_after or 0) for row in rows)
    return FactorizationPlan(
        name=model.name,
        layers=rows,
        num_params_before=whole.count_params(),
        num_params_after=whole.count_params() - saved,
        macs_before=macs_before,
        macs_after=None if macs_before is None else macs_before - saved_macs,
    )


def own_names(model: keras.Model) -> keras.Model:
    """The model, or where layers of nested models have equal names, a flat copy that tells them apart."""
    return flatten(model) if has_equal_names(trace(model, allow_equal_names=True)) else model


def _replace(traced: Trace, decisions: Sequence[Decision]) -> keras.Model:
    """The model with the factors in the place of what they factorize."""
    by_name = {one.candidate.layer.name: one for one in decisions if one.way is not None}
    taken = {call.operation.name for call in traced.calls}
    copies = LayerCopies()
    chains: dict[str, list[Any]] = {}

    def call_chain(index: int, call: Call, args: tuple, kwargs: dict) -> Any:
        operation = call.operation
        one = by_name.get(operation.name)
        if one is None:
            return copies.apply(operation, *args, **kwargs)
        first_use = operation.name not in chains
        if first_use:
            chains[operation.name] = _chain(one, taken)
        first, *others = chains[operation.name]
        result = first(*args, **kwargs)
        for layer in others:
            result = layer(result)
        if first_use:
            _set_weights(operation, chains[operation.name], one)
        return result

    return replay(traced, call_chain)


def _chain(one: Decision, taken: set[str]) -> list[Any]:
    assert one.way is not None
    names = [unused_name(f"{one.candidate.layer.name}_{suffix}", taken) for suffix in one.way.suffixes]
    return one.way.layers(one.rank, names)


def _set_weights(old: Any, chain: Sequence[Any], one: Decision) -> None:
    for layer, kernel in zip(chain, one.kernels, strict=True):
        layer.kernel.assign(kernel)
    if old.use_bias:
        chain[-1].bias.assign(old.bias)
