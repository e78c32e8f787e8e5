"""Quantization-aware training.

`quantize_aware.py` makes a model ready for it: `rewrite.py` says where the layers of `tfcompress.layers` go,
`calibrate.py` where their ranges start, `freeze.py` where they stop, and `biases.py` what is left to round at the end.
`stage.py` is the recipe's `quantize`.
"""

from tfcompress.techniques.quantize.biases import round_biases
from tfcompress.techniques.quantize.freeze import FreezeRanges
from tfcompress.techniques.quantize.quantize_aware import quantize_aware
from tfcompress.techniques.quantize.stage import Quantize

__all__ = ["FreezeRanges", "Quantize", "quantize_aware", "round_biases"]
