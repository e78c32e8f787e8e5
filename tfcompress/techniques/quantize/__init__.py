"""Quantization-aware training.

`quantize_aware.py` makes a model ready for it: `rewrite.py` says where rounding goes, `fake_quant.py` and `layers.py` what it
is, `calibrate.py` where ranges start and `freeze.py` where they stop. `stage.py` is the recipe's `quantize`.
"""

from tfcompress.techniques.quantize.biases import round_biases
from tfcompress.techniques.quantize.fake_quant import FakeQuantize
from tfcompress.techniques.quantize.freeze import FreezeRanges
from tfcompress.techniques.quantize.layers import QuantizedConv2D, QuantizedDense, QuantizedDepthwiseConv2D
from tfcompress.techniques.quantize.quantize_aware import quantize_aware
from tfcompress.techniques.quantize.stage import Quantize

__all__ = [
    "FakeQuantize",
    "FreezeRanges",
    "Quantize",
    "QuantizedConv2D",
    "QuantizedDense",
    "QuantizedDepthwiseConv2D",
    "quantize_aware",
    "round_biases",
]
