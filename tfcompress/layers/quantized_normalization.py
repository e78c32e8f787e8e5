"""Normalizations and rescalings with every step rounded.

Invariant: that of `rounding.py`; while BatchNormalization follows its batches it computes as Keras does. Left out:
GroupNormalization and SpectralNormalization.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfcompress.layers.affine import channel_affine
from tfcompress.layers.fused_batch_normalization import FusedBatchNormalization
from tfcompress.layers.keras_applications import CustomScaleLayer, LayerScale
from tfcompress.layers.rounding import InnerRanges


class _Affine:
    """Mixin of layers that multiply and shift channels; nothing in them needs a range."""

    is_fake_quantized = True
    base_class: type[keras.layers.Layer]
    rounding_keys: tuple[str, ...] = ()

    def affine(self, inputs: Any, scale: Any, offset: Any, training: bool | None) -> Any:
        """`inputs * scale + offset` in the layer's own precision, with a float32 number for each channel."""
        outputs = channel_affine(inputs, scale, offset, training=training)
        return ops.cast(outputs, self.compute_dtype)  # type: ignore[attr-defined]


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedBatchNormalization(_Affine, FusedBatchNormalization):
    """`keras.layers.BatchNormalization` where no convolution absorbs it: in use, a factor and an offset per channel."""

    def call(self, inputs, training=None, mask=None):
        if training and self.trainable:
            return super().call(inputs, training=True, mask=mask)
        scale = tf.math.rsqrt(_float32(self.moving_variance) + self.epsilon)
        if self.scale:
            scale = scale * _float32(self.gamma)
        offset = -_float32(self.moving_mean) * scale
        if self.center:
            offset = offset + _float32(self.beta)
        return self.affine(inputs, scale, offset, training)


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedRescaling(_Affine, keras.layers.Rescaling):
    """`keras.layers.Rescaling` as a factor and an offset per channel."""

    base_class = keras.layers.Rescaling

    def call(self, inputs, training=None):
        scale, offset = (_per_channel(value, inputs.shape[-1]) for value in (self.scale, self.offset))
        return self.affine(inputs, scale, offset, training)


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedNormalization(_Affine, keras.layers.Normalization):
    """`keras.layers.Normalization` as a factor and an offset per channel."""

    base_class = keras.layers.Normalization

    def call(self, inputs, training=None):
        deviation = tf.maximum(tf.sqrt(_float32(self.variance)), keras.config.epsilon())
        mean = _float32(self.mean)
        scale, offset = deviation, mean
        if not self.invert:
            scale, offset = 1.0 / deviation, -mean / deviation
        scale, offset = (_per_channel(value, inputs.shape[-1]) for value in (scale, offset))
        return self.affine(inputs, scale, offset, training)


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedLayerScale(_Affine, LayerScale):
    """ConvNeXt's factor for each channel."""

    base_class = LayerScale

    def call(self, x, training=None):
        gamma = _float32(self.gamma)
        return self.affine(x, gamma, tf.zeros_like(gamma), training)


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedCustomScaleLayer(InnerRanges, CustomScaleLayer):
    """Inception-ResNet's sum of its first input and its second one times a constant."""

    base_class = CustomScaleLayer

    def build(self, input_shape):
        super().build(input_shape)
        self.scaled_range = self.inner_range("scaled")

    def call(self, inputs, training=None):
        return inputs[0] + self.scaled_range(inputs[1] * self.scale, training=training)


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedLayerNormalization(InnerRanges, keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` over the last axis: mean, deviation, its square, root and product.

    The runtime has no layer normalization, and computes negations and squares in float.
    """

    base_class = keras.layers.LayerNormalization

    def build(self, input_shape):
        super().build(input_shape)
        self.mean_range = self.inner_range("mean")
        self.deviation_range = self.inner_range("deviation")
        self.square_range = self.inner_range("square")
        self.variance_range = self.inner_range("variance")
        self.root_range = self.inner_range("root")
        self.product_range = self.inner_range("product")

    def call(self, inputs, training=None):
        values = ops.cast(inputs, "float32")
        mean = self.mean_range(ops.mean(values, axis=-1, keepdims=True), training=training)
        deviation = self.deviation_range(values - mean, training=training)
        square = self.square_range(deviation * deviation, training=training)
        variance = self.variance_range(ops.mean(square, axis=-1, keepdims=True) + self.epsilon, training=training)
        if training:
            # A variance that is rounded to zero has a root without a gradient; the file's root is its largest value.
            variance = ops.maximum(variance, self.epsilon)
        root = self.root_range(ops.rsqrt(variance), training=training)
        # Keras's `rms_scaling` divides the values themselves by their standard deviation, and has no offset.
        outputs = self.product_range((values if self.rms_scaling else deviation) * root, training=training)
        if self.gamma is not None or self.beta is not None:
            channels = inputs.shape[-1]
            scale = tf.ones((channels,)) if self.gamma is None else _float32(self.gamma)
            offset = tf.zeros((channels,)) if self.beta is None or self.rms_scaling else _float32(self.beta)
            outputs = channel_affine(outputs, scale, offset, training=training)
        return ops.cast(outputs, self.compute_dtype)


def _per_channel(value: Any, channels: int) -> Any:
    """One number, or one for each channel in whatever shape, as a float32 tensor `(channels,)`."""
    return tf.broadcast_to(tf.reshape(tf.cast(value, tf.float32), (-1,)), (channels,))


def _float32(variable: Any) -> Any:
    return tf.cast(tf.convert_to_tensor(variable), tf.float32)
