"""The only Keras layers and activations of our own. Importing them lets Keras load a file that holds them.

Invariant: a model of plain Keras layers and these is read back by `keras.saving.load_model` in safe mode. Left out:
where they go in a network (`techniques/quantize`).
"""

from typing import Any

import keras

from tfcompress.layers.activations import legacy_hard_sigmoid
from tfcompress.layers.fake_quantize import FakeQuantize, fake_quantize_kernel, kernel_limits
from tfcompress.layers.fused_batch_normalization import FusedBatchNormalization
from tfcompress.layers.left_in_float import LeftInFloat
from tfcompress.layers.quantized_activation import (
    COMPOSED,
    QuantizedActivation,
    QuantizedReLU,
)
from tfcompress.layers.quantized_attention import QuantizedMultiHeadAttention
from tfcompress.layers.quantized_bidirectional import QuantizedBidirectional
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
from tfcompress.layers.rounding import (
    SIGMOID_RANGE,
    TANH_RANGE,
    copy_plain_weights,
    fixed_range_of,
    plain_weights,
)

# The rounded twin of each Keras layer that has one. What a BatchNormalization follows decides whether it needs its own.
QUANTIZED_LAYERS: dict[type[keras.layers.Layer], type[Any]] = {
    layer.base_class: layer
    for layer in (
        QuantizedBidirectional,
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
    "TANH_RANGE",
    "FakeQuantize",
    "FusedBatchNormalization",
    "LeftInFloat",
    "QuantizedActivation",
    "QuantizedBatchNormalization",
    "QuantizedBidirectional",
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
    "fixed_range_of",
    "kernel_limits",
    "legacy_hard_sigmoid",
    "plain_weights",
]
