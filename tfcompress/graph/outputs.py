"""Whether a model's outputs are logits or probabilities: of classes, by a softmax, or of labels, by a sigmoid each.

Invariant: the answer comes from the graph where a softmax or sigmoid shows there, else from the outputs themselves.
Left out: outputs of which neither tells, such as the sigmoids of a few samples.
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
# Distance of 1 and the next number, of types that round more than that.
_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
# Classes after which the roundings of a softmax cancel: of up to 50,000, sums were off by 2.6 of those distances.
_ROUNDED = 8
# The smallest normal float32: its logarithm, -87, stands for a probability of zero.
SMALLEST_PROBABILITY = float(np.finfo("float32").tiny)
# Fewer logits of trained networks than that may all be between 0 and 1 by chance.
_ENOUGH_VALUES = 8


def gives_probabilities(model: keras.Model) -> bool:
    """Whether a classifier gives probabilities.

    One of which `known_probabilities` tells nothing is taken to give logits.

    Args:
        model: A built Keras model.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="softmax")])
        >>> gives_probabilities(model)
        True
    """
    return bool(known_probabilities(model))


def known_probabilities(model: keras.Model) -> bool | None:
    """Whether a classifier gives probabilities, as far as that shows before any data; None where only outputs tell.

    A softmax at the end of its graph is proof. Where none shows, the model is asked about random inputs, if its inputs
    are numbers of known size.

    Args:
        model: A built Keras model.

    Example:
        >>> def own_softmax(values):
        ...     return keras.ops.softmax(values)
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation=own_softmax)])
        >>> known_probabilities(model)
        True
        >>> model = keras.Sequential([keras.Input((None, 2)), keras.layers.Dense(3, activation=own_softmax)])
        >>> known_probabilities(model) is None
        True
    """
    if not has_graph(model):
        return None
    model = require_functional(model)
    try:
        if ends_in_softmax(model):
            return True
    except ModelError:
        pass  # A layer that cannot be copied can still be asked.
    rng = np.random.default_rng(0)
    shapes = [(tensor.shape[0] or 4, *tensor.shape[1:]) for tensor in model.inputs]
    if any(None in shape for shape in shapes) or any(tensor.dtype == "string" for tensor in model.inputs):
        return None
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


def gives_sigmoids(model: keras.Model) -> bool | None:
    """Whether a model with one output ends in a sigmoid; None where no graph tells."""
    try:
        return ends_in_sigmoid(model) if has_graph(model) else None
    except ModelError:
        return None  # A graph that cannot be followed says nothing about its end.


def ends_without_activation(model: keras.Model) -> bool:
    """Whether the last operation of a functional or Sequential model is a layer whose activation changes nothing."""
    return getattr(_last_operation(model), "activation", None) is keras.activations.linear


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
        outputs: Shape `(batch, classes)`, in the type that they were computed in: float16 and bfloat16 round more.
        step: Distance of two neighbouring values, 0 for floats: rounded probabilities sum to 1 up to half a step for
            each class.

    Example:
        >>> are_probabilities(np.array([[0.25, 0.75]])), are_probabilities(np.array([[2.0, -1.0]]))
        (True, False)
    """
    classes, epsilon = outputs.shape[-1], _EPSILON.get(outputs.dtype.name, 0.0)
    outputs = np.asarray(outputs, "float64")
    tolerance = SUM_TOLERANCE + classes * step / 2 + min(classes, _ROUNDED) * epsilon / 2
    in_range = (outputs >= 0).all() and (outputs <= 1 + SUM_TOLERANCE).all()
    return bool(in_range and (np.abs(outputs.sum(-1) - 1) <= tolerance).all())


def look_like_sigmoids(outputs: np.ndarray) -> bool:
    """Whether outputs of some samples are all between 0 and 1, as those of a sigmoid are and logits hardly ever.

    Outputs that are all the same do not look like it.

    Args:
        outputs: Outputs that are no distributions.

    Example:
        >>> look_like_sigmoids(np.linspace(0, 1, 12).reshape(4, 3)), look_like_sigmoids(np.linspace(-1, 1, 12))
        (True, False)
    """
    outputs = np.asarray(outputs, "float64")
    if outputs.size < _ENOUGH_VALUES or outputs.min() < 0 or outputs.max() > 1:
        return False
    return bool(outputs.min() < outputs.max())
