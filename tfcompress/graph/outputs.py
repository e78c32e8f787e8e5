"""Whether a model's outputs are logits or probabilities.

Invariant: the answer comes from the graph where a softmax shows there, else from the outputs themselves. Left out:
outputs of several labels (sigmoid), which are neither.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfcompress.errors import ModelError
from tfcompress.graph.recurrent_states import without_states
from tfcompress.graph.trace import has_graph, require_functional, trace
from tfcompress.layers import FakeQuantize

# Float32 distributions sum to 1 up to rounding.
SUM_TOLERANCE = 1e-3
# The smallest normal float32: its logarithm, -87, stands for a probability of zero.
SMALLEST_PROBABILITY = float(np.finfo("float32").tiny)


def gives_probabilities(model: keras.Model) -> bool:
    """Whether a classifier gives probabilities.

    A softmax at the end of its graph is proof. Where none shows, the model is asked about random inputs. One without
    inputs of known size is taken to give logits.

    Args:
        model: A built Keras model.

    Example:
        >>> def own_softmax(values):
        ...     return keras.ops.softmax(values)
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation=own_softmax)])
        >>> gives_probabilities(model)
        True
    """
    if not has_graph(model):
        return False
    model = require_functional(model)
    try:
        if ends_in_softmax(model):
            return True
    except ModelError:
        pass  # A layer that cannot be copied can still be asked.
    rng = np.random.default_rng(0)
    shapes = [(tensor.shape[0] or 4, *tensor.shape[1:]) for tensor in model.inputs]
    if any(None in shape for shape in shapes):
        return False
    samples = [
        rng.uniform(size=shape).astype(tensor.dtype if "float" in tensor.dtype else "float32")
        for shape, tensor in zip(shapes, model.inputs, strict=True)
    ]
    with without_states(model):
        outputs = model(keras.tree.pack_sequence_as(model.input, samples), training=False)
    return are_probabilities(keras.ops.convert_to_numpy(keras.tree.flatten(outputs)[0]), output_step(model))


def ends_in_softmax(model: keras.Model) -> bool:
    """Whether the last operation of a functional or Sequential model is a softmax, in a layer or by itself.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="softmax")])
        >>> ends_in_softmax(model)
        True
    """
    operation = _last_operation(model)
    if isinstance(operation, keras.layers.Softmax) or type(operation).__name__ == "Softmax":
        return True
    return getattr(operation, "activation", None) is keras.activations.softmax


def ends_in_sigmoid(model: keras.Model) -> bool:
    """Whether the last operation of a functional or Sequential model is a sigmoid, in a layer or by itself.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="sigmoid")])
        >>> ends_in_sigmoid(model)
        True
    """
    operation = _last_operation(model)
    if type(operation).__name__ == "Sigmoid":
        return True
    return getattr(operation, "activation", None) is keras.activations.sigmoid


def _last_operation(model: keras.Model) -> Any:
    traced = trace(model)
    last = traced.calls[keras.tree.flatten(traced.outputs)[0].call]
    # A fake-quantized softmax is still one.
    while isinstance(last.operation, FakeQuantize):
        last = traced.calls[last.sources[0].call]
    return last.operation


def output_step(model: keras.Model) -> float:
    """The distance of two neighbouring values of a model's output: 0 unless it ends in fake quantization."""
    last = model.layers[-1]
    return last.step if isinstance(last, FakeQuantize) else 0.0


def are_probabilities(outputs: np.ndarray, step: float = 0.0) -> bool:
    """Whether outputs are distributions: nothing negative or above 1, each row with a sum of 1.

    Args:
        outputs: Shape `(batch, classes)`.
        step: Distance of two neighbouring values, 0 for floats: rounded probabilities sum to 1 up to half a step for
            each class.

    Example:
        >>> are_probabilities(np.array([[0.25, 0.75]])), are_probabilities(np.array([[2.0, -1.0]]))
        (True, False)
    """
    outputs = np.asarray(outputs, "float64")
    tolerance = SUM_TOLERANCE + outputs.shape[-1] * step / 2
    in_range = (outputs >= 0).all() and (outputs <= 1 + SUM_TOLERANCE).all()
    return bool(in_range and (np.abs(outputs.sum(-1) - 1) <= tolerance).all())
