"""Two affine layers in a row become one: dense after dense, 1x1 convolution after convolution, convolution after 1x1.

Invariant: the merged layer has no more weights, no more that are not zero, and no more multiply-adds than both; a bias
before a layer that pads with zeros stays where it is. The merged layer is called after the second one. Left out:
grouped, depthwise and transposed convolutions, and layers that are used more than once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import layers

from tfcompress.graph.layer_kinds import CONVOLUTIONS
from tfcompress.graph.shapes import tensors_of
from tfcompress.graph.simplify.affine_layers import is_affine, is_linear, is_padded, weights_of
from tfcompress.graph.simplify.rewriting import Step, Wiring, rewritten, with_weights
from tfcompress.graph.trace import Call, Ref, Trace


def merge_affine(traced: Trace) -> tuple[Trace, list[Step]]:
    """Merges pairs of affine layers."""
    wiring, tensors = Wiring(traced), tensors_of(traced)
    calls: dict[int, Call] = {}
    steps = []
    for index, call in enumerate(traced.calls):
        reader = wiring.only_reader(index)
        if reader is None or not is_affine(call.operation) or index in calls:
            continue
        second = traced.calls[reader].operation
        alone = wiring.is_used_once(call.operation) and wiring.is_used_once(second)
        if not alone or len(traced.calls[reader].sources) != 1:
            continue
        sizes = [_positions(tensors[Ref(at)].shape, one) for at, one in ((index, call.operation), (reader, second))]
        merged = _merged(call.operation, second, sizes[0], sizes[1])
        if merged is not None:
            calls[reader] = Call(merged, call.args, call.kwargs)
            steps.append(Step(call.operation.name, type(call.operation).__name__, f"merged with {second.name!r}"))
    return (rewritten(traced, calls=calls), steps) if calls else (traced, [])


def _merged(first: Any, second: Any, size: int | None, second_size: int | None) -> Any | None:
    """The layer that does what both do, or None where there is none, or it would be larger."""
    if type(first) is not type(second) or not is_affine(second) or not is_linear(first):
        return None
    if first.dtype_policy != second.dtype_policy:
        return None
    if type(first) is layers.Dense:
        return _smaller(first, second, _product(first, second), second, (1, 1))
    if type(first) not in CONVOLUTIONS or first.groups * second.groups != 1 or first.data_format != second.data_format:
        return None
    if _is_pointwise(second):
        config = {"filters": second.filters, "activation": second.activation, "name": second.name}
        return _smaller(first, second, _product(first, second), first, (1, 1), **config)
    if _is_pointwise(first) and not (is_padded(second) and weights_of(first)["bias"].any()):
        return _smaller(first, second, _product_before(first, second), second, (size, second_size))
    return None


def _smaller(
    first: Any,
    second: Any,
    weights: dict[str, np.ndarray],
    like: Any,
    sizes: tuple[int | None, int | None],
    **config: Any,
) -> Any | None:
    """The merged layer if it is no larger than both.

    Args:
        first: The first layer.
        second: The second layer.
        weights: What the merged layer holds.
        like: Which of both it is like.
        sizes: Positions of both results, None where they are not known.
        **config: What its configuration says otherwise.
    """
    kernels = [weights_of(layer)["kernel"] for layer in (first, second)]
    before, after = [kernel.size for kernel in kernels], weights["kernel"].size
    # Pruned kernels have products that are not.
    if np.count_nonzero(weights["kernel"]) > sum(map(np.count_nonzero, kernels)):
        return None
    if not first.use_bias and not second.use_bias:
        del weights["bias"]
    held = sum(value.size for value in weights.values())
    holds = sum(math.prod(variable.shape) for layer in (first, second) for variable in layer.weights)
    if None in sizes:
        sizes = (0, 1)
    if held > holds or after * sizes[1] > before[0] * sizes[0] + before[1] * sizes[1]:  # type: ignore[operator]
        return None
    return with_weights(like, weights, like=first, **config)


def _is_pointwise(layer: Any) -> bool:
    return set(layer.kernel_size) == {1} and set(layer.strides) == {1}


def _product(first: Any, second: Any) -> dict[str, np.ndarray]:
    """The second layer works on each position by itself."""
    one, other = weights_of(first), weights_of(second)
    matrix = other["kernel"].reshape(other["kernel"].shape[-2:])
    return {"kernel": one["kernel"] @ matrix, "bias": one["bias"] @ matrix + other["bias"]}


def _product_before(first: Any, second: Any) -> dict[str, np.ndarray]:
    """The first layer works on each position by itself."""
    one, other = weights_of(first), weights_of(second)
    matrix = one["kernel"].reshape(one["kernel"].shape[-2:])
    added = (one["bias"] @ other["kernel"]).reshape(-1, other["kernel"].shape[-1]).sum(0)
    return {"kernel": matrix @ other["kernel"], "bias": added + other["bias"]}


def _positions(shape: tuple[int | None, ...], layer: Any) -> int | None:
    """Places of a result, all sizes but batch and channels."""
    places = shape[2:] if getattr(layer, "data_format", "") == "channels_first" else shape[1:-1]
    return None if None in places else math.prod(places)  # type: ignore[arg-type]
