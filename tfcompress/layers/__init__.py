"""The only Keras layers and activations of our own. Importing them lets Keras load a file that holds them.

Invariant: a model of plain Keras layers and these is read back by `keras.saving.load_model` in safe mode. Left out:
where they go in a network (`techniques/quantize`).
"""

from tfcompress.layers.activations import legacy_hard_sigmoid
from tfcompress.layers.fake_quantize import SMALLEST_RANGE, FakeQuantize, fake_quantize_kernel
from tfcompress.layers.quantized import (
    QUANTIZED_LAYERS,
    QuantizedConv2D,
    QuantizedDense,
    QuantizedDepthwiseConv2D,
)

__all__ = [
    "QUANTIZED_LAYERS",
    "SMALLEST_RANGE",
    "FakeQuantize",
    "QuantizedConv2D",
    "QuantizedDense",
    "QuantizedDepthwiseConv2D",
    "fake_quantize_kernel",
    "legacy_hard_sigmoid",
]
