"""What becomes of each layer of a model: the choice of ways and ranks, and the reasons for leaving layers alone.

Invariant: a layer is factorized only where that has fewer parameters or multiply-adds, and more of neither. Left out:
what the choices are (`candidates.py`), and building the layers (`factorize.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from tfcompress.errors import ModelError
from tfcompress.techniques.factorize.candidates import Candidate, find_candidates, known_macs
from tfcompress.techniques.factorize.factorization import Factorization
from tfcompress.techniques.factorize.plan import LayerFactorization, Selection
from tfcompress.techniques.factorize.ranks import within_budget

LARGER = "every rank has more parameters or multiply-adds than the layer"


@dataclasses.dataclass(frozen=True)
class Decision:
    """What becomes of one layer.

    Args:
        candidate: The layer.
        way: How it is factorized; None if it is left alone.
        rank: The rank, or ranks.
        kernels: The kernels of the layers in its place.
        squared_error: What the kernel lost, relative to its own square.
        reason: Why it is left alone; empty if it is not.
    """

    candidate: Candidate
    way: Factorization | None = None
    rank: tuple[int, ...] = ()
    kernels: Sequence[np.ndarray] = ()
    squared_error: float = 0.0
    reason: str = ""

    def row(self) -> LayerFactorization:
        """The decision without layers and arrays."""
        one, params_after, macs_after = self.candidate, self.candidate.num_params, self.candidate.macs
        if self.way is not None:
            params_after += sum(kernel.size for kernel in self.kernels) - one.kernel_values
            macs = self.way.macs(one.calls)
            if macs_after is not None and macs is not None:
                macs_after = int(macs[np.flatnonzero((self.way.ranks == self.rank).all(1))[0]])
        return LayerFactorization(
            layer=one.layer.name,
            kind=type(one.layer).__name__,
            method=None if self.way is None else self.way.method,
            rank=self.rank,
            num_params_before=one.num_params,
            num_params_after=params_after,
            macs_before=one.macs,
            macs_after=macs_after,
            relative_error=float(np.sqrt(self.squared_error)),
            reason=self.reason,
        )


def decide(model: keras.Model, candidates: Sequence[Candidate], selection: Selection) -> list[Decision]:
    """A decision for each candidate.

    Raises:
        ModelError: If a kernel is not finite, or the budget cannot be met.
    """
    for one in candidates:
        if one.ways and not np.isfinite(keras.ops.convert_to_numpy(one.layer.kernel)).all():
            raise ModelError(f"The kernel of layer {one.layer.name!r} is not finite, so it has no singular values.")
    left_alone = [_reason_against(one) for one in candidates]
    if selection.is_budget:
        open_ones = [one for one, reason in zip(candidates, left_alone, strict=True) if not reason]
        picks = iter(_Budget(model, open_ones, selection).spend())
    decisions = []
    for one, reason in zip(candidates, left_alone, strict=True):
        if reason:
            decisions.append(Decision(one, reason=reason))
            continue
        index, why_not = next(picks) if selection.is_budget else _best_alone(one, selection)
        if index is None:
            decisions.append(Decision(one, reason=why_not))
        else:
            way, rank = one.pick(index)
            decisions.append(Decision(one, way, rank, *way.factors(rank)))
    return decisions


def check_structure(model: keras.Model, selection: Selection) -> None:
    """Raises what `factorize` would for any model of this structure, whatever its weights are.

    Args:
        model: A model whose layers have names of their own.
        selection: What is asked for.

    Raises:
        InvalidArgumentError: If a pattern fits no layer.
        ModelError: If no layer can be factorized, or the budget cannot be met.
    """
    _, candidates = find_candidates(model, selection)
    if not any(one.ways and one.smaller.any() for one in candidates):
        raise nothing_to_factorize(model, {one.layer.name: one.reason or LARGER for one in candidates})
    if selection.is_budget:
        _Budget(model, [one for one in candidates if one.ways], selection).require_reachable()


def nothing_to_factorize(model: keras.Model, reasons: Mapping[str, str]) -> ModelError:
    """The error for a model with no layer to factorize, with the reason for each one that has a matrix of weights."""
    said = "; ".join(f"{layer}: {reason}" for layer, reason in reasons.items())
    return ModelError(f"Model {model.name!r} has no layer that factorization makes smaller. {said or 'No kernels'}.")


def _reason_against(one: Candidate) -> str:
    """What speaks against a layer before any rank is chosen."""
    if not one.ways:
        return one.reason
    if not np.any(keras.ops.convert_to_numpy(one.layer.kernel)):
        return "its kernel is all zero"
    return "" if one.smaller.any() else LARGER


def _best_alone(one: Candidate, selection: Selection) -> tuple[int | None, str]:
    """The choice for a layer by itself, or the reason why there is none."""
    smaller, bound = one.choices.only(one.smaller), selection.squared_error
    if bound is not None:
        found, reason = smaller.within_error(bound), _too_large(one, bound)
    else:
        assert selection.ratio is not None
        others = one.num_params - one.kernel_values
        found = smaller.within_params(selection.ratio * one.num_params - others)
        least = others + int(smaller.num_params.min())
        reason = f"it has {one.num_params:,} parameters, and at the lowest rank still {least:,}"
    return (None if found is None else int(np.flatnonzero(one.smaller)[found])), reason


def _too_large(one: Candidate, bound: float) -> str:
    """Why no choice within an error bound is smaller than the layer."""
    index = one.choices.within_error(bound)
    if index is None:
        return "no rank is that close to its kernel"
    way, rank = one.pick(index)
    params, macs = (int(cost[index]) for cost in one.costs)
    needs = f"{way.method} needs rank {' x '.join(map(str, rank))}"
    text = f"{needs}: {params:,} kernel values instead of {one.kernel_values:,}"
    return text if one.macs is None else f"{text}, {macs:,} MACs instead of {one.macs:,}"


class _Budget:
    """A share of the parameters or multiply-adds of a whole model.

    Args:
        model: The model.
        candidates: The layers that may be factorized; all others stay as they are.
        selection: The budget.
    """

    def __init__(self, model: keras.Model, candidates: Sequence[Candidate], selection: Selection):
        self._model, self._candidates = model, candidates
        if selection.params is not None:
            self._name, self._share, self._total = "params", selection.params, model.count_params()
            self._whole = [one.kernel_values for one in candidates]
        else:
            known = known_macs(model)
            if known is None or selection.macs is None:
                raise ModelError(
                    f"The multiply-adds of model {model.name!r} depend on a size that is unknown. Build it with fixed "
                    "`keras.Input` shapes, or give a budget of `params`."
                )
            self._name, self._share, self._total = "macs", selection.macs, sum(known.values())
            self._whole = [known[one.layer.name] for one in candidates]
        which = 0 if self._name == "params" else 1
        self._costs = [one.costs[which][one.smaller] for one in candidates]

    def require_reachable(self) -> None:
        """Raises a `ModelError` if rank 1 everywhere is more than the budget."""
        least = self._others + sum(min((*cost, whole)) for cost, whole in zip(self._costs, self._whole, strict=True))
        if least > self._share * self._total:
            raise ModelError(
                f"Model {self._model.name!r} cannot be factorized down to `{self._name}: {self._share:g}`: at the "
                f"lowest ranks it still has {least / self._total:.4f} of what it has now. Give at least that, or "
                "leave fewer layers out."
            )

    def spend(self) -> list[tuple[int | None, str]]:
        """For each candidate the index of its choice, or None and the reason."""
        self.require_reachable()
        errors = [one.choices.errors[one.smaller] for one in self._candidates]
        picks = within_budget(self._costs, errors, self._whole, self._share * self._total - self._others)
        return [
            (None, "the budget is met with the whole of it")
            if pick is None
            else (int(np.flatnonzero(one.smaller)[pick]), "")
            for one, pick in zip(self._candidates, picks, strict=True)
        ]

    @property
    def _others(self) -> int:
        """What is not in the kernels of the candidates."""
        return self._total - sum(self._whole)
