"""A second layer of the same configuration, and copies of all layers of a graph.

Invariant: the layer that is copied is not changed, and nothing that it holds is executed; what a preprocessing layer
learned from data is copied too. Left out: copies with other weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.graph.trace import Call


def copy_layer(layer: Any, /, **changes: Any) -> Any:
    """A new layer like `layer`, not built; `copy_weights` gives it the weights once it is.

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


def copy_of_other_size(layer: Any, /, **changes: Any) -> Any:
    """Like `copy_layer`, for a copy whose weights may have other shapes, and whose values are set once it is built.

    Args:
        layer: A layer.
        **changes: What its configuration says otherwise.

    Example:
        >>> table = keras.initializers.Constant(np.ones((5, 8)))
        >>> copy = copy_of_other_size(keras.layers.Embedding(5, 8, embeddings_initializer=table), output_dim=3)
        >>> copy(np.zeros((1, 2))).shape
        TensorShape([1, 2, 3])
    """
    return copy_layer(layer, **_without_shapes({**layer.get_config(), **changes}))


def _without_shapes(config: Any) -> Any:
    """A configuration without the shapes that wrapped layers were built for, and initial values that have a shape."""
    if not isinstance(config, Mapping):
        return config
    is_constant = (config.get("module"), config.get("class_name")) == ("keras.initializers", "Constant")
    if is_constant and not np.isscalar(config["config"]["value"]):
        return keras.initializers.serialize(keras.initializers.Zeros())
    return {key: _without_shapes(value) for key, value in config.items() if key != "build_config"}


def copy_weights(layer: Any, copy: Any) -> None:
    """Gives a built copy of a layer its weights."""
    copy.set_weights(layer.get_weights())
    if isinstance(copy, keras.layers.Normalization):
        copy.finalize_state()  # It computes with constants that it makes of its weights.


class LayerCopies:
    """Copies of the layers of a graph, called in their place: the `call_function` of a `replay` that copies a model.

    A copy is made at the first use of its layer, and has the layer's weights from then on; what is used again is one
    copy again. Operations that are no layers have nothing to copy, and are called themselves.

    Args:
        copy: Makes a layer's copy, not built; by default `copy_layer`.

    Example:
        >>> from tfcompress.graph.trace import replay, trace
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="dense")])
        >>> copies = LayerCopies(lambda layer: copy_layer(layer, name=f"{layer.name}_copy"))
        >>> [layer.name for layer in replay(trace(model), copies).layers[1:]]
        ['dense_copy']
    """

    def __init__(self, copy: Callable[[Any], Any] = copy_layer):
        self._copy = copy
        # By the layers' identity, since two of nested models may have one name.
        self._copies: dict[int, Any] = {}

    def __call__(self, index: int, call: Call, args: tuple, kwargs: dict) -> Any:
        return self.apply(call.operation, *args, **kwargs)

    def apply(self, operation: Any, /, *args: Any, **kwargs: Any) -> Any:
        """What the copy of a layer makes of its arguments."""
        if not isinstance(operation, keras.layers.Layer):
            return operation(*args, **kwargs)
        if id(operation) in self._copies:
            return self._copies[id(operation)](*args, **kwargs)
        self._copies[id(operation)] = copy = self._copy(operation)
        result = copy(*args, **kwargs)
        copy_weights(operation, copy)
        return result


def adapted_state(layer: Any) -> dict[str, Any]:
    """What a preprocessing layer, of either Keras, learned from data, and its configuration does not say."""
    if hasattr(layer, "get_vocabulary"):
        return {"vocabulary": list(layer.get_vocabulary(include_special_tokens=False))}
    if type(layer).__name__ == "Discretization" and layer.bin_boundaries is not None:
        return {"bin_boundaries": list(layer.bin_boundaries), "num_bins": None}
    return {}
