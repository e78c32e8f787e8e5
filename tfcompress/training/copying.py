"""Copies of Keras models: the same layers and weights, in the precision and distribution of the scope they are made in.

Invariant: the model that is copied is not changed, and the copy's weights are float32 equals of its own. Left out:
subclassed models without a `get_config`, which Keras cannot copy.
"""

from __future__ import annotations

import keras

from tfcompress.errors import ModelError


def copy_model(model: keras.Model, precision: str = "float32") -> keras.Model:
    """A copy of `model` with layers that compute in `precision`.

    Args:
        model: A built Keras model.
        precision: `"float32"` keeps the layers as they are; `"mixed_float16"` and `"mixed_bfloat16"` make all layers
            compute in 16 bits, except those that give the model's outputs: losses want float32.

    Returns:
        A new model of the same structure.

    Raises:
        ModelError: If Keras cannot copy the model.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> copy_model(model).count_params()
        9
    """
    outputs = {id(tensor) for tensor in model.outputs} if hasattr(model, "outputs") else set()

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if precision != "float32" and id(layer.output) not in outputs:
            config["dtype"] = precision
        return type(layer).from_config(config)

    try:
        if precision == "float32":
            copy = keras.models.clone_model(model)
        else:
            copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
        raise ModelError(
            f"Model {model.name!r} cannot be copied, so it cannot be trained without changing it: {error} "
            "Build it as a functional model, or give its class a `get_config`."
        ) from error
    copy.set_weights(model.get_weights())
    if precision != "float32":
        copy.dtype_policy = precision
    return copy
