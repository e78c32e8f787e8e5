"""Layers of another precision that compute in float32 for a while.

Invariant: every layer has its own dtype policy again afterwards, also after an error; variables stay as they are. Left
out: which layers, which is for the caller to say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import keras


@contextlib.contextmanager
def computing_in_float32(layers: Iterable[keras.layers.Layer]) -> Iterator[None]:
    """Lets layers compute in float32 while the context lasts.

    Args:
        layers: The layers whose precision changes, those within them named too.

    Example:
        >>> layer = keras.layers.Dense(2, dtype="mixed_float16")
        >>> with computing_in_float32([layer]):
        ...     layer.compute_dtype
        'float32'
        >>> layer.compute_dtype
        'float16'
    """
    policies = [(layer, layer.dtype_policy) for layer in layers]
    try:
        for layer, _ in policies:
            layer.dtype_policy = "float32"
        yield
    finally:
        for layer, policy in policies:
            layer.dtype_policy = policy
