"""`tfmot_cluster`: TFMOT's `cluster_weights` on a Keras 3 model.

Invariant: each clustered kernel of the model that comes back has at most as many values as were asked for: they are
counted. Left out: making files smaller by it, which is compression's work (gzip, or a sparse-and-palette format).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tf_keras

from tfcompress.bridge.weights import copy_weights_back
from tfcompress.errors import ModelError, TrainingError
from tfcompress.techniques.schedules import load_tfmot
from tfcompress.techniques.tfmot.arguments import check_clusters, check_log_dir
from tfcompress.techniques.tfmot.callbacks import KERNELS, weight_name
from tfcompress.techniques.tfmot.selection import Fit, carry_over, choose_layers


def tfmot_cluster(
    model: keras.Model,
    fit: Fit,
    *,
    number_of_clusters: int,
    centroids: str = "kmeans_plus_plus",
    preserve_sparsity: bool = False,
    per_channel: bool = False,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    log_dir: str | None = None,
    layers: Mapping[type, Callable] | None = None,
) -> keras.Model:
    """Clusters the weights of a Keras 3 model with TFMOT: `cluster_weights`, your training, `strip_clustering`.

    By default every layer is clustered that TFMOT clusters; depthwise convolutions and normalizations it leaves.

    Args:
        model: A trained functional or Sequential Keras 3 model. It is not changed.
        fit: `fit(legacy, callbacks)` compiles and fits the tf_keras model `legacy` with `callbacks`.
        number_of_clusters: Values that each kernel may have, at least 2, or 3 with `preserve_sparsity`.
        centroids: Where they start: `"kmeans_plus_plus"`, `"linear"`, `"density_based"` or `"random"`.
        preserve_sparsity: Whether one of the values of each kernel with zeros is zero, and stays where it is.
        per_channel: Whether each output channel of a 2-D convolution has values of its own. TFMOT wants such layers to
            have a bias.
        include: Patterns of layer names (`fnmatch`, such as `"conv*"`) to cluster; `None` is all that TFMOT can.
        exclude: Patterns of layer names not to cluster.
        log_dir: Folder for TFMOT's `ClusteringSummaries`, read by TensorBoard.
        layers: For the bridge: Keras 3 layer class of yours to a function that makes its tf_keras twin.

    Returns:
        A new Keras 3 model of the same structure, with few values in its kernels.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        ModelError: If the model cannot be carried over, TFMOT refuses a layer, or a kernel is too small.
        TrainingError: If TFMOT left more values than asked for, or lost zeros.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="hidden"), keras.layers.Dense(2)])
        >>> def fit(legacy, callbacks):
        ...     legacy.compile("sgd", "mse")
        ...     legacy.fit(np.ones((4, 8)), np.ones((4, 2)), verbose=0, callbacks=callbacks)
        >>> clustered = tfmot_cluster(model, fit, number_of_clusters=4)
        >>> len(np.unique(clustered.get_layer("hidden").kernel.numpy())) <= 4
        True

    Reference:
        https://www.tensorflow.org/model_optimization/guide/clustering
    """
    check_clusters("tfmot_cluster", number_of_clusters, centroids, preserve_sparsity)
    check_log_dir("tfmot_cluster", log_dir)
    legacy = carry_over("tfmot_cluster", model, layers)
    chosen = choose_clusterable(
        legacy, include, exclude, number_of_clusters=number_of_clusters, per_channel=per_channel
    )
    clustering = load_tfmot().clustering.keras
    sparse = {
        name: preserve_sparsity and any((weight.numpy() == 0).any() for weight in weights)
        for name, weights in chosen.items()
    }
    before = {name: _kernels(legacy, name) for name in chosen}

    def wrap(layer: Any) -> Any:
        if layer.name not in chosen:
            return layer
        return clustering.cluster_weights(
            layer,
            number_of_clusters=number_of_clusters,
            cluster_centroids_init=clustering.CentroidInitialization[centroids.upper()],
            preserve_sparsity=sparse[layer.name],
            cluster_per_channel=per_channel,
        )

    wrapped = tf_keras.models.clone_model(legacy, clone_function=wrap)
    fit(wrapped, [] if log_dir is None else [clustering.ClusteringSummaries(log_dir=str(log_dir))])
    stripped = clustering.strip_clustering(wrapped)
    for name in chosen:
        for old, kernel in zip(before[name], _kernels(stripped, name), strict=True):
            # Only kernels of 2-D convolutions are clustered for each channel.
            by_channel = per_channel and isinstance(legacy.get_layer(name), tf_keras.layers.Conv2D)
            _check_kernel(name, old if sparse[name] else None, kernel, number_of_clusters, by_channel)
    return copy_weights_back(stripped, model)


def choose_clusterable(
    legacy: Any,
    include: Iterable[str] | None,
    exclude: Iterable[str],
    *,
    number_of_clusters: int,
    per_channel: bool,
) -> dict[str, list[Any]]:
    """The weights that TFMOT is to cluster, by the name of their layer.

    Raises:
        InvalidArgumentError: If a pattern fits no layer.
        ModelError: If TFMOT refuses a layer, a kernel is too small, or there is nothing to cluster.
    """
    cluster_weights = load_tfmot().clustering.keras.cluster_weights

    def weights_of(layer: Any) -> list[Any]:
        wrapped = cluster_weights(layer, number_of_clusters=2)
        if wrapped is layer:
            raise ValueError("It has too few weights.")
        return [weight for _, weight in wrapped.layer.get_clusterable_weights()]

    chosen = choose_layers(legacy, "cluster", weights_of, include, exclude)
    small: list[str] = []
    for name, weights in chosen.items():
        layer = legacy.get_layer(name)
        by_channel = per_channel and isinstance(layer, tf_keras.layers.Conv2D)
        if by_channel and not layer.use_bias:
            raise ModelError(
                f"TFMOT counts the channels of a convolution by its bias, and silently leaves one without a bias as it "
                f"is. Name {name!r} in `exclude`, or leave out `per_channel`."
            )
        sizes = [int(np.prod(weight.shape)) // (weight.shape[-1] if by_channel else 1) for weight in weights]
        small += [f"{name} ({size} weights)" for size in sizes if size <= number_of_clusters]
    if small:
        raise ModelError(
            f"A kernel must have more weights than the {number_of_clusters} clusters. Lower `number_of_clusters`, or "
            f"name these layers in `exclude`: {', '.join(small)}."
        )
    return chosen


def _kernels(model: Any, name: str) -> list[np.ndarray]:
    return [weight.numpy() for weight in model.get_layer(name).weights if weight_name(weight) in KERNELS]


def _check_kernel(
    name: str, old: np.ndarray | None, kernel: np.ndarray, number_of_clusters: int, by_channel: bool
) -> None:
    parts = list(np.moveaxis(kernel, -1, 0)) if by_channel else [kernel]
    most = max(len(np.unique(part)) for part in parts)
    if most > number_of_clusters:
        raise TrainingError(f"Layer {name!r} has {most} values after TFMOT's clustering, not {number_of_clusters}.")
    if old is not None and np.any(kernel[old == 0]):
        raise TrainingError(f"Layer {name!r} lost zeros in TFMOT's clustering. Raise `number_of_clusters`.")
