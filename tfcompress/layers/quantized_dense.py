"""Matrix products and tables with rounded kernels.

Invariant: that of `rounding.py`. Left out: a product of two activations, which is no layer with a kernel.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfcompress.layers.rounding import RoundedChannels, RoundedKernel


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedDense(RoundedChannels, keras.layers.Dense):
    """`keras.layers.Dense` with a kernel rounded as a whole, or for each output.

    Args:
        per_channel: Whether each output has a range of its own. The converter (TensorFlow 2.21) rejects that on a
            matrix product that was trained with fake quantization, so it becomes a convolution of 1x1, whose scales can
            absorb a BatchNormalization that follows.
    """

    base_class = keras.layers.Dense
    rounding_keys = (*RoundedChannels.rounding_keys, "per_channel")

    def __init__(self, *args: Any, per_channel: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.per_channel = per_channel

    def call(self, inputs, training=None):
        if self.per_channel:
            sizes = inputs.shape[1:]
            flat = ops.reshape(inputs, (-1, 1, 1, sizes[-1]))
            outputs = ops.conv(flat, self.rounded_kernel(self.kernel[None, None]), padding="valid")
            outputs = ops.reshape(outputs, (-1, *sizes[:-1], self.units))
        else:
            outputs = ops.matmul(inputs, self.rounded_kernel(self.kernel))
        if self.use_bias:
            outputs = outputs + self.bias
        return outputs if self.activation is None else self.activation(outputs)

    def get_config(self) -> dict:
        return {**super().get_config(), "per_channel": self.per_channel}


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedEinsumDense(RoundedKernel, keras.layers.EinsumDense):
    """`keras.layers.EinsumDense` with a kernel rounded as a whole."""

    per_channel = False
    base_class = keras.layers.EinsumDense

    def call(self, inputs, training=None):
        outputs = ops.einsum(self.equation, inputs, self.rounded_kernel(self.kernel))
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs if self.activation is None else self.activation(outputs)


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedEmbedding(RoundedKernel, keras.layers.Embedding):
    """`keras.layers.Embedding` with a table rounded as a whole: its rows are handed on with the table's scale."""

    per_channel = False
    base_class = keras.layers.Embedding
    kernel_names = ("embeddings",)

    def call(self, inputs):
        return tf.gather(self.rounded_kernel(self.embeddings), tf.cast(inputs, tf.int32))
