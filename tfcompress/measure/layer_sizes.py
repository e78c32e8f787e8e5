"""What each layer of a model holds and computes: the size of its weights, what of them is not zero, how many values its
kernels take, and its multiply-adds.

Invariant: the parameters of all layers are those of the model. Left out: a comparison of two models
(`report/layer_changes.py`), and bytes.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfcompress.graph.macs import layer_macs
from tfcompress.graph.trace import trace


def layer_sizes(model: keras.Model) -> dict[str, dict[str, Any]]:
    """Counts each layer with weights that the graph calls; not the parts that layers are made of.

    Args:
        model: A functional or Sequential model. Nested models are opened.

    Returns:
        Layer name to what JSON can hold: `kind` (its class), `shape` of its largest weight, `params`, `nonzero` (those
        of them that are not zero), `distinct` (how many different values its largest weight has) and `macs` (for one
        sample, all its calls together).

    Raises:
        ModelError: If the model has no graph.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "relu", False, "ones", name="x")])
        >>> layer_sizes(model)
        {'x': {'kind': 'Dense', 'shape': [4, 2], 'params': 8, 'nonzero': 8, 'distinct': 1, 'macs': 8}}
    """
    operations = [call.operation for call in trace(model, allow_equal_names=True).calls]
    layers = {one.name: one for one in operations if isinstance(one, keras.layers.Layer) and one.weights}
    macs = layer_macs(model)
    return {name: _size(layer, macs.get(name, 0)) for name, layer in layers.items()}


def _size(layer: keras.layers.Layer, macs: int) -> dict[str, Any]:
    values = [keras.ops.convert_to_numpy(weight.value) for weight in layer.weights]
    largest = max(values, key=np.size)
    return {
        "kind": type(layer).__name__,
        "shape": list(largest.shape),
        "params": sum(value.size for value in values),
        "nonzero": sum(int(np.count_nonzero(value)) for value in values),
        "distinct": len(np.unique(largest)),
        "macs": macs,
    }
