"""Subclassed models as functional ones: their `call` is run once with symbolic inputs, and what it calls is the graph.

Invariant: the functional model is made of the same layers, so it has the same weights; its outputs equal those of the
original on random inputs; the original's weights and attributes stay as they are. Left out: what a layer does inside
its own `call`, and models whose `call` uses TensorFlow functions, reads values, or branches on them.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.trace import has_graph, require_functional

# Both models run the same operations; only their order of summation may differ.
TOLERANCE = 1e-6
_BATCH = 2
# What code that wants values raises when it is given symbols.
_CALL_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    tf.errors.OpError,
)
_UNKNOWN_SIZE = 8

WITHOUT_GRAPH = (
    "Without a graph it can still be distilled (`Distiller`), pruned by magnitude while it trains (`MagnitudePruning`) "
    "and, wrapped as `keras.Model(inputs, model(inputs))`, exported by `export_tflite`, also quantized after training; "
    "it cannot be quantization-aware trained, cross the bridge to tf_keras, or be compressed layer by layer otherwise."
)


def as_functional(model: keras.Model, input_shape: Any = None) -> keras.Model:
    """Gives the functional model that computes the same as a subclassed one, over the same layers.

    The `call` is run with symbolic inputs, without its `training` argument where it has one, so that layers find out by
    themselves whether they train. Subclassed models within it are opened too, as nested functional models.

    Args:
        model: A Keras model: functional (returned as it is), Sequential, or subclassed. A subclassed model needs no
            weights yet.
        input_shape: Shape of each input without the batch, such as `(32, 32, 3)`: a tuple, or a list or dict of tuples
            for several inputs, or `keras.Input`s or `keras.KerasTensor`s where the type is another one than float32.
            By default what the model says of itself, if it was built or called before.

    Returns:
        A functional model; its outputs have the structure of those of `call`.

    Raises:
        InvalidArgumentError: If `input_shape` is no shape.
        ModelError: If the shape is not known, or `call` cannot be run with symbolic inputs, holds weights that are no
            layer's, or computes something else on real values.

    Example:
        >>> class Scaled(keras.Model):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.dense = keras.layers.Dense(2, name="dense")
        ...     def call(self, inputs):
        ...         return self.dense(inputs) * 2.0
        >>> [type(operation).__name__ for operation in as_functional(Scaled(), (4,)).operations[1:]]
        ['Dense', 'Multiply']
    """
    if not isinstance(model, keras.Model):
        raise InvalidArgumentError("model", "a Keras model", model)
    if isinstance(model, keras.Sequential) and not model.built:
        model = _built_sequential(model, input_shape)
    if has_graph(model):
        graph = require_functional(model)
        functional = _with_opened_parts(graph)
        if functional is graph:
            return graph
    else:
        functional = _traced(model, symbolic_inputs(model, input_shape), {})
    _check(model, functional)
    return functional


def _built_sequential(model: keras.Sequential, input_shape: Any) -> keras.Sequential:
    """A Sequential model over the same layers that begins with an input."""
    inputs = keras.tree.flatten(symbolic_inputs(model, input_shape))
    if len(inputs) != 1:
        raise InvalidArgumentError("input_shape", "the shape of one input for a Sequential model", input_shape)
    return keras.Sequential([inputs[0], *model.layers], name=model.name)


def symbolic_inputs(model: keras.Model, input_shape: Any = None) -> Any:
    """Symbolic inputs in the structure that `call` takes.

    Args:
        model: A model without a graph.
        input_shape: As in `as_functional`.

    Raises:
        InvalidArgumentError: If `input_shape` is no shape.
        ModelError: If it is not given, and the model does not know it.
    """
    if input_shape is not None:
        return _from_shapes(input_shape, "input_shape", has_batch=False)
    shapes = _known_shapes(model)
    if shapes is None:
        raise ModelError(
            f"Model {model.name!r} has no input shape yet. Call it on a batch of data first, or pass `input_shape`, "
            "such as `input_shape=(32, 32, 3)`; for inputs that are no float32, pass `keras.Input`s."
        )
    return _from_shapes(shapes, "get_build_config", has_batch=True)


def _known_shapes(model: keras.Model) -> Any:
    config = model.get_build_config() or {}
    if "shapes_dict" in config:
        # Named after the arguments of `call`: one argument is the whole input.
        shapes = list(config["shapes_dict"].values())
        return shapes[0] if len(shapes) == 1 else None
    return config.get("input_shape")


def _from_shapes(shapes: Any, argument: str, *, has_batch: bool) -> Any:
    if isinstance(shapes, keras.KerasTensor):
        return shapes
    if isinstance(shapes, Mapping):
        return {key: _named(_from_shapes(part, argument, has_batch=has_batch), key) for key, part in shapes.items()}
    if not isinstance(shapes, list | tuple):
        raise InvalidArgumentError(argument, "a shape, or a list or dict of shapes", shapes)
    if all(size is None or (isinstance(size, int) and not isinstance(size, bool)) for size in shapes):
        return keras.Input(tuple(shapes)[1:] if has_batch else tuple(shapes))
    return [_from_shapes(part, argument, has_batch=has_batch) for part in shapes]


def _named(tensor: Any, name: Any) -> Any:
    """An input named after its key, which Keras wants of inputs in a dict."""
    if not isinstance(tensor, keras.KerasTensor) or not isinstance(name, str) or tensor.name == name:
        return tensor
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)


def _traced(model: keras.Model, inputs: Any, arguments: Mapping[str, Any]) -> keras.Model:
    """The functional model of one run of `call`, with subclassed models in it opened."""
    parameters = inspect.signature(model.call).parameters
    given = {"training": None} if "training" in parameters else {}
    try:
        if not model.built:
            # Calling it makes the weights, in their places and under their names.
            model(inputs)
        outputs = model.call(inputs, **given, **arguments)
        leaves = keras.tree.flatten(outputs)
        if not leaves or not all(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
            raise TypeError("`call` returned something else than tensors that depend on its inputs")
        functional = keras.Model(inputs, outputs, name=model.name)
        if given:
            _check_training(model, inputs, arguments, functional)
    except ModelError:
        raise
    except _CALL_ERRORS as error:
        raise ModelError(
            f"The `call` of {type(model).__name__} {model.name!r} cannot be run with symbolic inputs: "
            f"{_reason(error)} Use Keras layers and `keras.ops` in it, or build the model with "
            f"`keras.Model(inputs, outputs)`. {WITHOUT_GRAPH}"
        ) from error
    return _with_opened_parts(functional)


def _reason(error: Exception) -> str:
    """The first sentence of an error; Keras puts where it happened above it."""
    plain = re.sub(r"\x1b\[\d*m", "", str(error))
    lines = [line.strip() for line in plain.splitlines()]
    told = [line for line in lines if line and not line.startswith("Exception encountered when calling")]
    sentence = re.split(r"(?<=[.!?])\s", told[0])[0] if told else "no reason was given."
    return f"{type(error).__name__}: {sentence}" + ("" if sentence.endswith((".", "!", "?")) else ".")


def _check_training(model: keras.Model, inputs: Any, arguments: Mapping[str, Any], functional: keras.Model) -> None:
    """Warns if `call` itself does something else in training, which a graph cannot."""
    outputs = model.call(inputs, training=True, **arguments)
    try:
        training = keras.Model(inputs, outputs)
    except ValueError:
        training = None
    kinds = [
        None if each is None else sorted(type(operation).__name__ for operation in each.operations)
        for each in (training, functional)
    ]
    if kinds[0] != kinds[1]:
        warnings.warn(
            f"The `call` of {type(model).__name__} {model.name!r} does something else when `training` is true. The "
            "functional model does what it does in inference; its layers still know whether they train.",
            stacklevel=4,
        )


def _with_opened_parts(functional: keras.Model) -> keras.Model:
    """The same graph with each subclassed model in it replaced by its functional form."""
    if not any(_is_closed(operation) for operation in functional.operations):
        return functional
    twins: dict[int, keras.Model] = {}

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_closed(operation):
            return operation(*args, **kwargs)
        if id(operation) not in twins:
            inputs = keras.tree.map_structure(_like, args[0])
            extra = {key: value for key, value in kwargs.items() if key not in ("training", "mask")}
            if len(args) != 1 or any(isinstance(leaf, keras.KerasTensor) for leaf in keras.tree.flatten(extra)):
                raise ModelError(
                    f"{type(operation).__name__} {operation.name!r} is called with several arguments that are tensors. "
                    f"Give it its inputs as one list or dict. {WITHOUT_GRAPH}"
                )
            twins[id(operation)] = _traced(operation, inputs, extra)
        return twins[id(operation)](args[0])

    return keras.models.clone_model(functional, clone_function=lambda layer: layer, call_function=call)


def _is_closed(operation: Any) -> bool:
    return isinstance(operation, keras.Model) and not has_graph(operation)


def _like(leaf: Any) -> Any:
    return keras.Input(batch_shape=leaf.shape, dtype=leaf.dtype) if isinstance(leaf, keras.KerasTensor) else leaf


def _check(model: keras.Model, functional: keras.Model) -> None:
    """Compares both on random inputs, with the weights as they are and with others."""
    rng = np.random.default_rng(0)
    kept = {id(weight) for weight in functional.weights}
    floats = [weight for weight in model.weights if "float" in keras.backend.standardize_dtype(weight.dtype)]
    lost = [weight for weight in floats if id(weight) not in kept]
    if lost:
        samples = _samples(functional, rng)
        # Layers that `call` does not use have weights too, which compute nothing.
        if not _equal(_run(model, samples), _run(model, samples, changed=lost)):
            raise ModelError(
                f"Weight {lost[0].path!r} is used outside of a layer by model {model.name!r}, so its graph would not "
                f"train or save it. Put what uses it into a layer of your own. {WITHOUT_GRAPH}"
            )
    # A value that was computed from a weight while `call` ran is a constant of the graph.
    for changed in ((), floats):
        samples = _samples(functional, rng)
        if not _equal(_run(model, samples, changed), _run(functional, samples, changed)):
            raise ModelError(
                f"The graph of {type(model).__name__} {model.name!r} computes something else than its `call`: the "
                "outputs differ on random inputs. Its `call` depends on values, on weights that it reads itself, or on "
                f"what it did before. {WITHOUT_GRAPH}"
            )


def _run(model: keras.Model, samples: Any, changed: Sequence[keras.Variable] = ()) -> list[np.ndarray]:
    """Outputs in inference, with other values in place of some weights, which stay as they are."""
    others = [(weight, keras.ops.convert_to_tensor(weight) * 1.25 + 0.125) for weight in changed]
    with keras.StatelessScope(state_mapping=others):
        outputs = model(samples, training=False)
    return [keras.ops.convert_to_numpy(leaf) for leaf in keras.tree.flatten(outputs)]


def _equal(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    for one, other in zip(some, others, strict=True):
        scale = max(1.0, float(np.abs(one).max(initial=0.0))) if one.dtype.kind == "f" else 1.0
        if one.shape != other.shape or not np.allclose(one, other, rtol=0, atol=TOLERANCE * scale, equal_nan=True):
            return False
    return True


def _samples(functional: keras.Model, rng: np.random.Generator) -> Any:
    return keras.tree.map_structure(lambda tensor: _random(tensor, rng), functional.input)


def _random(tensor: keras.KerasTensor, rng: np.random.Generator) -> np.ndarray:
    shape = (_BATCH, *(_UNKNOWN_SIZE if size is None else size for size in tensor.shape[1:]))
    kind = keras.backend.standardize_dtype(tensor.dtype)
    if "float" in kind:
        return rng.uniform(-1, 1, size=shape).astype("float32")
    # Small numbers are right for indices into a vocabulary too.
    return rng.integers(0, 2, size=shape).astype(kind)
