"""Keras layers whose kernel is fake-quantized: the same weights, names and configuration, rounded where they are used.

Invariant: each class is its Keras layer in everything but the values of the kernel in `call`; its variables have the
same names, order and shapes, so weights and masks move over unchanged, and `base_class` gives the plain layer back.
Left out: biases, which the converter stores in 32 bits.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfcompress.layers.fake_quantize import fake_quantize_kernel


class _QuantizedKernel:
    """Mixin: adds `weight_bits`, keeps the kernel in float32, and rounds it on demand."""

    is_fake_quantized = True
    per_channel = True
    base_class: type[keras.layers.Layer]

    def __init__(self, *args: Any, weight_bits: int = 8, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.weight_bits = weight_bits

    def add_weight(self, *args: Any, **kwargs: Any):
        # Rounding must see the float32 kernel: under mixed precision a kernel cast to 16 bits first would round
        # differently from the exported file.
        if kwargs.get("name") == "kernel":
            kwargs["autocast"] = False
        return super().add_weight(*args, **kwargs)  # type: ignore[misc]

    def rounded_kernel(self, kernel: Any) -> Any:
        rounded = fake_quantize_kernel(
            tf.convert_to_tensor(kernel), bits=self.weight_bits, per_channel=self.per_channel
        )
        return tf.cast(rounded, self.compute_dtype)  # type: ignore[attr-defined]

    def get_config(self) -> dict:
        return {**super().get_config(), "weight_bits": self.weight_bits}  # type: ignore[misc]


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedConv2D(_QuantizedKernel, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a kernel rounded for each output channel."""

    base_class = keras.layers.Conv2D

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, self.rounded_kernel(kernel))


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedDepthwiseConv2D(_QuantizedKernel, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with a kernel rounded for each output channel."""

    base_class = keras.layers.DepthwiseConv2D

    def call(self, inputs):
        # One range for each of the channels * multiplier outputs; TensorFlow's op wants them on the last axis.
        height, width, channels, multiplier = self.kernel.shape
        flat = tf.reshape(tf.convert_to_tensor(self.kernel), (height, width, 1, channels * multiplier))
        kernel = tf.reshape(self.rounded_kernel(flat), (height, width, channels, multiplier))
        outputs = keras.ops.depthwise_conv(
            inputs, kernel, strides=self.strides, padding=self.padding, dilation_rate=self.dilation_rate
        )
        if self.use_bias:
            outputs = outputs + self.bias
        return outputs if self.activation is None else self.activation(outputs)


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedDense(_QuantizedKernel, keras.layers.Dense):
    """`keras.layers.Dense` with a kernel rounded as a whole.

    One range for all outputs, since the TFLite converter (TensorFlow 2.21) rejects per-channel ranges on a matrix
    product that was trained with fake quantization.
    """

    per_channel = False
    base_class = keras.layers.Dense

    def call(self, inputs, training=None):
        outputs = keras.ops.matmul(inputs, self.rounded_kernel(self.kernel))
        if self.use_bias:
            outputs = outputs + self.bias
        return outputs if self.activation is None else self.activation(outputs)


QUANTIZED_LAYERS: dict[type[keras.layers.Layer], type[keras.layers.Layer]] = {
    layer.base_class: layer for layer in (QuantizedConv2D, QuantizedDepthwiseConv2D, QuantizedDense)
}
