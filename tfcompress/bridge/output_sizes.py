"""How much memory a tf_keras model takes that is run on a small batch, as it is when it crosses the bridge.

Invariant: only shapes are computed, and nothing is run. Left out: what a layer needs besides its results.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfcompress.bridge.guard import refuse
from tfcompress.graph.random_inputs import LARGE_OPEN_SIZE, OPEN_SIZE

# Values of the largest tensor of a batch, where sizes that a model leaves open are the first number. 2^28 are 1 GiB of
# float32, and a run takes some six times its largest tensor; eight images of 1024x1024 with 32 channels have as many, a
# ResNet-152 at 224x224 has 2 % of that. The larger size is tried only where a network makes too little of the smaller.
LIMITS = {OPEN_SIZE: 1 << 28, LARGE_OPEN_SIZE: 1 << 29}
# The sum over all layers, as a multiple of that; a ResNet-152 has 2 to 3, a U-Net of 1024x1024 about 16.
ALL_LAYERS = 32
BATCH = 8


def check_outputs(model: Any, where: str, errors: tuple[type[Exception], ...]) -> None:
    """Refuses layers with outputs that a machine does not hold.

    Args:
        model: A tf_keras model.
        where: The file, for errors.
        errors: What layers raise on sizes that they cannot take.

    Raises:
        ModelError: If a layer's result, or all of them together, are larger than `LIMITS`.
    """
    inputs = getattr(model, "inputs", None) or []
    _add_up(_declared(model), where, LIMITS[OPEN_SIZE])
    if any(size is None for tensor in inputs for size in tuple(tensor.shape)[1:]):
        for open_size, limit in LIMITS.items():
            try:
                outputs = list(_traced(model, open_size))
            except errors:
                continue  # Layers that cannot take this size are not run with it either.
            _add_up(outputs, where, limit)


def _add_up(outputs: Iterable[tuple[str, int]], where: str, limit: int) -> None:
    remedy = "If that is what you want, load it with tf_keras, and pass the model instead of its path."
    total = 0
    for name, values in outputs:
        total += values
        if values > limit:
            what = f"its layer {name!r} gives {values:,} values for a batch of {BATCH}; {limit:,} are allowed"
            raise refuse(where, what, remedy)
    if total > ALL_LAYERS * limit:
        what = f"its layers give {total:,} values for a batch of {BATCH}; {ALL_LAYERS * limit:,} are allowed"
        raise refuse(where, what, remedy)


def _declared(model: Any) -> Iterator[tuple[str, int]]:
    """The results of all calls of all layers, with open sizes as 1."""
    waiting = list(model.layers)
    while waiting:
        layer = waiting.pop()
        waiting.extend(getattr(layer, "layers", ()))
        for tensor in keras.tree.flatten([node.outputs for node in layer._inbound_nodes]):
            yield layer.name, _values(tuple(tensor.shape), 1)


def _traced(model: Any, open_size: int) -> Iterator[tuple[str, int]]:
    """The results of all TensorFlow operations, on inputs whose open sizes are given a number."""

    def specify(tensor: Any) -> tf.TensorSpec:
        first, *rest = tuple(tensor.shape)
        return tf.TensorSpec([first or BATCH, *(open_size if size is None else size for size in rest)], tensor.dtype)

    run = tf.function(lambda inputs: model(inputs, training=False))
    graph = run.get_concrete_function(tf.nest.map_structure(specify, model.input)).graph
    for operation in graph.get_operations():
        for tensor in operation.outputs:
            if tensor.shape.rank is not None:
                yield operation.name, _values(tuple(tensor.shape), open_size)


def _values(shape: tuple[int | None, ...], open_size: int) -> int:
    if not shape:
        return 1
    return (shape[0] or BATCH) * math.prod(open_size if size is None else size for size in shape[1:])
