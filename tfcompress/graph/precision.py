"""Layers of another precision that compute in float32 for a while.

Invariant: every layer has its own dtype policy again afterwards, also after an error; variables stay as they are. Left
out: which layers, which is for the caller to say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import keras

from tfcompress.errors import ModelError


@contextlib.contextmanager
def computing_in_float32(layers: Iterable[keras.layers.Layer]) -> Iterator[None]:
    """Lets layers compute in float32 while the context lasts.

    Args:
        layers: The layers whose precision changes, those within them named too.

    Raises:
        ModelError: If variables are of another type, so that the computation would not be the layers' own.

    Example:
        >>> layer = keras.layers.Dense(2, dtype="mixed_float16")
        >>> with computing_in_float32([layer]):
        ...     layer.compute_dtype
        'float32'
        >>> layer.compute_dtype
        'float16'
    """
    layers = list(layers)
    for layer in layers:
        others = _float_types(layer) - {"float32"}
        if others:
            raise ModelError(
                f"Layer {layer.name!r} has {sorted(others)[0]} variables, where float32 ones are needed. Rebuild the "
                "model with the dtype policy 'float32' and set its weights."
            )
    policies = [(layer, layer.dtype_policy) for layer in layers]
    try:
        for layer, _ in policies:
            layer.dtype_policy = "float32"
        yield
    finally:
        for layer, policy in policies:
            layer.dtype_policy = policy


def _float_types(layer: keras.layers.Layer) -> set[str]:
    """The types of the floats that a layer itself stores, without the layers in it."""
    within = {id(variable) for one in layer._flatten_layers(include_self=False) for variable in one.variables}
    own = [keras.backend.standardize_dtype(one.dtype) for one in layer.variables if id(one) not in within]
    return {dtype for dtype in own if "float" in dtype}
