"""The mark of a layer that quantization-aware training was told to leave in float.

A layer without rounding looks the same whether it was left out on purpose or the converter has failed at it. So the
purpose is written into the graph, where it is saved with the model.

Invariant: the layer hands on what it gets, and leaves no operation in an exported file. Left out: who reads it, which
is the audit of an export (`export/float_layers.py`).
"""

from __future__ import annotations

import keras


@keras.saving.register_keras_serializable(package="tfcompress")
class LeftInFloat(keras.layers.Identity):
    """Says of the operations that take its result that they stay in float.

    Example:
        >>> LeftInFloat(name="group_in_float")(keras.ops.ones((1, 2))).shape
        TensorShape([1, 2])
    """

    def __init__(self, **kwargs):
        # Whatever type comes in goes out, also under mixed precision.
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
