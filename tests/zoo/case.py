"""One model of the zoo with the data to try it on.

Invariant: everything follows from fixed seeds, and each `Case` builds its model anew, so that no column sees what an
earlier one did. Weights are random but not special: none is left at zero, one or any other constant, and the
statistics of normalization layers are those of the inputs. Left out: meaning; nothing here can be learned.
"""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from zoo.models import Entry

_STATISTICS_SAMPLES = 32


class Case:
    """A model and its data.

    Args:
        name: Name of the entry in `models.MODELS`.
        entry: The entry.
        folder: Where files may be written; it exists.
    """

    def __init__(self, name: str, entry: Entry, folder: Path):
        self.name = name
        self.entry = entry
        self.folder = folder

    @functools.cached_property
    def model(self) -> keras.Model:
        """The model that the column is about."""
        return self.build(seed=0)

    def build(self, seed: int) -> keras.Model:
        """The model with the weights of `seed`."""
        keras.utils.set_random_seed(seed)
        module, _, function = self.entry.builder.partition(":")
        model = getattr(importlib.import_module(module), function)(**self.entry.arguments)
        stir(model, np.random.default_rng(seed))
        inputs = self._inputs(model, _STATISTICS_SAMPLES, seed=100)
        settle(model, inputs, np.random.default_rng(seed))
        soften(model, inputs)
        return model

    def inputs(self, count: int, *, seed: int = 1) -> Any:
        """Random inputs `(count, ...)` in the structure that the model takes."""
        return self._inputs(self.model, count, seed=seed)

    def outputs(self, model: Any, inputs: Any) -> list[np.ndarray]:
        """What a Keras 3 or tf_keras model gives in inference, as a flat list."""
        # In float32 and eagerly, since compilers add in another order.
        tensors = keras.tree.map_structure(tf.convert_to_tensor, inputs)
        return [np.asarray(output) for output in keras.tree.flatten(model(tensors, training=False))]

    def targets(self, inputs: Any) -> Any:
        """Random regression targets in the structure of the model's outputs."""
        rng = np.random.default_rng(2)
        shapes = self.model(inputs, training=False)
        return keras.tree.map_structure(lambda output: rng.uniform(size=output.shape).astype("float32"), shapes)

    def batches(self, count: int, *, batch: int = 4) -> tf.data.Dataset:
        """Batches `(inputs, targets)`."""
        inputs = self.inputs(count)
        targets = self.targets(inputs)
        packed = keras.tree.map_structure(lambda x: x, (_as_tuple(inputs), _as_tuple(targets)))
        return tf.data.Dataset.from_tensor_slices(packed).batch(batch)

    def _inputs(self, model: keras.Model, count: int, *, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        if self.entry.shapes is not None:
            drawn = {name: self._draw(rng, name, (count, *shape), "float32") for name, shape in self._shapes()}
            return drawn if len(drawn) > 1 else next(iter(drawn.values()))
        arrays = [self._draw(rng, spec.name, (count, *spec.shape[1:]), spec.dtype) for spec in model.inputs]
        return keras.tree.pack_sequence_as(model.input, arrays) if len(arrays) > 1 else arrays[0]

    def _shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        return list((self.entry.shapes or {}).items())

    def _draw(self, rng: np.random.Generator, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        ranges = self.entry.ranges
        low, high = ranges if isinstance(ranges, tuple) else ranges[name]
        if np.dtype(dtype).kind in "iub":
            return rng.integers(int(low), int(high), size=shape).astype(dtype)
        return (low + (high - low) * _patterns(rng, shape)).astype("float32")


def _patterns(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Values in [0, 1] of `shape`, where each sample has a level and a ramp of its own in each channel: of mere noise a
    deep network sees the average, which is the same in all samples."""
    count, *_, channels = shape
    level = rng.uniform(0.2, 0.8, size=(count, *[1] * (len(shape) - 2), channels))
    ramp = rng.uniform(-0.5, 0.5, size=level.shape) * np.linspace(-1, 1, shape[1]).reshape(-1, *[1] * (len(shape) - 2))
    noise = rng.uniform(-0.3, 0.3, size=shape)
    # Of vectors the second axis is the last: there, levels are noise enough.
    return np.clip(level + noise + (ramp if len(shape) > 2 else 0), 0, 1)


def stir(model: keras.Model, rng: np.random.Generator) -> None:
    """Gives every weight that is the same constant throughout values of its own: a crossing that swaps two of them, or
    loses one, must show. Scales that start next to zero (LayerScale) would hide the block that they scale. Kernels grow
    as ReLU wants it, or a deep network without normalization layers (VGG) would answer always the same."""
    for variable in model.trainable_variables:
        if variable.name in ("kernel", "depthwise_kernel") and len(variable.shape) in (2, 4):
            value = keras.ops.convert_to_numpy(variable)
            # He et al., "Delving Deep into Rectifiers", 2015; a depthwise kernel sees one channel.
            fan_in = np.prod(value.shape[: 2 if variable.name == "depthwise_kernel" else -1])
            variable.assign(value * max(1.0, np.sqrt(2 / fan_in) / value.std()))
    for variable in model.weights:
        value = keras.ops.convert_to_numpy(variable)
        if value.dtype.kind != "f" or value.size < 2 or np.ptp(value) > 0:
            continue
        if value.flat[0] == 0:
            drawn = rng.normal(scale=0.05, size=value.shape)
        elif value.flat[0] == 1:
            drawn = rng.uniform(0.8, 1.2, size=value.shape)
        else:
            drawn = rng.uniform(0.05, 0.2, size=value.shape)
        variable.assign(drawn.astype(value.dtype))
    for layer in _all_layers(model):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # It computes with constants that it makes of its weights.


def settle(model: keras.Model, inputs: Any, rng: np.random.Generator) -> None:
    """Sets the statistics of all BatchNormalization layers to those of `inputs`, as training would have.

    Their outputs get a mean of about 1, or the network would be chaos: with half of all units off, each layer makes a
    small difference a little larger, and after fifty layers of random weights rounding is all that is left.
    """
    norms = [layer for layer in _all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    if not norms:
        return
    before = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
        if layer.center:
            layer.beta.assign(rng.normal(1.0, 0.3, size=layer.beta.shape))
    model(inputs, training=True)
    for layer, momentum in zip(norms, before, strict=True):
        layer.momentum = momentum


def soften(model: keras.Model, inputs: Any) -> None:
    """Scales a last dense layer so that its values, before any softmax, are about 1: of 40 it would make 1 and 0."""
    last = model.layers[-1]
    if isinstance(last, keras.layers.Dense) and getattr(model, "inputs", None):
        features = keras.Model(model.inputs, last.input)(keras.tree.flatten(inputs), training=False)
        kernel = keras.ops.convert_to_numpy(last.kernel)
        last.kernel.assign(kernel / np.std(np.asarray(features) @ kernel))


def snapshot(model: keras.Model) -> tuple[str, list[np.ndarray]]:
    """What a model is: its configuration, and copies of its weights."""
    return json.dumps(model.get_config(), sort_keys=True, default=str), [w.copy() for w in model.get_weights()]


def _all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    found: list[keras.layers.Layer] = []
    for layer in model.layers:
        found.extend(_all_layers(layer) if isinstance(layer, keras.Model) else [layer])
    return found


def _as_tuple(structure: Any) -> Any:
    # `tf.data` takes a list for one array.
    return tuple(structure) if isinstance(structure, list) else structure
