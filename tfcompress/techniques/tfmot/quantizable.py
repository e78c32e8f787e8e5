"""Which layers TFMOT's default 8-bit scheme quantizes, and the reason for each that it does not.

Invariant: TFMOT itself is asked, with each kind of layer in a model of its own. Left out: layers with a
`QuantizeConfig` of the user's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import tf_keras

from tfcompress.errors import ModelError
from tfcompress.graph.flatten import flatten
from tfcompress.graph.trace import Trace, trace
from tfcompress.techniques.layer_names import check_patterns, fits
from tfcompress.techniques.schedules import load_tfmot
from tfcompress.techniques.tfmot.callbacks import KERNELS, weight_name

# The kernels that TFMOT rounds and that have a rounded twin in Keras 3 which rounds them alike.
TWINS = ("Conv2D", "DepthwiseConv2D", "Dense")


def choose_quantizable(
    model: keras.Model, legacy: Any, exclude: Iterable[str], *, allow_float: bool
) -> tuple[set[str], list[str]]:
    """The layers to annotate.

    Args:
        model: The Keras 3 model.
        legacy: Its tf_keras twin.
        exclude: Patterns of layer names that stay in float.
        allow_float: Whether others may, too.

    Returns:
        The names to annotate, and `"name: reason"` for each other layer.

    Raises:
        InvalidArgumentError: If a pattern fits no layer.
        ModelError: If TFMOT cannot quantize a layer and `allow_float` is false; or if nothing is left to quantize.
    """
    layers = [layer for layer in legacy.layers if not isinstance(layer, tf_keras.layers.InputLayer)]
    names = [layer.name for layer in layers]
    patterns = tuple(exclude)
    check_patterns(names, {"exclude": patterns})
    excluded = {name for name in names if fits(name, patterns)}
    refused = _refused(layers, excluded, _before(trace(flatten(model))), legacy)
    listing = [f"{name}: {reason}" for name, reason in refused.items()]
    if refused and not allow_float:
        shown = "\n  - ".join(listing)
        raise ModelError(
            f"TFMOT cannot quantize these layers of model {legacy.name!r}. `quantize` may; or leave them in float by "
            f"`allow_float`:\n  - {shown}"
        )
    chosen = set(names) - excluded - set(refused)
    if not any(_has_kernel(legacy.get_layer(name)) for name in chosen):
        raise ModelError(f"Nothing to quantize in model {legacy.name!r}. Received: layers {names}.")
    return chosen, [*sorted(excluded), *listing]


def _refused(layers: list[Any], excluded: set[str], before: dict[str, tuple[str, bool]], legacy: Any) -> dict[str, str]:
    """The reason for each layer that is not excluded and cannot be quantized."""
    refused: dict[str, str] = {}
    known: dict[Any, str | None] = {}
    for layer in layers:
        if _kind(layer) not in known:
            known[_kind(layer)] = _reason(layer)
        reason = known[_kind(layer)]
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            reason = _batch_norm_reason(layer, before, legacy, excluded | set(refused))
        source, _ = before.get(layer.name, ("", False))
        if source in excluded | set(refused):
            own = legacy.get_layer(source)
            # What comes before a quantized layer gets its results rounded, in float or not, if TFMOT knows its type.
            if _is_known(own) and known[_kind(own)] is not None:
                reason = f"it comes after {source!r}, whose results TFMOT would have to round"
        if reason is not None and layer.name not in excluded:
            refused[layer.name] = reason
    return refused


def _kind(layer: Any) -> tuple[type, str | None]:
    """What decides whether TFMOT takes a layer."""
    return type(layer), getattr(getattr(layer, "activation", None), "__name__", None)


def _before(traced: Trace) -> dict[str, tuple[str, bool]]:
    """For each layer with one input the layer it comes after, and whether that one has no other follower."""
    found: dict[str, tuple[str, bool]] = {}
    outputs = {ref.call for ref in keras.tree.flatten(traced.outputs)}
    for call in traced.calls:
        sources = [ref.call for ref in call.sources]
        if len(sources) == 1:
            alone = len(traced.consumers(sources[0])) == 1 and sources[0] not in outputs
            found[call.operation.name] = (traced.calls[sources[0]].operation.name, alone)
    return found


def _batch_norm_reason(layer: Any, before: dict[str, tuple[str, bool]], legacy: Any, in_float: set[str]) -> str | None:
    """Why a BatchNormalization cannot be folded into what comes before it."""
    own, alone = before.get(layer.name, ("", False))
    source = legacy.get_layer(own) if alone else None
    kinds = (tf_keras.layers.Conv2D, tf_keras.layers.DepthwiseConv2D, tf_keras.layers.Dense)
    if not isinstance(source, kinds) or source.activation is not tf_keras.activations.linear:
        return "a BatchNormalization that does not alone follow a convolution or dense layer without activation"
    # A convolution that stays in float takes its BatchNormalization with it.
    return f"its layer {own!r} stays in float" if own in in_float else None


def _reason(layer: Any) -> str | None:
    """What TFMOT says against a layer, if anything."""
    if _has_kernel(layer) and type(layer).__name__ not in TWINS:
        return f"{type(layer).__name__} has no rounded twin in Keras 3"
    quantization = load_tfmot().quantization.keras
    if not _is_known(layer):
        return f"TFMOT does not know how to quantize a {type(layer).__name__}"
    inputs = keras.tree.map_structure(
        lambda tensor: tf_keras.Input(tensor.shape[1:], dtype=tensor.dtype), layer.get_input_at(0)
    )
    annotated = quantization.quantize_annotate_layer(type(layer).from_config(layer.get_config()))
    try:
        with quantization.quantize_scope():
            quantization.quantize_apply(tf_keras.Model(inputs, annotated(inputs)))
    except (ValueError, RuntimeError, TypeError) as error:
        return f"{type(layer).__name__}. {error}"
    return None


def _is_known(layer: Any) -> bool:
    """Whether the layer's type is in TFMOT's registry."""
    scheme = load_tfmot().quantization.keras.default_8bit.Default8BitQuantizeScheme()
    return scheme.get_quantize_registry().supports(layer)


def _has_kernel(layer: Any) -> bool:
    return any(weight_name(weight) in KERNELS for weight in layer.weights)
