"""Which kernels are clustered.

Left out: biases and the weights of normalization layers, which are few.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

import keras

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.techniques.shared_values import trained_kernels


def clusterable_layers(
    model: keras.Model, clusters: int, include: Iterable[str] | None = None, exclude: Iterable[str] = ()
) -> list[tuple[keras.layers.Layer, list[Any]]]:
    """The layers that are clustered, each with its variables that are.

    By default that is every kernel and table of more weights than clusters, except depthwise ones: these have a handful
    of weights for each channel, whose sizes differ much from channel to channel.

    Args:
        model: A built Keras model.
        clusters: Values that a kernel may hold.
        include: Patterns of layer names (`fnmatch`, such as `"conv*"`). When given, just these are clustered, depthwise
            ones too.
        exclude: Patterns of layer names that are not clustered.

    Raises:
        InvalidArgumentError: If a pattern fits no layer with a kernel.
        ModelError: If nothing is left to cluster.
    """
    layers = trained_kernels(model)
    names = [layer.name for layer, _ in layers]
    for argument, patterns in (("include", include or ()), ("exclude", exclude)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise InvalidArgumentError(argument, f"patterns of the layer names {names}", pattern)
    chosen = []
    for layer, kernels in layers:
        if include is None:
            kernels = [kernel for kernel in kernels if not _is_depthwise(layer, kernel)]
        elif not any(fnmatch.fnmatch(layer.name, pattern) for pattern in include):
            continue
        large = [kernel for kernel in kernels if kernel.shape.num_elements() > clusters]
        if large and not any(fnmatch.fnmatch(layer.name, pattern) for pattern in exclude):
            chosen.append((layer, large))
    if not chosen:
        raise ModelError(
            f"Model {model.name!r} has no kernel to cluster: depthwise ones are left out by default, and those of at "
            f"most {clusters} weights. Name layers in `include`, or lower `clusters`. Received: layers with kernels "
            f"{names}."
        )
    return chosen


def _is_depthwise(layer: keras.layers.Layer, kernel: Any) -> bool:
    depthwise = isinstance(layer, keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D)
    return depthwise or kernel.name == "depthwise_kernel"


def clusterable_kernels(
    model: keras.Model, clusters: int, include: Iterable[str] | None = None, exclude: Iterable[str] = ()
) -> list[Any]:
    """The variables that are clustered, of layers that can hold few values in the exported file too.

    Raises:
        InvalidArgumentError: As `clusterable_layers`.
        ModelError: As `clusterable_layers`, or if a layer rounds each channel to a scale of its own.
    """
    layers = clusterable_layers(model, clusters, include, exclude)
    for layer, _ in layers:
        if has_scales_of_channels(layer):
            raise ModelError(
                f"Layer {layer.name!r} rounds each channel to a scale of its own, which would make other integers of "
                "equal weights in each channel. Cluster the model before `quantize_aware`."
            )
    return [kernel for _, kernels in layers for kernel in kernels]


def has_scales_of_channels(layer: Any) -> bool:
    """Whether a layer of a quantization-aware model makes other integers of equal weights in each channel."""
    is_rounded = getattr(layer, "is_fake_quantized", False)
    return is_rounded and getattr(layer, "per_channel", False) and not getattr(layer, "one_scale", False)
