"""BatchNormalization statistics of a network that has just lost channels, taken again from data.

Sums of fewer channels have other means and variances than the moving averages remember. A few batches set them right,
without labels and without training: on their own they give back a good part of the accuracy.

Invariant: only moving means and variances change. Left out: weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def reestimate_batch_norm(model: keras.Model, batches: Iterable[Any]) -> int:
    """Sets the moving statistics to mean and variance over all samples of some batches, in place.

    Each batch is normalized by its own statistics, as in training, and so is what the layers behind see.

    Args:
        model: A built model.
        batches: Inputs of shape `(batch, ...)`, or tuples that begin with them.

    Returns:
        The number of layers whose statistics were taken again; 0 if there are none, or no batch.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(name="norm")])
        >>> reestimate_batch_norm(model, [np.array([[1.0, 2.0], [3.0, 6.0]])])
        1
        >>> model.get_layer("norm").moving_mean.numpy().tolist()
        [2.0, 4.0]
    """
    norms = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if not norms:
        return 0

    @tf.function(reduce_retracing=True)
    def follow(inputs: Any) -> None:
        model(inputs, training=True)

    inputs = (batch[0] if isinstance(batch, tuple) else batch for batch in batches)
    return len(norms) if _take_again(norms, follow, inputs) else 0


def set_statistics(layer: keras.layers.BatchNormalization, batches: Iterable[tf.Tensor]) -> None:
    """Sets the moving statistics of one layer to mean and variance over all that it is given, in place.

    Args:
        layer: The layer.
        batches: What it is given, `(batch, ...)`.

    Example:
        >>> norm = keras.layers.BatchNormalization()
        >>> norm.build((None, 2))
        >>> set_statistics(norm, [tf.constant([[1.0, 2.0]]), tf.constant([[3.0, 6.0]])])
        >>> norm.moving_mean.numpy().tolist(), norm.moving_variance.numpy().tolist()
        ([2.0, 4.0], [1.0, 4.0])
    """
    _take_again([layer], lambda batch: layer(batch, training=True), batches)


def _take_again(
    norms: Sequence[keras.layers.BatchNormalization], step: Callable[[Any], Any], batches: Iterable[Any]
) -> int:
    """Sets the moving statistics of layers to those of all batches; returns how many batches there were.

    Args:
        norms: The layers.
        step: Shows them a batch in training.
        batches: What `step` takes, with the samples along the first axis.
    """
    momenta = [layer.momentum for layer in norms]
    seen: list[list[list[np.ndarray]]] = [[] for _ in norms]
    sizes: list[int] = []
    try:
        # With a momentum of zero the moving statistics are those of the last batch.
        for layer in norms:
            layer.momentum = 0.0
        for batch in batches:
            step(batch)
            sizes.append(int(keras.tree.flatten(batch)[0].shape[0]))
            for layer, statistics in zip(norms, seen, strict=True):
                statistics.append([weight.numpy().astype("float64") for weight in _statistics(layer)])
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
    for layer, statistics in zip(norms, seen, strict=True):
        if sizes:
            for weight, value in zip(_statistics(layer), _pooled(statistics, sizes), strict=True):
                weight.assign(value)
    return len(sizes)


def _pooled(statistics: list[list[np.ndarray]], sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of what several batches hold, from those of each; a batch has all of its samples' weight."""
    means, variances = (np.stack(each) for each in zip(*statistics, strict=True))
    mean = np.average(means, axis=0, weights=sizes)
    return mean, np.average(variances + np.square(means - mean), axis=0, weights=sizes)


def _statistics(layer: keras.layers.BatchNormalization) -> list[Any]:
    return [layer.moving_mean, layer.moving_variance]
