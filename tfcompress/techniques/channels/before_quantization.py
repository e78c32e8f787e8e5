"""What changes the numbers between layers comes before quantization, whose ranges are those of the model as it was.

Invariant: an error says what to do first. Left out: what quantization itself refuses.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras

from tfcompress.errors import ModelError
from tfcompress.techniques.base import Technique


def refuse_ranges(model: keras.Model, do: str) -> None:
    """Raises a `ModelError` if a model has fake quantization.

    Args:
        model: The model.
        do: What is to be done first, such as `"Remove blocks"`.
    """
    quantized = [layer.name for layer in model._flatten_layers() if getattr(layer, "is_fake_quantized", False)]
    if quantized:
        raise ModelError(
            f"Model {model.name!r} has fake quantization, whose ranges are those of the model as it is. {do} first, "
            f"quantize afterwards. Received: layers {quantized[:3]}."
        )


def refuse_after_rounding(earlier: Sequence[Technique], do: str) -> None:
    """Raises a `ModelError` if one of the earlier stages makes integers.

    Args:
        earlier: The techniques of earlier stages.
        do: What is to be done before them.
    """
    rounding = [technique for technique in earlier if technique.makes_integers]
    if rounding:
        raise ModelError(
            f"The ranges that {type(rounding[-1]).__name__} left are those of the model as it is. {do} first, quantize "
            "afterwards."
        )
