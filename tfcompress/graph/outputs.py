"""Whether a model's outputs are logits or probabilities.

Invariant: the answer comes from the graph where it shows, else from the outputs themselves; nobody is asked and nothing
is assumed. Left out: outputs of several labels (sigmoid), which are neither.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfcompress.graph.trace import require_functional


def ends_in_softmax(model: keras.Model) -> bool:
    """Whether the last operation of a functional or Sequential model is a softmax, in a layer or by itself.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="softmax")])
        >>> ends_in_softmax(model)
        True
    """
    model = require_functional(model)
    producer: Any = None
    for operation in model.operations:
        if any(tensor is model.outputs[0] for tensor in keras.tree.flatten(operation.output)):
            producer = operation
    if isinstance(producer, keras.Model):
        return ends_in_softmax(producer)
    # A fake-quantized softmax is still one.
    while producer is not None and getattr(producer, "is_fake_quantized", False) and not hasattr(producer, "kernel"):
        (producer,) = (
            operation
            for operation in model.operations
            if any(tensor is producer.input for tensor in keras.tree.flatten(operation.output))
        )
    if isinstance(producer, keras.layers.Softmax) or type(producer).__name__ == "Softmax":
        return True
    return getattr(producer, "activation", None) is keras.activations.softmax


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether outputs of shape `(batch, classes)` are distributions: nothing negative, each row with a sum of 1.

    Example:
        >>> are_probabilities(np.array([[0.25, 0.75]])), are_probabilities(np.array([[2.0, -1.0]]))
        (True, False)
    """
    outputs = np.asarray(outputs, "float64")
    return bool((outputs >= 0).all() and np.allclose(outputs.sum(-1), 1.0, atol=1e-2))
