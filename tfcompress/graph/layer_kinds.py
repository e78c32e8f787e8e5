"""Kinds of Keras layers, by what they compute.

Invariant: what is said of a kind holds for each of its layers, however it is configured, but not for subclasses, which
may compute anything. Left out: which layers a runtime has an integer operation for, and those of Keras's applications
(`layers/keras_applications.py`).
"""

from __future__ import annotations

from typing import Any

from keras import layers

# In inference they give what they take; in training some change it by chance, or add to the loss.
IDLE_IN_INFERENCE = (
    layers.ActivityRegularization,
    layers.AlphaDropout,
    layers.Dropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Identity,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
)
# The same, but Keras writes `training=True` into every call of them, and leaves it out where a model is told that it
# does not train.
AUGMENTATIONS = (
    layers.RandomBrightness,
    layers.RandomContrast,
    layers.RandomFlip,
    layers.RandomRotation,
    layers.RandomTranslation,
    layers.RandomZoom,
)
# One function of each number by itself, without weights.
ELEMENTWISE = (layers.ELU, layers.LeakyReLU, layers.ReLU)

# The positions of a map change, and each channel is treated by itself: zeros come around it, ...
PADDINGS = (layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)
# ... its border goes, ...
CROPPINGS = (layers.Cropping1D, layers.Cropping2D, layers.Cropping3D)
# ... positions are repeated or interpolated, ...
UPSAMPLINGS = (layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D)
# ... there is one number for each window, its mean or its largest, ...
POOLINGS = (
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
)
# ... or one for the whole map.
GLOBAL_POOLINGS = (
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
)

# Sums of products with a kernel that moves over the positions. Its last axis but one is the channels that it reads,
# each filter all of its group, and the last those that it makes.
CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
# Each channel that comes in has filters of its own.
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
# A depthwise kernel, then one of single positions.
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
# Each position that comes in is spread by the kernel, whose last axis is the channels that it reads.
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)


def has_plain_weights(layer: Any) -> bool:
    """Whether a layer, and all within it, computes with its weights as they are: no LoRA beside them, none in int8.

    Example:
        >>> dense = layers.Dense(2)
        >>> dense.build((None, 3))
        >>> dense.enable_lora(1)
        >>> has_plain_weights(dense)
        False
    """
    return not any(
        getattr(one, "lora_enabled", False) or getattr(one, "quantization_mode", None) is not None
        for one in layer._flatten_layers()
    )
