"""Reassignment: a kernel of few values whose weights may change their cluster while it trains.

Beside the kernel that the network computes with, every weight keeps a value of its own. What the optimizer does to the
kernel is done to these (the straight-through estimate); one step of Lloyd's algorithm then gives each weight its
nearest centroid, and each centroid the mean of its weights. Like a mask, that is a constraint of the kernel
(`constraints.py`).

Invariant: at every batch end the kernel holds no more values than when training began, and its zeros are zero. Left
out: choosing the first values (`centroids.py`), and holding them afterwards with fixed members (`shared_values.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.techniques.constraints import Held, constraint_of_layer


class Clusters:
    """The clusters of one kernel: what each weight is by itself, which cluster it is in, and the centroids.

    Args:
        size: Weights of the kernel.
        most: Values that it may hold, zero among them.
        strategy: The distribution strategy that the kernel lives in.
    """

    def __init__(self, size: int, most: int, strategy: Any):
        self._most = most
        with strategy.scope():
            # Every replica computes the same.
            options: dict[str, Any] = {
                "trainable": False,
                "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
            }
            self._own = tf.Variable(tf.zeros([size]), **options)
            # Of weights that are zero, and stay it, `most`: the place of a zero behind the centroids.
            self._groups = tf.Variable(tf.zeros([size], tf.int32), **options)
            # Sorted; those that no weight has had from the start are infinite.
            self._centroids = tf.Variable(tf.fill([most], np.inf), **options)
        self.variables = [self._own, self._groups, self._centroids]

    def are_of(self, kernel: np.ndarray) -> bool:
        """Whether a kernel holds just their values, as that of a training that goes on does."""
        return np.array_equal(self.kernel().numpy().astype(kernel.dtype), kernel.reshape(-1))

    def are_as_many(self, kernel: np.ndarray) -> bool:
        """Whether a kernel holds no more values than it may, and its zeros, as that of an earlier epoch does."""
        zeros = self._groups.numpy() == self._most
        return len(np.unique(kernel)) <= self._most and not kernel.reshape(-1)[zeros].any()

    def choose(self, kernel: np.ndarray, few: np.ndarray) -> None:
        """Takes over a kernel's weights, and those of the kernel that stands for it, of few values."""
        few = few.astype("float32").reshape(-1)
        values = np.unique(few[few != 0])
        self._own.assign(kernel.astype("float32").reshape(-1))
        self._groups.assign(np.where(few == 0, self._most, np.searchsorted(values, few)).astype("int32"))
        self._centroids.assign(np.pad(values, (0, self._most - len(values)), constant_values=np.inf))

    def kernel(self) -> tf.Tensor:
        """The kernel of few values, flat."""
        return _gather(tf.convert_to_tensor(self._centroids), tf.convert_to_tensor(self._groups))

    def follow(self, step: tf.Tensor, constrain: Callable[[tf.Tensor], tf.Tensor]) -> None:
        """Does to the weights what the optimizer did to the kernel, and one step of Lloyd's algorithm.

        A step that left the kernel as it is, such as one of an optimizer that accumulates gradients, changes nothing.

        Args:
            step: What the optimizer added to the kernel, flat, float32.
            constrain: The constraint that the layer has for weights, which are flat; their mean must fulfil it too.
        """
        before, centroids = tf.convert_to_tensor(self._groups), tf.convert_to_tensor(self._centroids)
        own = constrain(self._own + step)
        borders = (centroids[:-1] + centroids[1:]) / 2
        groups = tf.where(before == self._most, before, tf.searchsorted(borders, own))
        members, moves = (
            tf.math.unsorted_segment_sum(of_weights, groups, self._most + 1)[:-1]
            # The mean as the centroid and the mean distance from it keeps the sums small and exact.
            for of_weights in (tf.ones_like(own), own - _gather(centroids, groups))
        )
        # None leaves its stretch of the line, so that they stay sorted; one that no weight has stays where it is.
        means = centroids + moves / tf.maximum(members, 1)
        # No condition of the graph: replicas could not assign within it.
        moved = tf.reduce_any(step != 0)
        for variable, value in ((self._own, own), (self._groups, groups), (self._centroids, means)):
            variable.assign(tf.where(moved, value, tf.convert_to_tensor(variable)))


class ReassignedValues(Held):
    """The constraint of one kernel that keeps it at few values, and lets its weights change which.

    Args:
        variable: A trainable Keras variable; a constraint that it has already is applied before. That of its layer must
            be one on each weight by itself, which a mean of such weights keeps; see `refuse_broken_by_means`.
        clusters: Its clusters, which were chosen.

    Example:
        >>> variable = keras.Variable([1.0, 1.5, 4.0, 0.0])
        >>> clusters = Clusters(4, 3, tf.distribute.get_strategy())
        >>> clusters.choose(variable.numpy(), np.array([1.25, 1.25, 4.0, 0.0]))
        >>> reassigned = ReassignedValues(variable, clusters)
        >>> variable.numpy().tolist()
        [1.25, 1.25, 4.0, 0.0]
        >>> reassigned(tf.constant([1.25, 3.25, 4.0, 9.0])).numpy().tolist()  # The second, 1.5 by itself, becomes 3.5.
        [1.0, 3.75, 3.75, 0.0]

    Reference:
        Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation",
        2013, https://arxiv.org/abs/1308.3432
    """

    keeps_values_few = True

    def __init__(self, variable: Any, clusters: Clusters):
        self._clusters = clusters
        super().__init__(variable)
        variable.assign(self._shaped(variable))

    def hold(self, value: tf.Tensor) -> tf.Tensor:
        before = tf.cast(self._shaped(value), tf.float32)
        step = tf.reshape(tf.cast(value, tf.float32) - before, [-1])
        self._clusters.follow(step, constraint_of_layer(self.variable) or tf.identity)
        return self._shaped(value)

    def reapply(self) -> None:
        # What holds its few values is as it must be: that of the last step, which a further one would move, or that of
        # an earlier epoch, which `EarlyStopping` went back to. An average of weights does not.
        if not self._clusters.are_as_many(keras.ops.convert_to_numpy(self.variable)):
            super().reapply()

    def _shaped(self, like: Any) -> tf.Tensor:
        return tf.cast(tf.reshape(self._clusters.kernel(), like.shape), like.dtype)


def _gather(centroids: tf.Tensor, groups: tf.Tensor) -> tf.Tensor:
    return tf.gather(tf.concat([centroids, [0.0]], 0), groups)
