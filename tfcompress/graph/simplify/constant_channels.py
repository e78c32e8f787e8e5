"""Which channels of which tensors are the same number at every position, for every input.

A filter of zeros gives its bias, and what treats each channel by itself gives its value there.

Invariant: a channel that is known is constant up to float32 rounding; what is not understood is not known. Left out:
layouts with the channels first, attention, recurrent layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.graph.channel_rule import is_elementwise
from tfcompress.graph.layer_kinds import (
    CROPPINGS,
    ELEMENTWISE,
    GLOBAL_POOLINGS,
    IDLE_IN_INFERENCE,
    PADDINGS,
    POOLINGS,
    UPSAMPLINGS,
)
from tfcompress.graph.simplify.affine_layers import depends, is_affine, scale_and_shift, weights_of
from tfcompress.graph.trace import Ref

# Numbers for the channels of a tensor, NaN for those that are not constant.
Values = np.ndarray

# A map of one number stays one, the same.
_SAME_VALUE = (*IDLE_IN_INFERENCE, *CROPPINGS, *UPSAMPLINGS, *POOLINGS, *GLOBAL_POOLINGS)
_MERGES: dict[type, Callable[..., Values]] = {
    layers.Add: lambda *values: np.sum(values, 0),
    layers.Average: lambda *values: np.mean(values, 0),
    layers.Maximum: lambda *values: np.max(values, 0),
    layers.Minimum: lambda *values: np.min(values, 0),
    layers.Subtract: lambda one, other: one - other,
}
# Operations of one tensor, or of tensors and numbers.
_OPERATIONS = {"Add", "Divide", "HardSigmoid", "HardSilu", "Multiply", "Relu", "Relu6", "Sigmoid", "Silu", "Subtract",
               "Tanh", "TrueDivide"}  # fmt: skip


def constant_channels(
    call: Any, given: Sequence[tuple[Values | None, tuple[int | None, ...]]], made: tuple[int | None, ...]
) -> Values | None:
    """The constant channels of a call's result.

    Args:
        call: The call, with one result.
        given: For each tensor that it takes its constant channels, None where nothing is known, and its shape.
        made: The shape of the result.

    Returns:
        A number for each index of the result's last axis, NaN where it is not constant; None where nothing is known.
    """
    operation = call.operation
    if getattr(operation, "data_format", "channels_last") != "channels_last" or not made or made[-1] is None:
        return None
    if is_affine(operation):
        return _of_affine(operation)
    scaling = scale_and_shift(operation, len(made))
    if scaling is not None:
        return _of_scaling(*scaling, given[0][0], made[-1])
    if all(values is None for values, _ in given):
        return None
    known = [np.full((shape or (0,))[-1] or 0, np.nan) if values is None else values for values, shape in given]
    found = _of_layer(operation, known, [shape for _, shape in given], made)
    if found is None and type(operation).__module__.startswith("keras.") and not call.kwargs:
        found = _of_operation(call, known, made)
    return found if found is not None and len(found) == made[-1] and not np.isnan(found).all() else None


def _of_affine(layer: Any) -> Values | None:
    """Filters of zeros, once constants that come in are in the bias."""
    still = ~depends(layer)
    if not still.any() or not is_elementwise(layer.activation):
        return None
    return np.where(still, _applied(layer.activation, weights_of(layer)["bias"]), np.nan)


def _of_scaling(scale: np.ndarray, shift: np.ndarray, axis: int, given: Values | None, channels: int) -> Values | None:
    if axis != -1:
        return None
    given = np.full(channels, np.nan) if given is None else given
    return np.where(np.broadcast_to(scale == 0, (channels,)), shift, given * scale + shift)


def _of_layer(
    layer: Any, known: list[Values], shapes: list[tuple[int | None, ...]], made: tuple[int | None, ...]
) -> Values | None:
    kind, values = type(layer), known[0]
    if kind in _SAME_VALUE:
        return values
    if kind in PADDINGS:
        return np.where(values == 0, 0.0, np.nan)
    if kind in ELEMENTWISE:
        return _applied(layer, values)
    if kind is layers.Activation and is_elementwise(layer.activation):
        return _applied(layer.activation, values)
    if kind is layers.PReLU and set(layer.alpha.shape[:-1]) <= {1}:
        alpha = np.broadcast_to(keras.ops.convert_to_numpy(layer.alpha).reshape(-1), values.shape)
        return np.where(values < 0, alpha * values, values)
    if kind in (layers.Reshape, layers.Flatten):
        return _repeated(values, made[-1])
    if kind is layers.Concatenate:
        return np.concatenate(known) if layer.axis in (-1, len(made) - 1) else _agreed(known)
    if kind in _MERGES and all(len(one) == made[-1] for one in known):
        return _MERGES[kind](*known)
    if kind is layers.Multiply and all(len(one) == made[-1] for one in known):
        return _multiplied(known)
    return None


def _of_operation(call: Any, known: list[Values], made: tuple[int | None, ...]) -> Values | None:
    """An operation of `keras.ops` on the numbers themselves."""
    kind = type(call.operation).__name__
    tensors = sum(isinstance(leaf, Ref) for leaf in call.args)
    plain = all(isinstance(leaf, Ref | int | float) for leaf in call.args)
    if kind not in _OPERATIONS or not plain or tensors != len(known) or any(len(one) != made[-1] for one in known):
        return None
    if kind == "Multiply" and len(known) == len(call.args):
        return _multiplied(known)
    # In place of tensors their numbers, 0 where they are not known; positions are those of the call.
    values = iter(known)
    arguments = [leaf if isinstance(leaf, int | float) else np.nan_to_num(next(values)) for leaf in call.args]
    result = call.operation.call(*(np.asarray(one, "float32") for one in arguments))
    return np.where(np.isnan(known).any(0), np.nan, keras.ops.convert_to_numpy(result))


def _applied(function: Any, values: Values) -> Values:
    """A function of one number at a time; what is not known stays so."""
    if function is None:
        return values
    result = keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(np.nan_to_num(values), "float32")))
    return np.where(np.isnan(values), np.nan, result)


def _multiplied(known: list[Values]) -> Values:
    """A zero stays zero whatever it is multiplied with."""
    zero = np.any([one == 0 for one in known], axis=0)
    return np.where(zero, 0.0, np.prod(known, 0))


def _repeated(values: Values, channels: int | None) -> Values | None:
    """The channels in a flattened tensor, where they come again for each position."""
    if not channels or channels % len(values):
        return None
    return np.tile(values, channels // len(values))


def _agreed(known: list[Values]) -> Values | None:
    """Tensors one behind the other: what is constant in all, and the same."""
    if len({len(one) for one in known}) > 1:
        return None
    return np.where(np.all([one == known[0] for one in known], axis=0), known[0], np.nan)
