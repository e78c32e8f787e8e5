"""What a model costs once units are gone, without making it: multiply-adds and parameters.

Every multiply-add of a layer belongs to one value of its kernels, and each value has the same number of them, so what
is left follows from the sizes that kernels keep.

Invariant: with nothing removed, costs are those of `layer_macs` and `num_params`. Left out: the two products within
attention, which are counted as if they shrank like its kernels; the final model is counted as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import numpy as np

from tfcompress.graph.channels import ChannelGraph, Member
from tfcompress.graph.macs import layer_macs

Cost = Callable[[np.ndarray], float]


def macs_cost(model: keras.Model, graph: ChannelGraph) -> Cost:
    """`removed -> multiply-adds`, where `removed` has a boolean for each unit of `graph`."""
    macs = layer_macs(model)
    layers = {call.operation.name: call.operation for call in graph.traced.calls}
    factors: dict[int, float] = {}
    for name, count in macs.items():
        kernels = [weight for weight in layers[name].weights if len(weight.shape) > 1]
        size = sum(math.prod(kernel.shape) for kernel in kernels)
        factors |= {id(kernel): count / size for kernel in kernels}
    return _cost(model, graph, factors)


def params_cost(model: keras.Model, graph: ChannelGraph) -> Cost:
    """`removed -> values of all weights`."""
    return _cost(model, graph, {id(weight): 1.0 for weight in model.weights})


def _cost(model: keras.Model, graph: ChannelGraph, factors: dict[int, float]) -> Cost:
    sizes = {id(weight): math.prod(weight.shape) for weight in model.weights}
    touched: dict[int, list[Member]] = {}
    for member in graph.members:
        if id(member.variable) in factors:
            touched.setdefault(id(member.variable), []).append(member)
    constant = sum(factor * sizes[key] for key, factor in factors.items() if key not in touched)

    def cost(removed: np.ndarray) -> float:
        stays = np.append(~removed, True)
        total = constant
        for key, members in touched.items():
            left = float(sizes[key])
            for member in members:
                left *= np.count_nonzero(stays[member.units]) / len(member.units)
            total += factors[key] * left
        return total

    return cost
