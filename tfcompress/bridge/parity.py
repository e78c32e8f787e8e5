"""Proof that a model computes the same in both Keras: each layer by itself, then all of them together.

Invariant: both twins of a layer are given the very same tensors, those that the Keras 3 side computed, so a difference
is that layer's own and does not add up. Compared are outputs in inference; outputs, gradients and moved statistics in
training. Neither model is changed. Left out: outputs of layers that draw random numbers, in training.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.bridge.samples import random_inputs
from tfcompress.bridge.weights import paired_weights
from tfcompress.errors import ModelError
from tfcompress.graph.trace import Ref, Trace

# Largest difference of a model's outputs, as a share of the largest output: float32 sums in another order.
TOLERANCE = 1e-5
# Of one layer's gradients and statistics, which are sums over many more terms.
TRAINING_TOLERANCE = 1e-4
BATCH = 2


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
    inputs = random_inputs(traced, BATCH)
    results: list[list[Any]] = [[tf.convert_to_tensor(value)] for value in inputs]
    waiting = _last_uses(traced)

    def real(leaf: Any) -> Any:
        return results[leaf.call][leaf.position] if isinstance(leaf, Ref) else leaf

    for index in range(len(inputs), len(traced.calls)):
        call, twin = traced.calls[index], twins[index]
        args, kwargs = keras.tree.map_structure(real, (call.args, dict(call.kwargs)))
        results.append(_compare_twins(twin, args, kwargs))
        for done in waiting.get(index, ()):
            results[done] = []  # A large network's tensors would otherwise all stay.
    _check_whole(traced, inputs, keras_model, legacy_model)


def _check_whole(traced: Trace, inputs: Sequence[np.ndarray], keras_model: Any, legacy_model: Any) -> None:
    by_ref = {Ref(at): tf.convert_to_tensor(value) for at, value in enumerate(inputs)}
    given = keras.tree.map_structure(by_ref.__getitem__, traced.inputs)
    expected, actual = (model(given, training=False) for model in (keras_model, legacy_model))
    difference = _difference(keras.tree.flatten(expected), keras.tree.flatten(actual))
    if not difference <= TOLERANCE:
        raise ModelError(
            f"Model {traced.name!r} computes something else in the other Keras, though each of its layers agrees: its "
            f"outputs differ by {difference:.2g} of the largest. This is a mistake of tfcompress; please report it."
        )


def _compare_twins(twin: Twin, args: tuple, kwargs: Mapping) -> list[Any]:
    """Compares a layer with its twin in both modes, and returns its outputs in inference."""
    layers = (twin.keras_layer, twin.legacy_layer)
    if not any("training" in inspect.signature(layer.call).parameters for layer in layers):
        # One mode only: its outputs are those of the training step.
        outputs = _compare_training(twin, args, kwargs, TOLERANCE)
        return keras.tree.flatten(twin.run_keras(args, kwargs, False)) if outputs is None else outputs
    expected = keras.tree.flatten(twin.run_keras(args, kwargs, False))
    _compare(twin, "outputs in inference", expected, twin.run_legacy(args, kwargs, False), TOLERANCE)
    _compare_training(twin, args, kwargs, TRAINING_TOLERANCE)
    return expected


def _compare_training(twin: Twin, args: tuple, kwargs: Mapping, tolerance: float) -> list[Any] | None:
    """Compares one training step of a layer and puts its state back; returns its outputs unless they are random."""
    state = [saved for layer in (twin.keras_layer, twin.legacy_layer) for saved in _state(layer)]
    try:
        # First, since it draws from the generators that the step draws from too.
        if _is_random(twin, args, kwargs):
            return None
        expected = _step(twin.run_keras, twin.keras_layer, args, kwargs)
        actual = _step(twin.run_legacy, twin.legacy_layer, args, kwargs)
        _compare(twin, "outputs", expected.outputs, actual.outputs, tolerance)
        _compare(twin, "gradients", expected.of_inputs, actual.of_inputs, TRAINING_TOLERANCE)
        before = {id(variable): value for variable, value in state}
        for one, other in _weights(twin):
            gradients = expected.of_weights.get(id(one)), actual.of_weights.get(id(other))
            if (gradients[0] is None) != (gradients[1] is None):
                raise ModelError(f"Layer {twin.name!r} trains its weight {one.name!r} in one Keras only.")
            if gradients[0] is not None:
                _compare(twin, f"the gradient of {one.name!r}", *gradients, TRAINING_TOLERANCE)
            else:
                moved = _array(other)
                if _is_fused_variance(twin.legacy_layer, other):
                    moved = _with_all_samples(moved, before[id(other)], twin.legacy_layer, args[0])
                _compare(twin, f"{one.name!r} after a training step", _array(one), moved, TRAINING_TOLERANCE)
        return expected.outputs
    finally:
        for variable, value in state:
            variable.assign(value)


def _is_fused_variance(layer: Any, weight: Any) -> bool:
    return bool(getattr(layer, "fused", False)) and weight is getattr(layer, "moving_variance", None)


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


def _state(layer: Any) -> list[tuple[Any, np.ndarray]]:
    """What a training call may change in a layer: statistics, and the state of random generators."""
    trainable = {id(variable) for variable in getattr(layer, "trainable_variables", ())}
    return [
        (variable, _array(variable)) for variable in getattr(layer, "variables", ()) if id(variable) not in trainable
    ]


@dataclasses.dataclass(frozen=True)
class _Step:
    """Outputs of a training call, and the gradients of a fixed weighted sum of them."""

    outputs: list[Any]
    of_inputs: list[Any]
    of_weights: dict[int, Any]  # by the identity of the weight


def _step(run: Callable, layer: Any, args: tuple, kwargs: Mapping) -> _Step:
    weights = list(getattr(layer, "trainable_variables", ()))
    variables = [
        getattr(weight, "value", weight) if isinstance(weight, keras.Variable) else weight for weight in weights
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
    of_weights = {id(weight): gradient for weight, gradient in zip(weights, gradients[len(inputs) :], strict=True)}
    return _Step(outputs, gradients[: len(inputs)], of_weights)


def _is_random(twin: Twin, args: tuple, kwargs: Mapping) -> bool:
    """Whether a layer draws random numbers when it trains: whether its generator has moved after a call."""
    layer = twin.keras_layer
    weights = {id(weight) for weight in getattr(layer, "weights", ())}
    generators = [variable for variable in getattr(layer, "variables", ()) if id(variable) not in weights]
    if not generators:
        return False
    before = [_array(generator) for generator in generators]
    twin.run_keras(args, kwargs, True)
    return any(not np.array_equal(_array(now), then) for now, then in zip(generators, before, strict=True))


def _fixed(tensor: tf.Tensor) -> tf.Tensor:
    """Weights of a sum that no symmetry of a layer cancels, equal for equal shapes."""
    flat = tf.cast(tf.range(tf.size(tensor)), tf.float32)
    return tf.reshape(tf.sin(flat * 0.7 + 0.3), tf.shape(tensor))


def _compare(twin: Twin, what: str, expected: Any, actual: Any, tolerance: float) -> None:
    one, other = keras.tree.flatten(expected), keras.tree.flatten(actual)
    difference = _difference(one, other) if len(one) == len(other) else float("inf")
    if not difference <= tolerance:
        raise ModelError(
            f"Layer {twin.name!r} ({type(twin.keras_layer).__name__}) does not compute the same in Keras 3 and "
            f"tf_keras: {what} differ by {difference:.2g} of the largest value, and may by {tolerance:.0e}. "
            "Pass `layers={its class: function}` with a function that makes a layer that does."
        )


def _difference(expected: Sequence[Any], actual: Sequence[Any]) -> float:
    """Largest difference as a share of the largest value; infinite where shapes, strings or NaNs differ."""
    worst = 0.0
    for one, other in zip(expected, actual, strict=True):
        one, other = _array(one), _array(other)
        if one.shape != other.shape:
            return float("inf")
        if not (np.issubdtype(one.dtype, np.number) and np.issubdtype(other.dtype, np.number)):
            worst = worst if np.array_equal(one, other) else float("inf")
            continue
        one, other = one.astype(np.float64), other.astype(np.float64)
        if not np.array_equal(np.isfinite(one), np.isfinite(other)):
            return float("inf")
        gap = np.abs(np.where(np.isfinite(one), one - other, 0.0)).max(initial=0.0)
        if gap:
            worst = max(worst, float(gap / np.abs(one[np.isfinite(one)]).max(initial=np.finfo(np.float32).tiny)))
    return worst


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


def _array(value: Any) -> np.ndarray:
    if isinstance(value, keras.Variable):
        value = value.value
    # A copy: what `numpy()` gives may be the memory of a variable that changes.
    return np.array(tf.convert_to_tensor(value).numpy())
