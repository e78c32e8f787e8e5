"""Whether a model's outputs are logits or probabilities.

Invariant: the answer comes from the graph where it shows, else from the outputs themselves; nobody is asked and nothing
is assumed. Left out: outputs of several labels (sigmoid), which are neither.
"""

from __future__ import annotations

import keras
import numpy as np

from tfcompress.graph.trace import trace
from tfcompress.layers import FakeQuantize


def ends_in_softmax(model: keras.Model) -> bool:
    """Whether the last operation of a functional or Sequential model is a softmax, in a layer or by itself.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="softmax")])
        >>> ends_in_softmax(model)
        True
    """
    traced = trace(model)
    last = traced.calls[keras.tree.flatten(traced.outputs)[0].call]
    # A fake-quantized softmax is still one.
    while isinstance(last.operation, FakeQuantize):
        last = traced.calls[last.sources[0].call]
    operation = last.operation
    if isinstance(operation, keras.layers.Softmax) or type(operation).__name__ == "Softmax":
        return True
    return getattr(operation, "activation", None) is keras.activations.softmax


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether outputs of shape `(batch, classes)` are distributions: nothing negative, each row with a sum of 1.

    Example:
        >>> are_probabilities(np.array([[0.25, 0.75]])), are_probabilities(np.array([[2.0, -1.0]]))
        (True, False)
    """
    outputs = np.asarray(outputs, "float64")
    return bool((outputs >= 0).all() and np.allclose(outputs.sum(-1), 1.0, atol=1e-2))
