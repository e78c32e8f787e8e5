"""Proof that a model computes the same in both Keras: each layer by itself, then all of them together.

Invariant: both twins of a layer are given the very same tensors, those that the Keras 3 side computed, so a difference
is that layer's own and does not add up. Compared are outputs in inference; outputs, gradients and moved statistics in
training. Neither model is changed. Left out: outputs of layers that draw random numbers, in training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.bridge.difference import as_array, difference
from tfcompress.bridge.weights import paired_weights
from tfcompress.errors import ModelError
from tfcompress.graph.random_inputs import LARGE_OPEN_SIZE, OPEN_SIZE, TABLES, random_floats, random_inputs
from tfcompress.graph.recurrent_states import states_of
from tfcompress.graph.trace import Ref, Trace

# Largest difference of a model's outputs, as a share of the largest output: float32 sums in another order.
TOLERANCE = 1e-5
# Of one layer's gradients and statistics, which are sums over many more terms.
TRAINING_TOLERANCE = 1e-4
# How many roundings of its own precision a layer of half precision may differ by.
HALF_ROUNDINGS = 16
# Below this share of a layer's largest gradient, another one is small.
SMALL_GRADIENT = 0.01
BATCH = 2
# What a weight that is not trained is called among the results of a step.
AFTER = "{} after a training step"


@dataclasses.dataclass(frozen=True, eq=False)
class Twin:
    """A layer or operation in both Keras.

    Args:
        name: What it is called in the model that crosses.
        keras_layer: The layer or operation of Keras 3.
        legacy_layer: The layer of tf_keras.
        run_keras: `(args, kwargs, training) -> result` on the Keras 3 side, with the arguments of the traced call.
        run_legacy: The same on the tf_keras side.
    """

    name: str
    keras_layer: Any
    legacy_layer: Any
    run_keras: Callable[[tuple, Mapping, bool | None], Any]
    run_legacy: Callable[[tuple, Mapping, bool | None], Any]


def call_layer(layer: Any, args: tuple, kwargs: Mapping, training: bool | None) -> Any:
    """Calls a layer of either Keras, without keyword arguments that say nothing, and with `training` if it knows it.

    What a Keras 3 graph says of `training` is a default that a model's own mode overrules, so it does not cross.
    """
    given = {key: value for key, value in kwargs.items() if value is not None and key != "training"}
    if training is not None and "training" in inspect.signature(layer.call).parameters:
        given["training"] = training
    return layer(*args, **given)


def check_parity(traced: Trace, twins: Mapping[int, Twin], *, keras_model: Any, legacy_model: Any) -> None:
    """Raises a `ModelError` that names the first layer whose twins differ on random inputs."""
    layers = {id(layer): layer for twin in twins.values() for layer in (twin.keras_layer, twin.legacy_layer)}
    with contextlib.ExitStack() as stack:
        for layer in layers.values():
            stack.enter_context(_put_back(layer))
        inputs, given = _usable_inputs(traced, keras_model)
        try:
            _check_layers(traced, twins, inputs)
            _check_whole(traced, given, keras_model, legacy_model, list(layers.values()))
        except ModelError:
            raise
        except (tf.errors.OpError, TypeError, ValueError, LookupError) as error:
            raise ModelError(
                f"Model {traced.name!r} cannot be compared with its twin, since one of them fails on random inputs of "
                f"shapes {[array.shape for array in inputs]}: {error}"
            ) from error


def _usable_inputs(traced: Trace, model: Any) -> tuple[list[np.ndarray], Any]:
    """Inputs on which the model gives finite outputs, if there are some, and the same in its own structure."""
    failure: Exception | None = None
    found: tuple[list[np.ndarray], Any] | None = None
    for open_size in (OPEN_SIZE, LARGE_OPEN_SIZE):
        for signed in (True, False):
            arrays = random_inputs(traced, BATCH, open_size=open_size, signed=signed)
            by_ref = {Ref(at): tf.convert_to_tensor(value) for at, value in enumerate(arrays)}
            given = keras.tree.map_structure(by_ref.__getitem__, traced.inputs)
            try:
                outputs = keras.tree.flatten(model(given, training=False))
            except (tf.errors.OpError, TypeError, ValueError) as error:
                failure = error
                continue
            found = found or (arrays, given)
            if all(np.isfinite(as_array(output)).all() for output in outputs if _is_float(output)):
                return arrays, given
    if found is not None:
        return found
    raise ModelError(
        f"Model {traced.name!r} cannot be compared with its twin, since it fails on random inputs: {failure}"
    ) from failure


def _check_layers(traced: Trace, twins: Mapping[int, Twin], inputs: Sequence[np.ndarray]) -> None:
    results: list[list[Any]] = [[tf.convert_to_tensor(value)] for value in inputs]
    waiting = _last_uses(traced)

    def real(ref: Ref) -> Any:
        return results[ref.call][ref.position]

    for index in range(len(inputs), len(traced.calls)):
        results.append(_compare_twins(twins[index], *traced.calls[index].arguments(real)))
        for done in waiting.get(index, ()):
            results[done] = []  # A large network's tensors would otherwise all stay.


def _check_whole(traced: Trace, given: Any, keras_model: Any, legacy_model: Any, layers: Sequence[Any]) -> None:
    outputs = []
    for model in (keras_model, legacy_model):
        for layer in layers:
            _forget_states(layer)
        outputs.append(keras.tree.flatten(model(given, training=False)))
    apart = difference(*outputs)
    tolerance = max([TOLERANCE, *(_coarsest(layer) for layer in layers)])
    if not apart <= tolerance:
        raise ModelError(
            f"Model {traced.name!r} computes something else in the other Keras, though each of its layers agrees: its "
            f"outputs differ by {apart:.2g} of the largest. This is a mistake of tfcompress; please report it."
        )


def _coarsest(layer: Any) -> float:
    """What a layer that computes in half precision may differ by; 0 for others."""
    dtype = tf.as_dtype(getattr(layer, "compute_dtype", None) or "float32")
    if dtype not in (tf.float16, tf.bfloat16):
        return 0.0
    return HALF_ROUNDINGS * (2**-10 if dtype == tf.float16 else 2**-7)


def _compare_twins(twin: Twin, args: tuple, kwargs: Mapping) -> list[Any]:
    """Compares a layer with its twin in both modes, and returns its outputs in inference."""
    layers = (twin.keras_layer, twin.legacy_layer)
    tolerance = max(TOLERANCE, *map(_coarsest, layers))
    if not any("training" in inspect.signature(layer.call).parameters for layer in layers):
        # One mode only: its outputs are those of the training step.
        outputs = _compare_training(twin, args, kwargs, tolerance)
        return keras.tree.flatten(twin.run_keras(args, kwargs, False)) if outputs is None else outputs
    for layer in layers:
        _forget_states(layer)
    expected = keras.tree.flatten(twin.run_keras(args, kwargs, False))
    _compare(twin, "outputs in inference", expected, twin.run_legacy(args, kwargs, False), tolerance)
    if twin.keras_layer.weights and type(twin.keras_layer).__name__ not in TABLES:
        args = _well_conditioned(twin.keras_layer, args)
    _compare_training(twin, args, kwargs, max(tolerance, TRAINING_TOLERANCE))
    return expected


def _compare_training(twin: Twin, args: tuple, kwargs: Mapping, tolerance: float) -> list[Any] | None:
    """Compares one training step of a layer; returns its outputs unless they are random."""
    pairs = _weights(twin)
    # Several kernels of one layer are told apart by where they are in it.
    names = [f"{one.name} ({number}: {getattr(one, 'path', one.name)})" for number, (one, _) in enumerate(pairs)]

    def step(run: Callable, layer: Any, side: int, inputs: tuple) -> dict[str, Any]:
        with _put_back(layer) as before:
            _forget_states(layer)
            weights = dict(zip(names, (pair[side] for pair in pairs), strict=True))
            measured = _step(run, layer, weights, inputs, kwargs)
            if getattr(layer, "fused", False):
                (name,) = (name for name, weight in weights.items() if weight is layer.moving_variance)
                what, was = AFTER.format(name), before[id(layer.moving_variance)]
                measured[what] = _with_all_samples(measured[what], was, layer, inputs[0])
            return measured

    with _put_back(twin.keras_layer):
        if _is_random(twin, args, kwargs):
            return None
    expected = step(twin.run_keras, twin.keras_layer, 0, args)
    actual = step(twin.run_legacy, twin.legacy_layer, 1, args)
    if set(expected) != set(actual):
        raise ModelError(
            f"Layer {twin.name!r} trains other weights in the other Keras: "
            f"{', '.join(sorted(set(expected) ^ set(actual)))} in one of them only."
        )
    for what in expected:
        allowed = tolerance if what == "outputs" else max(tolerance, TRAINING_TOLERANCE)
        apart = difference(expected[what], actual[what])
        if apart > allowed and "gradient" in what:
            # One that is zero but for rounding, as that of an attention's key bias, is held against the others.
            apart = difference(expected[what], actual[what], SMALL_GRADIENT * _largest_gradient(expected))
        _require(twin, what if what != "outputs" else "outputs of a training step", apart, allowed)
    return expected["outputs"]


def _largest_gradient(measured: Mapping[str, Any]) -> float:
    gradients = [
        as_array(leaf) for what in measured if "gradient" in what for leaf in keras.tree.flatten(measured[what])
    ]
    return max((float(np.abs(one[np.isfinite(one)]).max(initial=0.0)) for one in gradients), default=0.0)


@contextlib.contextmanager
def _put_back(layer: Any) -> Iterator[dict[int, np.ndarray]]:
    """Gives what a training call may change in a layer, by identity, and puts it back at the end."""
    trainable = {id(variable) for variable in getattr(layer, "trainable_variables", ())}
    changing = [variable for variable in getattr(layer, "variables", ()) if id(variable) not in trainable]
    known = {id(variable) for variable in changing}
    changing += [state for state in states_of(layer) if id(state) not in known]
    before = {id(variable): as_array(variable) for variable in changing}
    try:
        yield before
    finally:
        for variable in changing:
            variable.assign(before[id(variable)])


def _forget_states(layer: Any) -> None:
    for state in states_of(layer):
        state.assign(np.zeros(state.shape))


def _well_conditioned(layer: Any, args: tuple) -> tuple:
    """The arguments with other floats, of the same shapes.

    What an untrained network computes may hardly vary, and the statistics and gradients of such tensors are all
    rounding. So are those of two samples in a BatchNormalization, which makes them 1 and -1 whatever they are.
    """
    rng = np.random.default_rng(1)

    def change(leaf: Any) -> Any:
        if not _is_float(leaf):
            return leaf
        mask = getattr(leaf, "_keras_mask", None)
        more = isinstance(layer, keras.layers.BatchNormalization) and mask is None
        shape = (8, *leaf.shape[1:]) if more else tuple(leaf.shape)
        other = tf.cast(random_floats(rng, shape, signed=True), leaf.dtype)
        if mask is not None:
            other._keras_mask = mask
        return other

    return keras.tree.map_structure(change, args)


def _with_all_samples(moved: np.ndarray, before: np.ndarray, layer: Any, inputs: Any) -> np.ndarray:
    """What tf_keras's fused kernel would have moved a variance to with n samples in the denominator, as Keras 3 has it.

    It divides by n - 1. The difference vanishes with the size of a batch, and Keras 3 has no way to do the same.
    """
    samples = inputs.shape.num_elements() // inputs.shape[-1]
    kept = layer.momentum * before
    return kept + (moved - kept) * (samples - 1) / samples


def _weights(twin: Twin) -> list[tuple[Any, Any]]:
    is_layer = isinstance(twin.keras_layer, keras.layers.Layer)
    return paired_weights(twin.keras_layer, twin.legacy_layer) if is_layer else []


def _step(run: Callable, layer: Any, weights: Mapping[str, Any], args: tuple, kwargs: Mapping) -> dict[str, Any]:
    """What a training step of a layer gives: its outputs, the gradients of a fixed sum of them, its other weights."""
    trained = {id(variable) for variable in getattr(layer, "trainable_variables", ())}
    names = [name for name, weight in weights.items() if id(weight) in trained]
    variables = [
        getattr(weights[name], "value", weights[name]) if isinstance(weights[name], keras.Variable) else weights[name]
        for name in names
    ]
    inputs = [leaf for leaf in keras.tree.flatten((args, dict(kwargs))) if _is_float(leaf)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = keras.tree.flatten(run(args, kwargs, True))
        sums = [tf.reduce_sum(_fixed(leaf) * tf.cast(leaf, tf.float32)) for leaf in outputs if _is_float(leaf)]
        total = tf.add_n([tf.zeros(()), *sums])
    try:
        gradients = tape.gradient(total, [*inputs, *variables], unconnected_gradients="zero")
    except LookupError:  # An operation of it has no gradient, so nothing before it is trained.
        gradients = [tf.zeros(())] * (len(inputs) + len(variables))
    measured: dict[str, Any] = {"outputs": outputs, "gradients": gradients[: len(inputs)]}
    for name, gradient in zip(names, gradients[len(inputs) :], strict=True):
        measured[f"the gradient of {name!r}"] = gradient
    for name in weights.keys() - set(names):
        measured[AFTER.format(name)] = as_array(weights[name])
    return measured


def _is_random(twin: Twin, args: tuple, kwargs: Mapping) -> bool:
    """Whether a layer draws random numbers when it trains: whether its generator has moved after a call."""
    layer = twin.keras_layer
    weights = {id(weight) for weight in getattr(layer, "weights", ())}
    generators = [variable for variable in getattr(layer, "variables", ()) if id(variable) not in weights]
    if not generators:
        return False
    before = [as_array(generator) for generator in generators]
    twin.run_keras(args, kwargs, True)
    return any(not np.array_equal(as_array(now), then) for now, then in zip(generators, before, strict=True))


def _fixed(tensor: tf.Tensor) -> np.ndarray:
    """Weights of a sum that no symmetry of a layer cancels, equal for equal shapes."""
    shape = tuple(tensor.shape)
    return np.sin(np.arange(np.prod(shape, dtype=int), dtype=np.float32) * 0.7 + 0.3, dtype=np.float32).reshape(shape)


def _compare(twin: Twin, what: str, expected: Any, actual: Any, tolerance: float) -> None:
    _require(twin, what, difference(expected, actual), tolerance)


def _require(twin: Twin, what: str, apart: float, tolerance: float) -> None:
    if not apart <= tolerance:
        raise ModelError(
            f"Layer {twin.name!r} ({type(twin.keras_layer).__name__}) does not compute the same in Keras 3 and "
            f"tf_keras: {what} differ by {apart:.2g} of the largest value, and may by {tolerance:.0e}. "
            "Pass `layers={its class: function}` with a function that makes a layer that does."
        )


def _last_uses(traced: Trace) -> dict[int, list[int]]:
    """Which calls' results are needed for the last time by each call."""
    last: dict[int, int] = {}
    for index, call in enumerate(traced.calls):
        last |= {ref.call: index for ref in call.sources}
    uses: dict[int, list[int]] = {}
    for source, index in last.items():
        uses.setdefault(index, []).append(source)
    return uses


def _is_float(leaf: Any) -> bool:
    return tf.is_tensor(leaf) and leaf.dtype.is_floating
