"""The layers that `keras.applications` defines for itself, in both Keras; neither exports them.

Invariant: imports no Keras. Left out: the models made of them.
"""

from __future__ import annotations

# Each layer, and the module that has it below `keras.src` and `tf_keras.src`.
APPLICATION_LAYERS = {
    "CustomScaleLayer": "applications.inception_resnet_v2",
    "LayerScale": "applications.convnext",
    "StochasticDepth": "applications.convnext",
}


def is_application_layer(name: str, module: str | None) -> bool:
    """Whether a class of this name and module is one of them.

    Example:
        >>> is_application_layer("LayerScale", "keras.src.applications.convnext")
        True
    """
    return name in APPLICATION_LAYERS and module in {
        f"{library}.src.{APPLICATION_LAYERS[name]}" for library in ("keras", "tf_keras")
    }
