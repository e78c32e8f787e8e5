"""Layers that do nothing in inference: dropout, noise, linear activations, paddings of 0, reshapings to the same shape.

Invariant: the layer that gives an output of the model stays, since outputs are called after it; so does one that is
called with `training=True`, and one without which a mask would go further than it did. Left out: layers that do nothing
because of their weights.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from tfcompress.graph.layer_kinds import (
    AUGMENTATIONS,
    CROPPINGS,
    IDLE_IN_INFERENCE,
    PADDINGS,
    POOLINGS,
    UPSAMPLINGS,
)
from tfcompress.graph.shapes import tensors_of
from tfcompress.graph.simplify.rewriting import Step, Wiring, rewritten, runs_in_training_mode
from tfcompress.graph.trace import Ref, Trace
from tfcompress.layers.keras_applications import StochasticDepth


def drop_identities(traced: Trace) -> tuple[Trace, list[Step]]:
    """Leaves out layers that give what they take."""
    wiring, tensors = Wiring(traced), tensors_of(traced)
    masks = any(_may_mask(call.operation) for call in traced.calls)
    aliases: dict[Ref, Ref] = {}
    dropped: dict[str, Step] = {}
    for index, call in enumerate(traced.calls):
        layer = call.operation
        if index in wiring.outputs or len(call.sources) != 1:
            continue
        if runs_in_training_mode(call) and type(layer) not in AUGMENTATIONS:
            continue
        given, made = tensors[call.sources[0]], tensors[Ref(index)]
        why = _why_idle(layer, given, made)
        if why is None or (masks and not layer.supports_masking):
            continue
        aliases[Ref(index)] = call.sources[0]
        dropped[layer.name] = Step(layer.name, type(layer).__name__, f"dropped: {why}")
    return (rewritten(traced, aliases=aliases), list(dropped.values())) if aliases else (traced, [])


def _why_idle(layer: Any, given: keras.KerasTensor, made: keras.KerasTensor) -> str | None:
    """Why a layer gives what it takes; None where it does not."""
    if given.shape != made.shape or given.dtype != made.dtype or not isinstance(layer, layers.Layer):
        return None
    if "float" in given.dtype and layer.compute_dtype != given.dtype:
        return None  # It rounds.
    kind = type(layer)
    if kind in (*IDLE_IN_INFERENCE, *AUGMENTATIONS, StochasticDepth):
        return "it does nothing in inference"
    if kind is layers.Activation and layer.activation is keras.activations.linear:
        return "its activation is linear"
    if kind in (layers.Reshape, layers.Flatten) and given.shape[1:].count(None) <= 1:
        return "it reshapes to the same shape"
    if kind is layers.Permute and list(layer.dims) == sorted(layer.dims):
        return "it leaves the axes in their order"
    if kind in (*PADDINGS, *CROPPINGS) and not any(keras.tree.flatten(_amount(layer))):
        return "it pads or crops by 0"
    if kind in UPSAMPLINGS and set(keras.tree.flatten(layer.size)) == {1}:
        return "it repeats once"
    if kind in POOLINGS and set(keras.tree.flatten((layer.pool_size, layer.strides))) == {1}:
        return "it pools single values"
    if kind is layers.Rescaling and _is_all(layer.scale, 1.0) and _is_all(layer.offset, 0.0):
        return "it scales by 1"
    return None


def _amount(layer: Any) -> Any:
    return layer.padding if type(layer) in PADDINGS else layer.cropping


def _is_all(value: Any, number: float) -> bool:
    return isinstance(value, int | float) and value == number


def _may_mask(operation: Any) -> bool:
    """Whether a layer may make a mask for those behind it."""
    if isinstance(operation, layers.Masking) or getattr(operation, "mask_zero", False):
        return True
    own = not type(operation).__module__.startswith(("keras.", "tfcompress."))
    return own and getattr(operation, "supports_masking", False)
