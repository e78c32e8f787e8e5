"""A second layer of the same configuration.

Invariant: the layer that is copied is not changed, and nothing that it holds is executed. Left out: its weights.
"""

from __future__ import annotations

from typing import Any

import keras


def copy_layer(layer: Any, **changes: Any) -> Any:
    """A new layer like `layer`, not built.

    Args:
        layer: A layer, or a model that is used as one.
        **changes: What its configuration says otherwise, such as `name` or `dtype`.

    Example:
        >>> copy_layer(keras.layers.Dense(3), name="other").units
        3
    """
    if isinstance(layer, keras.layers.Lambda):
        # Read back from its configuration, its function would be code from a file; here it is in memory already.
        given = {"name": layer.name, "dtype": layer.dtype_policy, **changes}
        return keras.layers.Lambda(layer.function, mask=layer.mask, arguments=layer.arguments, **given)
    return type(layer).from_config({**layer.get_config(), **changes})
