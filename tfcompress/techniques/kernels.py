"""The kernels of a model: what techniques mask, cluster and say few values of.

Invariant: each is found once, in the order of the model's weights, wherever it is: in cells of recurrent layers, in
attention, in wrapped layers, in models within the model. Left out: which of them a technique takes (`prune/kernels.py`,
`cluster/selection.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from tfcompress.errors import ModelError
from tfcompress.graph.layer_kinds import has_plain_weights

# How the names of variables end that Keras calls a kernel in one layer or another, and that of a table of vectors.
_KERNEL, _TABLE = "kernel", "embeddings"
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A trainable kernel.

    Args:
        name: The name of its layer, with the way to the kernel behind it where the layer has several:
            `"lstm/lstm_cell/recurrent_kernel"`.
        layer: The layer of the model that it is in.
        owner: The layer that made it: `layer` itself, or one inside of it, such as the cell of a recurrent layer.
        variable: The Keras variable.
    """

    name: str
    layer: keras.layers.Layer
    owner: keras.layers.Layer
    variable: keras.Variable

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel of the output reads one channel of the input only."""
        return isinstance(self.owner, _DEPTHWISE) or self.variable.name.startswith("depthwise")


def find_kernels(model: keras.Model, *, tables: bool = False) -> list[Kernel]:
    """The trainable kernels of a model and of models within it, each once.

    Those of recurrent cells, of attention and of separable convolutions are among them.

    Args:
        model: A built Keras model.
        tables: Whether the tables of embeddings count, too.

    Example:
        >>> model = keras.Sequential([keras.Input((5, 3)), keras.layers.GRU(4, name="gru")])
        >>> [kernel.name for kernel in find_kernels(model)]
        ['gru/gru_cell/kernel', 'gru/gru_cell/recurrent_kernel']
    """
    found: dict[int, Kernel] = {}
    for layer in model.layers:
        inner = find_kernels(layer, tables=tables) if isinstance(layer, keras.Model) else _within(layer, tables)
        for kernel in inner:
            found.setdefault(id(kernel.variable), kernel)
    return list(found.values())


def kernels_of(layer: keras.layers.Layer) -> list[Any]:
    """The kernels and tables of a layer, those within it too, trainable or not."""
    return [variable for variable in layer.weights if variable.name.endswith((_KERNEL, _TABLE))]


def why_hidden(model: keras.Model) -> str:
    """For errors: which layers have weights that no technique takes, and what to do; empty where there are none."""
    hidden = [layer.name for layer in model._flatten_layers(include_self=False) if not has_plain_weights(layer)]
    if not hidden:
        return ""
    return (
        f" The weights of {', '.join(map(repr, hidden[:5]))} are in int8 or have LoRA beside them. Take the model from "
        "before `quantize`, and merge LoRA: a copy built anew that loads the saved weights has it merged."
    )


def check_finite(kernels: Iterable[Kernel]) -> None:
    """Refuses kernels that say nothing of what a weight is worth.

    Raises:
        ModelError: For the first kernel with NaN or infinite weights.
    """
    for kernel in kernels:
        wrong = np.count_nonzero(~np.isfinite(keras.ops.convert_to_numpy(kernel.variable)))
        if wrong:
            raise ModelError(
                f"Kernel {kernel.name!r} holds weights that are NaN or infinite. Load weights of before the training "
                f"diverged. Received: {wrong} such weights of {kernel.variable.shape.num_elements()}."
            )


def _within(layer: keras.layers.Layer, tables: bool) -> list[Kernel]:
    owners: dict[int, keras.layers.Layer] = {}
    for owner in layer._flatten_layers():
        for variable in owner._trainable_variables:
            owners.setdefault(id(variable), owner)
    variables = [
        variable
        for variable in kernels_of(layer)
        if variable.trainable and id(variable) in owners and (tables or variable.name.endswith(_KERNEL))
    ]
    names = [layer.name] if len(variables) == 1 else [_path_within(layer, variable) for variable in variables]
    return [
        Kernel(name, layer, owners[id(variable)], variable) for name, variable in zip(names, variables, strict=True)
    ]


def _path_within(layer: keras.layers.Layer, variable: keras.Variable) -> str:
    parts = variable.path.split("/")
    start = parts.index(layer.name) if layer.name in parts else len(parts) - 2
    return "/".join([layer.name, *parts[start + 1 :]])
