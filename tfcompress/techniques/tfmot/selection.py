"""Which layers of a tf_keras model TFMOT is to work on, and why it refuses the others.

Invariant: a layer is asked for by TFMOT's own registries, through its public functions; no layer with a kernel is left
out in silence. Left out: what is done with the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tf_keras

from tfcompress.bridge.to_tf_keras import to_tf_keras
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.techniques.layer_names import check_patterns, fits

# Compiles a tf_keras model and fits it with the callbacks that it is given.
Fit = Callable[[Any, Sequence[Any]], Any]


def carry_over(owner: str, model: Any, layers: Any) -> Any:
    """The tf_keras twin of a Keras 3 model, with its parity checked.

    Raises:
        InvalidArgumentError: If `model` is no Keras 3 model.
        ModelError: If it cannot be carried over.
    """
    if isinstance(model, tf_keras.Model):
        raise InvalidArgumentError(
            f"{owner}.model", "a Keras 3 model; make one with `tfcompress.from_tf_keras`", type(model)
        )
    if not isinstance(model, keras.Model):
        raise InvalidArgumentError(f"{owner}.model", "a Keras 3 model", type(model))
    return to_tf_keras(model, layers=layers)


def choose_layers(
    legacy: Any,
    verb: str,
    weights_of: Callable[[Any], list[Any]],
    include: Iterable[str] | None,
    exclude: Iterable[str],
) -> dict[str, list[Any]]:
    """The weights to work on, by the name of their layer.

    Args:
        legacy: A built tf_keras model.
        verb: What is done, for messages: `"prune"`.
        weights_of: Gives the weights of a layer that TFMOT works on; a `ValueError` if it refuses the layer.
        include: Patterns of layer names; `None` takes every layer that has such weights.
        exclude: Patterns of layer names that are left as they are.

    Raises:
        InvalidArgumentError: If a pattern fits no layer with weights.
        ModelError: If TFMOT refuses a layer with a kernel that is not excluded, or nothing is left.
    """
    candidates = {layer.name: layer for layer in legacy.layers if _has_kernel(layer)}
    check_patterns(candidates, {"include": include, "exclude": exclude})
    chosen: dict[str, list[Any]] = {}
    refused: list[str] = []
    for name, layer in candidates.items():
        if (include is not None and not fits(name, include)) or fits(name, exclude):
            continue
        try:
            weights = weights_of(layer)
        except ValueError as error:
            refused.append(f"{name}: {type(layer).__name__}. {str(error).strip()}")
            continue
        if weights:
            chosen[name] = weights
        elif include is not None:
            refused.append(f"{name}: TFMOT has no weights to {verb} in a {type(layer).__name__}")
    if refused:
        listing = "\n  - ".join(refused)
        raise ModelError(
            f"TFMOT cannot {verb} these layers of model {legacy.name!r}; name them in `exclude`:\n  - {listing}"
        )
    if not chosen:
        raise ModelError(f"Nothing to {verb} in model {legacy.name!r}. Received: layers with kernels {[*candidates]}.")
    return chosen


def _has_kernel(layer: Any) -> bool:
    return any(len(weight.shape) >= 2 for weight in layer.trainable_weights)
