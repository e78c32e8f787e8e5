"""BatchNormalization whose training step is one operation instead of a dozen.

Keras 3 writes the mean, the variance and the scaling out, each a pass over the whole map, forwards and backwards. The
fused operation of TensorFlow takes about half the time on a CPU, which pays for the rounding of a quantization-aware
model. It computes the same, but for the last bits.

Invariant: outputs, gradients and moving statistics are those of `keras.layers.BatchNormalization` within the rounding
of what it computes in; statistics are float32, and in inference it is that layer. Left out: what the operation cannot
do (other axes, masks, renormalization, statistics over several replicas), which Keras computes.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

# The operation raises a smaller one to this on a GPU.
_SMALLEST_EPSILON = 1.001e-5
# Statistics and their variables are float32 in any case.
_COMPUTED = ("float32", "bfloat16", "float16")


@keras.saving.register_keras_serializable(package="tfcompress")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` with a faster training step for maps of shape (batch, height, width, channels).

    Arguments, weights, inputs and outputs are those of the Keras layer.

    Example:
        >>> layer = FusedBatchNormalization()
        >>> layer(tf.ones((2, 4, 4, 3)), training=True).shape
        TensorShape([2, 4, 4, 3])
    """

    base_class: type[keras.layers.Layer] = keras.layers.BatchNormalization
    rounding_keys: tuple[str, ...] = ()

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable and mask is None and self._is_fusible(inputs)):
            return super().call(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.cast(self.gamma, tf.float32) if self.scale else tf.ones(channels),
            offset=tf.cast(self.beta, tf.float32) if self.center else tf.zeros(channels),
            mean=tf.zeros(0),
            variance=tf.zeros(0),
            epsilon=self.epsilon,
            is_training=True,
        )
        # The operation gives the variance of a sample, Keras follows that of the batch.
        count = tf.cast(tf.size(inputs) // channels, tf.float32)
        variance = variance * (count - 1.0) / count
        for moving, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + tf.stop_gradient(now) * (1.0 - self.momentum))
        return outputs

    def _is_fusible(self, inputs: Any) -> bool:
        return (
            self.compute_dtype == inputs.dtype.name in _COMPUTED
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and self.epsilon >= _SMALLEST_EPSILON
            and not self.synchronized
            # Keras 3.12 has no renormalization yet.
            and not getattr(self, "renorm", False)
        )
