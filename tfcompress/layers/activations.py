"""Activations that the two Keras generations call by one name and compute differently, or that only one of them has.

Invariant: each is registered, so that a file which names it is read back. Left out: those that both have and agree on.
"""

from __future__ import annotations

import keras


@keras.saving.register_keras_serializable(package="tfcompress")
def legacy_hard_sigmoid(x):
    """Keras 2's `hard_sigmoid`, `clip(0.2 x + 0.5, 0, 1)`; that of Keras 3 has a slope of 1/6."""
    return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)
