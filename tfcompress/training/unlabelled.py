"""Loss and accuracy of a training in which some samples have no label: both are those of the samples that have one.

Invariant: the loss is the mean over the labelled samples of the batch, of all replicas; of a batch without any, it is
0. Left out: labels of several outputs, and of positions, for which Keras's own `ignore_class` is there.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfcompress.data.split import UNLABELLED


class LossOfLabelled(keras.losses.Loss):
    """Another loss, with the samples left out whose label is -1.

    Args:
        loss: A loss on integer labels.

    Example:
        >>> loss = LossOfLabelled(keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> round(float(loss(tf.constant([1, -1]), tf.constant([[0.0, 0.0], [9.0, 0.0]]))), 4)
        0.6931
    """

    ignore_class = UNLABELLED

    def __init__(self, loss: keras.losses.Loss):
        super().__init__(name=loss.name)
        self._loss = loss
        self.from_logits: bool | None = getattr(loss, "from_logits", None)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Values whose mean over the batch is that of the labelled samples, shape `(batch,)`."""
        y_true = ops.reshape(y_true, (-1,))
        labelled = ops.not_equal(y_true, UNLABELLED)
        values = self._loss.call(ops.where(labelled, y_true, 0), y_pred)
        # Keras will divide by the samples of this replica, and by the number of replicas.
        samples = ops.cast(ops.shape(values)[0], values.dtype) * _replicas()
        share = ops.divide_no_nan(samples, ops.cast(count_labels(y_true, UNLABELLED), values.dtype))
        return ops.where(labelled, values * share, 0.0)


class AccuracyOfLabelled(keras.metrics.SparseCategoricalAccuracy):
    """The share of right answers among the samples whose label is not -1."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        labelled = ops.cast(ops.not_equal(ops.reshape(y_true, (-1,)), UNLABELLED), self.dtype)
        return super().update_state(y_true, y_pred, labelled if sample_weight is None else labelled * sample_weight)


def count_labels(labels: Any, ignored: int) -> Any:
    """How many labels of a batch, on all replicas, are not the one that stands for none; float32, shape `()`."""
    count = ops.sum(ops.cast(ops.not_equal(labels, ignored), "float32"))
    context = tf.distribute.get_replica_context()
    # Keras also builds a model outside of any replica, on no values.
    return count if context is None or _replicas() == 1 else context.all_reduce(tf.distribute.ReduceOp.SUM, count)


def _replicas() -> int:
    return tf.distribute.get_strategy().num_replicas_in_sync
