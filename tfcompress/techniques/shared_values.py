"""Shared values: kernels that keep holding few distinct values while they train.

A kernel in which weights are equal is a table of a few values and, for each weight, which of them it is. Training it
means to train the table. Like a mask, that is a constraint of the kernel (`constraints.py`).

Invariant: while shared values are installed, weights that were equal at the start are equal at every batch end, and
those that were zero are exactly zero. The model keeps its layers and weights; nothing has to be stripped, and the
kernel itself says which weights belong together. Left out: choosing the values (`cluster/`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.graph.normalized_sums import normalized_sums
from tfcompress.techniques.constraints import Held, begin, refuse_broken_by_means
from tfcompress.techniques.kernels import find_kernels, kernels_of

# What the integers of a file can tell apart.
MOST_VALUES = 256


class PositiveFactors(Held):
    """Factors of a BatchNormalization that stay positive: a negative one would turn the signs of a channel's integers
    around, and a kernel of few values would be one of twice as many."""

    def hold(self, value: tf.Tensor) -> tf.Tensor:
        return tf.maximum(value, tf.zeros((), value.dtype))


class SharedValues(Held):
    """Makes weights that are equal now stay equal: the constraint of one variable, from construction on.

    After each step of the optimizer every group of equal weights gets the mean of its new values. With plain gradient
    descent that moves the value of a group by the learning rate times the *mean* of its weights' gradients. Han et al.
    take their sum, which for a group of n weights is n times as far: a step that grows with the size of the kernel.

    Args:
        variable: A trainable Keras variable; a constraint that it has already is applied before.
        strategy: The distribution strategy that the variable lives in, if any.

    Example:
        >>> variable = keras.Variable([1.0, 2.0, 1.0, 0.0])
        >>> shared = SharedValues(variable)
        >>> shared(tf.constant([1.25, 3.0, 1.75, 9.0])).numpy().tolist()
        [1.5, 3.0, 1.5, 0.0]

    Reference:
        Han et al., "Deep Compression", 2015, section 3, https://arxiv.org/abs/1510.00149
    """

    keeps_values_few = True

    def __init__(self, variable: Any, strategy: Any = None):
        kernel = keras.ops.convert_to_numpy(variable)
        values, first, groups, counts = np.unique(kernel, return_index=True, return_inverse=True, return_counts=True)
        self._size = len(values)
        scope = (strategy or tf.distribute.get_strategy()).scope
        with scope():
            # Variables, since a constant as large as the kernel would be copied into every compiled step.
            self._groups = tf.Variable(groups.reshape(-1).astype("int32"), trainable=False)
            self._first = tf.Variable(first.astype("int32"), trainable=False)
            # Zero for the group of zeros: pruned weights do not come back.
            self._share = tf.Variable((1 / counts).astype("float32"), trainable=False)
            self._alive = tf.Variable((values != 0).astype("float32"), trainable=False)
        super().__init__(variable)

    def hold(self, value: tf.Tensor) -> tf.Tensor:
        flat = tf.cast(tf.reshape(value, [-1]), tf.float32)
        groups = tf.convert_to_tensor(self._groups)
        # The mean as one member and the mean distance from it: a sum of a million equal numbers, divided by a million,
        # would not be that number in float32.
        member = tf.gather(flat, tf.convert_to_tensor(self._first))
        distance = tf.math.unsorted_segment_sum(flat - tf.gather(member, groups), groups, self._size)
        mean = (member + distance * self._share) * self._alive
        return tf.cast(tf.reshape(tf.gather(mean, groups), value.shape), value.dtype)


class HoldClusters(keras.callbacks.Callback):
    """Keeps the few values that the kernels of a model have when training begins.

    What `WeightClustering`, `cluster` or another stage made few stays few through any later training: fine-tuning,
    distillation, quantization-aware training. The values themselves are trained; zeros stay zero.

    Args:
        model: The model to hold (the student, when it trains inside a `Distiller`). Every kernel of at most 256 values,
            fewer than it has weights, is held.

    Raises:
        TrainingError: When training begins, if the same `fit` prunes a kernel that is held.
        ModelError: When training begins, if a kernel that shares values has a constraint of its layer other than
            `NonNeg`.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="y")])
        >>> model.layers[0].kernel.assign([[0.5, 1.0], [1.0, 0.5]]).shape
        TensorShape([2, 2])
        >>> model.compile("sgd", "mse")
        >>> _ = model.fit(np.ones((4, 2)), np.ones((4, 2)), verbose=0, callbacks=[HoldClusters(model)])
        >>> len(np.unique(model.layers[0].kernel.numpy()))
        2
    """

    def __init__(self, model: keras.Model):
        super().__init__()
        self._clustered = model
        self._held: list[Held] = []

    def on_train_begin(self, logs=None):
        found = find_kernels(self._clustered, tables=True)
        # One kernel at a time: a copy of all weights would be another model's memory.
        values = ((kernel, keras.ops.convert_to_numpy(kernel.variable)) for kernel in found)
        few = [(kernel, shares_values(weights)) for kernel, weights in values if holds_few_values(weights)]
        # Where only zeros are equal, each mean is a weight, and no constraint is broken.
        refuse_broken_by_means(kernel for kernel, is_shared in few if is_shared)
        strategy = self.model.distribute_strategy
        kernels = [kernel.variable for kernel, _ in few]
        self._held = share(self, self._clustered, kernels, lambda kernel: SharedValues(kernel, strategy))

    def on_train_end(self, logs=None):
        release(self.model, self._held)
        self._held = []


def share(
    callback: keras.callbacks.Callback, clustered: keras.Model, kernels: Sequence[Any], hold: Callable[[Any], Held]
) -> list[Held]:
    """Installs shared values on kernels of a model, and positive factors on what is folded into them.

    Args:
        callback: Whose training begins.
        clustered: The model that is trained, or its student.
        kernels: Variables of `clustered`.
        hold: Gives the constraint of one of them that keeps its values few.

    Raises:
        TrainingError: If the same training prunes one of them.
    """
    held = [hold(kernel) for kernel in kernels]
    chosen = {id(kernel) for kernel in kernels}
    for layer, norm in normalized_sums(clustered):
        is_shared = any(id(kernel) in chosen for kernel in kernels_of(layer))
        if is_shared and norm.gamma.trainable and keras.ops.convert_to_numpy(norm.gamma).min() >= 0:
            held.append(PositiveFactors(norm.gamma))
    begin(held, callback.params)
    # A step that was compiled before knows nothing of them.
    callback.model.make_train_function(force=True)
    return held


def release(trained: keras.Model, held: Sequence[Held]) -> None:
    """Removes what `share` installed when training has ended."""
    for each in held:
        # An optimizer that averages weights overwrites them at the end.
        each.reapply()
        each.remove()
    # The compiled step still has them in it.
    trained.make_train_function(force=True)


def holds_few_values(kernel: np.ndarray) -> bool:
    """Whether a kernel has at most 256 values, and fewer than weights."""
    return len(np.unique(kernel)) <= min(MOST_VALUES, kernel.size - 1)


def shares_values(kernel: np.ndarray) -> bool:
    """Whether weights that are not zero have few values between them, so that scales of channels would tell them apart.

    Zeros are equal in a pruned kernel too, and are so under any scale.

    Example:
        >>> shares_values(np.array([0.5, 0.25, 0.5])), shares_values(np.array([0.5, 0.0, 0.0]))
        (True, False)
    """
    nonzero = kernel[kernel != 0]
    return nonzero.size > 0 and holds_few_values(nonzero)
