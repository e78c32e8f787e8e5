"""Convolutions with rounded kernels.

One dimension is computed as two, of which the first is 1: the converter (TensorFlow 2.21) takes no range for each
channel of a one-dimensional convolution, and its runtime computes it in two anyway.

Invariant: that of `rounding.py`. Left out: three dimensions, which have no integer kernel in the runtime.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfcompress.layers.rounding import InnerRanges, RoundedChannels, RoundedKernel


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedConv2D(RoundedChannels, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a kernel rounded for each output channel."""

    base_class = keras.layers.Conv2D

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, self.rounded_kernel(kernel))


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedConv1D(RoundedChannels, keras.layers.Conv1D):
    """`keras.layers.Conv1D` with a kernel rounded for each output channel."""

    base_class = keras.layers.Conv1D

    def call(self, inputs):
        inputs, padding = _padded(self, inputs)
        outputs = ops.conv(
            ops.expand_dims(inputs, 1),
            self.rounded_kernel(ops.expand_dims(self.kernel, 0)),
            strides=(1, *self.strides),
            padding=padding,
            dilation_rate=(1, *self.dilation_rate),
        )
        return _finished(self, ops.squeeze(outputs, 1))


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedConv2DTranspose(RoundedKernel, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` with a kernel rounded as a whole.

    One range for all outputs, since the converter (TensorFlow 2.21) rejects one for each on a transposed convolution
    that was trained with fake quantization.
    """

    per_channel = False
    base_class = keras.layers.Conv2DTranspose

    def call(self, inputs):
        outputs = ops.conv_transpose(
            inputs,
            self.rounded_kernel(self.kernel),
            strides=list(self.strides),
            padding=self.padding,
            output_padding=self.output_padding,
            dilation_rate=self.dilation_rate,
        )
        return _finished(self, outputs)


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedConv1DTranspose(RoundedKernel, keras.layers.Conv1DTranspose):
    """`keras.layers.Conv1DTranspose` with a kernel rounded as a whole, like `QuantizedConv2DTranspose`."""

    per_channel = False
    base_class = keras.layers.Conv1DTranspose

    def call(self, inputs):
        output_padding = None if self.output_padding is None else (0, *_tuple(self.output_padding))
        outputs = ops.conv_transpose(
            ops.expand_dims(inputs, 1),
            self.rounded_kernel(ops.expand_dims(self.kernel, 0)),
            strides=[1, *self.strides],
            padding=self.padding,
            output_padding=output_padding,
            dilation_rate=(1, *self.dilation_rate),
        )
        return _finished(self, ops.squeeze(outputs, 1))


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedDepthwiseConv2D(RoundedChannels, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with a kernel rounded for each output channel."""

    base_class = keras.layers.DepthwiseConv2D

    def call(self, inputs):
        kernel = _rounded_depthwise(self, self.kernel)
        return _finished(self, _depthwise(inputs, kernel, self.strides, self.padding, self.dilation_rate))


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedDepthwiseConv1D(RoundedChannels, keras.layers.DepthwiseConv1D):
    """`keras.layers.DepthwiseConv1D` with a kernel rounded for each output channel."""

    base_class = keras.layers.DepthwiseConv1D

    def call(self, inputs):
        return _finished(self, _depthwise_1d(self, inputs, self.kernel))


class _RoundedSeparable(InnerRanges, RoundedChannels):
    """Mixin: both kernels of a separable convolution, and a range between them."""

    rounding_keys = (*RoundedChannels.rounding_keys, *InnerRanges.rounding_keys)
    kernel_names = ("depthwise_kernel", "pointwise_kernel")

    def build(self, input_shape):
        super().build(input_shape)  # type: ignore[misc]
        self.depthwise_range = self.inner_range("depthwise")


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedSeparableConv2D(_RoundedSeparable, keras.layers.SeparableConv2D):
    """`keras.layers.SeparableConv2D` with both kernels and the result of the first rounded."""

    base_class = keras.layers.SeparableConv2D

    def call(self, inputs, training=False):
        kernel = _rounded_depthwise(self, self.depthwise_kernel)
        outputs = _depthwise(inputs, kernel, self.strides, self.padding, self.dilation_rate)
        outputs = self.depthwise_range(outputs, training=training)
        return _finished(self, ops.conv(outputs, self.rounded_kernel(self.pointwise_kernel), padding="valid"))


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedSeparableConv1D(_RoundedSeparable, keras.layers.SeparableConv1D):
    """`keras.layers.SeparableConv1D` with both kernels and the result of the first rounded."""

    base_class = keras.layers.SeparableConv1D

    def call(self, inputs, training=False):
        outputs = _depthwise_1d(self, inputs, self.depthwise_kernel)
        outputs = ops.expand_dims(self.depthwise_range(outputs, training=training), 1)
        kernel = self.rounded_kernel(ops.expand_dims(self.pointwise_kernel, 0))
        return _finished(self, ops.squeeze(ops.conv(outputs, kernel, padding="valid"), 1))


def _rounded_depthwise(layer: Any, kernel: Any) -> Any:
    """A kernel `(height, width, channels, multiplier)` with a range for each of the channels * multiplier results."""
    height, width, channels, multiplier = kernel.shape
    # TensorFlow's operation wants them on the last axis.
    flat = tf.reshape(tf.convert_to_tensor(kernel), (height, width, 1, channels * multiplier))
    return tf.reshape(layer.rounded_kernel(flat), (height, width, channels, multiplier))


def _depthwise(inputs: Any, kernel: Any, strides: Any, padding: str, dilation_rate: Any) -> Any:
    return ops.depthwise_conv(inputs, kernel, strides=strides, padding=padding, dilation_rate=dilation_rate)


def _depthwise_1d(layer: Any, inputs: Any, kernel: Any) -> Any:
    inputs, padding = _padded(layer, inputs)
    # The runtime's depthwise convolution knows one stride for both dimensions; the first of them is 1 long.
    (stride,) = _tuple(layer.strides)
    outputs = _depthwise(
        ops.expand_dims(inputs, 1),
        _rounded_depthwise(layer, ops.expand_dims(kernel, 0)),
        (stride, stride),
        padding,
        (1, *_tuple(layer.dilation_rate)),
    )
    return ops.squeeze(outputs, 1)


def _padded(layer: Any, inputs: Any) -> tuple[Any, str]:
    """Inputs `(batch, steps, channels)` with causal padding done, and the padding that is left to do."""
    if layer.padding != "causal":
        return inputs, layer.padding
    before = _tuple(layer.dilation_rate)[0] * (_tuple(layer.kernel_size)[0] - 1)
    return ops.pad(inputs, ((0, 0), (before, 0), (0, 0))), "valid"


def _finished(layer: Any, outputs: Any) -> Any:
    if layer.use_bias:
        outputs = outputs + layer.bias
    return outputs if layer.activation is None else layer.activation(outputs)


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)
