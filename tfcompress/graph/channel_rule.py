"""What a rule for one kind of layer says, and which activation functions leave channels apart.

Left out: the rules themselves (`channel_layers.py`, `channel_sequences.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfcompress.graph.channel_labels import LabelBook, Labelled, Labels

# `count(variable, axis)` is how many indices are left along an axis of a weight.
Count = Callable[[Any, int], int]
# Functions of one number at a time.
ELEMENTWISE = frozenset(
    {
        "celu",
        "elu",
        "exponential",
        "gelu",
        "hard_shrink",
        "hard_sigmoid",
        "hard_silu",
        "hard_swish",
        "hard_tanh",
        "leaky_relu",
        "legacy_hard_sigmoid",
        "linear",
        "log_sigmoid",
        "mish",
        "relu",
        "relu6",
        "selu",
        "sigmoid",
        "silu",
        "soft_shrink",
        "softplus",
        "softsign",
        "sparse_plus",
        "squareplus",
        "swish",
        "tanh",
        "tanh_shrink",
        "threshold",
    }
)


@dataclasses.dataclass(frozen=True)
class LayerRule:
    """What one kind of layer does.

    Args:
        connect: `(book, layer, inputs, output shapes) -> labels of its results`; notes the labels of its weights.
        config: `(layer, count) -> changes` of its configuration when channels are gone.
        arguments: The arguments of `call` whose tensors `connect` is given; by default all.
        weights: `(layer, smaller layer, weights) -> weights`, for a layer that scales by its number of channels.
    """

    connect: Callable[[LabelBook, Any, Sequence[Labelled], Sequence[tuple]], Sequence[Labels | None]]
    config: Callable[[Any, Count], Mapping[str, Any]] = lambda layer, count: {}
    arguments: tuple[str, ...] | None = None
    weights: Callable[[Any, Any, list[np.ndarray]], list[np.ndarray]] = lambda old, new, values: values


def is_elementwise(activation: Any) -> bool:
    """Whether an activation function treats each number by itself."""
    return activation is None or (getattr(activation, "__name__", "") in ELEMENTWISE and _is_of_keras(activation))


def _is_of_keras(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).split(".")[0] in ("keras", "tfcompress")
