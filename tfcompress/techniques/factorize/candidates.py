"""Which layers can be factorized, what each may become, and why others are left alone.

Invariant: no choice of a candidate has more parameters or multiply-adds than the layer; what is known of shapes alone
needs no values of weights, so that a recipe is checked before its first training. Left out: choosing (`ranks.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.errors import ModelError
from tfcompress.graph.macs import layer_macs
from tfcompress.graph.shapes import traced_with_shapes
from tfcompress.graph.trace import Ref, Trace
from tfcompress.techniques.factorize.convolution import SeparableFactorization, SpatialFactorization
from tfcompress.techniques.factorize.factorization import Factorization, Shape
from tfcompress.techniques.factorize.plan import Selection
from tfcompress.techniques.factorize.ranks import Choices
from tfcompress.techniques.factorize.svd import PointwiseSVD
from tfcompress.techniques.factorize.tucker import TuckerFactorization
from tfcompress.techniques.layer_names import check_patterns, fits

WAYS: Mapping[str, type[Factorization]] = {
    way.method: way for way in (PointwiseSVD, SpatialFactorization, TuckerFactorization, SeparableFactorization)
}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A layer with a matrix of weights.

    Args:
        layer: The layer.
        macs: Its multiply-adds for one sample over all calls, or None where a size is unknown.
        calls: The shapes of what goes in and out at each call.
        ways: How it may be factorized; empty if it is left alone whatever the bound.
        reason: Why then.
    """

    layer: Any
    macs: int | None
    calls: Sequence[tuple[Shape, Shape]]
    ways: tuple[Factorization, ...] = ()
    reason: str = ""

    @property
    def num_params(self) -> int:
        return int(self.layer.count_params())

    @property
    def kernel_values(self) -> int:
        """Values of the kernel alone; a layer without a way to factorize it counts as a whole."""
        return math.prod(self.layer.kernel.shape) if self.ways else self.num_params

    @functools.cached_property
    def costs(self) -> tuple[np.ndarray, np.ndarray]:
        """Parameters and multiply-adds of the kernels, over all ways and their ranks; from shapes alone."""
        params = [np.sum(way.sizes, axis=0) for way in self.ways]
        # Where sizes are unknown, only parameters can be compared.
        macs = [
            np.zeros_like(size) if self.macs is None else way.macs(self.calls)
            for way, size in zip(self.ways, params, strict=True)
        ]
        return _joined(params), _joined(macs)

    @functools.cached_property
    def smaller(self) -> np.ndarray:
        """Which choices have fewer parameters or multiply-adds than the layer, and more of neither."""
        params, macs = self.costs
        whole = self.kernel_values, self.macs or 0
        return (params <= whole[0]) & (macs <= whole[1]) & ((params < whole[0]) | (macs < whole[1]))

    @functools.cached_property
    def choices(self) -> Choices:
        """All choices, the larger ones too."""
        return Choices(*self.costs, _joined([way.errors for way in self.ways]))

    def pick(self, index: int) -> tuple[Factorization, tuple[int, ...]]:
        """The way and the ranks that an index of the choices means."""
        for way in self.ways:
            if index < len(way.ranks):
                return way, tuple(int(rank) for rank in way.ranks[index])
            index -= len(way.ranks)
        raise IndexError(index)


def find_candidates(model: keras.Model, selection: Selection) -> tuple[Trace, list[Candidate]]:
    """The calls of a model, and its layers with a matrix of weights.

    Args:
        model: A functional or Sequential model whose layers have names of their own.
        selection: Which layers and which ways are asked for.

    Raises:
        InvalidArgumentError: If a pattern fits no layer with a matrix of weights.
        ModelError: If the model has no graph.
    """
    traced, shapes = traced_with_shapes(model)
    calls: dict[str, list[tuple[Shape, Shape]]] = {}
    layers: dict[str, Any] = {}
    for index, call in enumerate(traced.calls):
        layer = call.operation
        if isinstance(layer, keras.layers.Layer) and any(len(weight.shape) > 1 for weight in layer.weights):
            layers[layer.name] = layer
            calls.setdefault(layer.name, []).append((shapes[call.sources[0]], shapes[Ref(index)]))
    check_patterns(layers, {"factorize.include": selection.include, "factorize.exclude": selection.exclude})
    macs = known_macs(model)
    return traced, [
        _candidate(layer, None if macs is None else macs[name], calls[name], selection)
        for name, layer in layers.items()
    ]


def known_macs(model: keras.Model) -> dict[str, int] | None:
    """Multiply-adds of each layer, or None where a size is unknown."""
    try:
        return layer_macs(model)
    except ModelError:
        return None


def _candidate(layer: Any, macs: int | None, calls: Sequence[tuple[Shape, Shape]], selection: Selection) -> Candidate:
    ways = [way for way in WAYS.values() if way.fits(layer)]
    asked = [way(layer) for way in ways if way.method in selection.methods]
    reason = _reason_against(layer, selection)
    if not reason and not ways:
        reason = f"layers of class {type(layer).__name__} are not factorized"
    elif not reason and not asked:
        purposes = "; ".join(f"{method} is for {WAYS[method].purpose}" for method in selection.methods)
        reason = f"it can be factorized by {', '.join(way.method for way in ways)} only: {purposes}"
    return Candidate(layer, macs, calls, () if reason else tuple(asked), reason)


def _reason_against(layer: Any, selection: Selection) -> str:
    if fits(layer.name, selection.exclude):
        return "excluded"
    if selection.include is not None and not fits(layer.name, selection.include):
        return "not included"
    if getattr(layer, "quantization_mode", None) is not None:
        return f"its weights are quantized ({layer.quantization_mode})"
    if getattr(layer, "lora_enabled", False):
        return "its kernel has LoRA weights beside it; merge them first"
    constraint = getattr(layer, "kernel_constraint", None)
    if constraint is not None:
        return f"its kernel has a constraint, {type(constraint).__name__}, that a product would not keep"
    return ""


def _joined(arrays: Sequence[np.ndarray | None]) -> np.ndarray:
    return np.concatenate([array for array in arrays if array is not None])
