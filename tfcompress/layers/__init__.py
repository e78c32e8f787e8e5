"""The only Keras layers and activations of our own. Importing them lets Keras load a file that holds them.

Invariant: a model of plain Keras layers and these is read back by `keras.saving.load_model` in safe mode. Left out:
where they go in a network (`techniques/quantize`).
"""

from typing import Any

import keras

from tfcompress.layers.activations import legacy_hard_sigmoid
from tfcompress.layers.fake_quantize import SMALLEST_RANGE, FakeQuantize, fake_quantize_kernel
from tfcompress.layers.quantized_activation import (
    COMPOSED,
    SIGMOID_RANGE,
    TANH_RANGE,
    QuantizedActivation,
    QuantizedReLU,
)
from tfcompress.layers.quantized_attention import QuantizedMultiHeadAttention
from tfcompress.layers.quantized_convolution import (
    QuantizedConv1D,
    QuantizedConv1DTranspose,
    QuantizedConv2D,
    QuantizedConv2DTranspose,
    QuantizedDepthwiseConv1D,
    QuantizedDepthwiseConv2D,
    QuantizedSeparableConv1D,
    QuantizedSeparableConv2D,
)
from tfcompress.layers.quantized_dense import QuantizedDense, QuantizedEinsumDense, QuantizedEmbedding
from tfcompress.layers.quantized_normalization import (
    QuantizedBatchNormalization,
    QuantizedCustomScaleLayer,
    QuantizedLayerNormalization,
    QuantizedLayerScale,
    QuantizedNormalization,
    QuantizedRescaling,
)
from tfcompress.layers.quantized_recurrent import QuantizedGRU, QuantizedLSTM, QuantizedSimpleRNN
from tfcompress.layers.rounding import copy_plain_weights, plain_weights

# The rounded twin of each Keras layer that has one. What a BatchNormalization follows decides whether it needs its own.
QUANTIZED_LAYERS: dict[type[keras.layers.Layer], type[Any]] = {
    layer.base_class: layer
    for layer in (
        QuantizedConv1D,
        QuantizedConv1DTranspose,
        QuantizedConv2D,
        QuantizedConv2DTranspose,
        QuantizedCustomScaleLayer,
        QuantizedDense,
        QuantizedDepthwiseConv1D,
        QuantizedDepthwiseConv2D,
        QuantizedEinsumDense,
        QuantizedEmbedding,
        QuantizedGRU,
        QuantizedLSTM,
        QuantizedLayerNormalization,
        QuantizedLayerScale,
        QuantizedMultiHeadAttention,
        QuantizedNormalization,
        QuantizedRescaling,
        QuantizedSeparableConv1D,
        QuantizedSeparableConv2D,
        QuantizedSimpleRNN,
    )
}

__all__ = [
    "COMPOSED",
    "QUANTIZED_LAYERS",
    "SIGMOID_RANGE",
    "SMALLEST_RANGE",
    "TANH_RANGE",
    "FakeQuantize",
    "QuantizedActivation",
    "QuantizedBatchNormalization",
    "QuantizedConv1D",
    "QuantizedConv1DTranspose",
    "QuantizedConv2D",
    "QuantizedConv2DTranspose",
    "QuantizedCustomScaleLayer",
    "QuantizedDense",
    "QuantizedDepthwiseConv1D",
    "QuantizedDepthwiseConv2D",
    "QuantizedEinsumDense",
    "QuantizedEmbedding",
    "QuantizedGRU",
    "QuantizedLSTM",
    "QuantizedLayerNormalization",
    "QuantizedLayerScale",
    "QuantizedMultiHeadAttention",
    "QuantizedNormalization",
    "QuantizedReLU",
    "QuantizedRescaling",
    "QuantizedSeparableConv1D",
    "QuantizedSeparableConv2D",
    "QuantizedSimpleRNN",
    "copy_plain_weights",
    "fake_quantize_kernel",
    "legacy_hard_sigmoid",
    "plain_weights",
]
