"""Quantization-aware training.

`quantize_aware.py` makes a model ready for it: `rewrite.py` says where the layers of `tfcompress.layers` go,
`calibrate.py` where their ranges start, `freeze.py` where they stop, and `biases.py` what is left to round at the end.
`stage.py` is the recipe's `quantize`. `post_training.py` does without training: with ranges that `ranges.py` chooses,
kernels of `equalize.py` and `learned_rounding.py`, and biases of `bias_correction.py`.
"""

from tfcompress.techniques.quantize.biases import round_biases
from tfcompress.techniques.quantize.equalize import equalize
from tfcompress.techniques.quantize.freeze import FreezeRanges
from tfcompress.techniques.quantize.post_training import QuantizePostTraining, quantize_post_training
from tfcompress.techniques.quantize.quantize_aware import quantize_aware
from tfcompress.techniques.quantize.stage import Quantize

__all__ = [
    "FreezeRanges",
    "Quantize",
    "QuantizePostTraining",
    "equalize",
    "quantize_aware",
    "quantize_post_training",
    "round_biases",
]
