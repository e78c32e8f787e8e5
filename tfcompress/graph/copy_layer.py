"""A second layer of the same configuration.

Invariant: the layer that is copied is not changed, and nothing that it holds is executed; what a preprocessing layer
learned from data is copied too. Left out: its weights, which `copy_weights` copies once the new layer is built.
"""

from __future__ import annotations

from typing import Any

import keras


def copy_layer(layer: Any, /, **changes: Any) -> Any:
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
    return type(layer).from_config({**layer.get_config(), **adapted_state(layer), **changes})


def copy_weights(layer: Any, copy: Any) -> None:
    """Gives a built copy of a layer its weights."""
    copy.set_weights(layer.get_weights())
    if isinstance(copy, keras.layers.Normalization):
        copy.finalize_state()  # It computes with constants that it makes of its weights.


def adapted_state(layer: Any) -> dict[str, Any]:
    """What a preprocessing layer, of either Keras, learned from data, and its configuration does not say."""
    if hasattr(layer, "get_vocabulary"):
        return {"vocabulary": list(layer.get_vocabulary(include_special_tokens=False))}
    if type(layer).__name__ == "Discretization" and layer.bin_boundaries is not None:
        return {"bin_boundaries": list(layer.bin_boundaries), "num_bins": None}
    return {}
