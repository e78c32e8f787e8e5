"""Which kernels are clustered.

Left out: biases and the weights of normalization layers, which are few.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from tfcompress.errors import ModelError
from tfcompress.techniques.constraints import refuse_broken_by_means
from tfcompress.techniques.kernels import Kernel, find_kernels, why_hidden
from tfcompress.techniques.layer_names import check_patterns, fits


def clusterable_kernels(
    model: keras.Model, clusters: int, include: Iterable[str] | None = None, exclude: Iterable[str] = ()
) -> list[Kernel]:
    """The kernels that are clustered.

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
        ModelError: If nothing is left to cluster, or a kernel has a constraint of its layer other than `NonNeg`.
    """
    kernels = find_kernels(model, tables=True)
    names = list(dict.fromkeys(kernel.layer.name for kernel in kernels))
    check_patterns(names, {"include": include, "exclude": exclude})
    if include is None:
        chosen = [kernel for kernel in kernels if not kernel.is_depthwise]
    else:
        chosen = [kernel for kernel in kernels if fits(kernel.layer.name, include)]
    chosen = [
        kernel
        for kernel in chosen
        if kernel.variable.shape.num_elements() > clusters and not fits(kernel.layer.name, exclude)
    ]
    if not chosen:
        raise ModelError(
            f"Model {model.name!r} has no kernel to cluster: depthwise ones are left out by default, and those of at "
            f"most {clusters} weights. Name layers in `include`, or lower `clusters`.{why_hidden(model)} Received: "
            f"layers with kernels {names}."
        )
    refuse_broken_by_means(chosen)
    return chosen


def clusterable_in_file(
    model: keras.Model, clusters: int, include: Iterable[str] | None = None, exclude: Iterable[str] = ()
) -> list[Kernel]:
    """The kernels that are clustered, of layers that can hold few values in the exported file too.

    Raises:
        InvalidArgumentError: As `clusterable_kernels`.
        ModelError: As `clusterable_kernels`, or if a layer rounds each channel to a scale of its own.
    """
    kernels = clusterable_kernels(model, clusters, include, exclude)
    for kernel in kernels:
        if has_scales_of_channels(kernel.layer):
            raise ModelError(
                f"Layer {kernel.layer.name!r} rounds each channel to a scale of its own, which would make other "
                "integers of equal weights in each channel. Cluster the model before `quantize_aware`."
            )
    return kernels


def has_scales_of_channels(layer: Any) -> bool:
    """Whether a layer of a quantization-aware model makes other integers of equal weights in each channel."""
    is_rounded = getattr(layer, "is_fake_quantized", False)
    return is_rounded and getattr(layer, "per_channel", False) and not getattr(layer, "one_scale", False)
