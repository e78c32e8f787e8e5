"""Subclassed tf_keras models as functional ones: their `call` is run once with symbolic inputs.

Invariant: the functional model is made of the same layers, and gives the same outputs on random inputs. Left out:
subclassed models within a model, and what a layer does inside its own `call`.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfcompress.errors import ModelError

_TOLERANCE = 1e-6
_BATCH = 2
_UNKNOWN_SIZE = 8


def as_functional_tf_keras(model: Any, input_shape: Any = None) -> Any:
    """Gives the functional tf_keras model over the same layers.

    Args:
        model: A tf_keras model; one with a graph is returned as it is.
        input_shape: Shape of each input without the batch: a tuple, or a list or dict of tuples. By default that of the
            last call.

    Raises:
        ModelError: If the shape is not known, or `call` cannot be run with symbolic inputs, or computes something else.
    """
    if isinstance(model, tf_keras.Sequential) and not model.inputs:
        model = tf_keras.Sequential([tf_keras.Input(_only(_inputs(model, input_shape))), *model.layers], model.name)
    if model.inputs:
        return model
    inputs = _inputs(model, input_shape)
    if not model.built:
        model(inputs)
    parameters = inspect.signature(model.call).parameters
    try:
        outputs = model.call(inputs, **({"training": None} if "training" in parameters else {}))
        functional = tf_keras.Model(inputs, outputs, name=model.name)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        tf.errors.OpError,
    ) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"The `call` of the tf_keras model {model.name!r} cannot be run with symbolic inputs: {reason} Use layers "
            "and TensorFlow functions of tensors in it, or build the model with `tf_keras.Model(inputs, outputs)`."
        ) from error
    _compare(model, functional)
    return functional


def _only(inputs: Any) -> tuple:
    (tensor,) = tf.nest.flatten(inputs)
    return tuple(tensor.shape[1:])


def _inputs(model: Any, input_shape: Any) -> Any:
    if input_shape is None:
        spec = model.save_spec(dynamic_batch=True)
        if spec is None:
            raise ModelError(
                f"The tf_keras model {model.name!r} has no input shape yet. Call it on a batch of data first, or pass "
                "`input_shape`, such as `input_shape=(32, 32, 3)`."
            )
        return tf.nest.map_structure(lambda each: tf_keras.Input(each.shape[1:], dtype=each.dtype), spec[0][0])
    return _from_shapes(input_shape)


def _from_shapes(shapes: Any) -> Any:
    if isinstance(shapes, dict):
        return {key: _from_shapes(part) for key, part in shapes.items()}
    if all(size is None or isinstance(size, int) for size in shapes):
        return tf_keras.Input(tuple(shapes))
    return [_from_shapes(part) for part in shapes]


def _compare(model: Any, functional: Any) -> None:
    rng = np.random.default_rng(0)

    def sample(tensor: Any) -> Any:
        shape = (_BATCH, *(size or _UNKNOWN_SIZE for size in tensor.shape[1:]))
        values = rng.uniform(-1, 1, shape) if tensor.dtype.is_floating else rng.integers(0, 2, shape)
        return tf.cast(values, tensor.dtype)

    samples = tf.nest.map_structure(sample, functional.input)
    expected, received = (tf.nest.flatten(each(samples, training=False)) for each in (model, functional))
    for one, other in zip(expected, received, strict=True):
        if not np.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE):
            raise ModelError(
                f"The graph of the tf_keras model {model.name!r} computes something else than its `call`, which "
                "depends on values, or on what it did before. Build it with `tf_keras.Model(inputs, outputs)`."
            )
