"""Builders of published architectures: `keras.applications`, and what only `tf_keras.applications` has.

Invariant: ten classes and no downloaded weights. Left out: keras-hub, which is an extra (`hub.py`).
"""

from __future__ import annotations

import keras

import tfcompress as tfc

CLASSES = 10


def application(name: str, size: int) -> keras.Model:
    """A model of `keras.applications` for `size` x `size` images of three channels."""
    return getattr(keras.applications, name)(weights=None, classes=CLASSES, input_shape=(size, size, 3))


def legacy_application(name: str) -> keras.Model:
    """A model of `tf_keras.applications`, carried to Keras 3."""
    import tf_keras

    tf_keras.utils.set_random_seed(0)
    legacy = getattr(tf_keras.applications, name)(weights=None, classes=CLASSES, input_shape=(32, 32, 3))
    return tfc.from_tf_keras(legacy)
