"""`cluster`: weight sharing without training.

Invariant: the input model is unchanged; what comes out is a plain Keras model of the same layers. Left out: getting
accuracy back by training, which `WeightClustering` and `HoldClusters` do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfcompress.graph.normalized_sums import make_factors_positive, normalized_sums
from tfcompress.techniques.cluster.centroids import Init, check_clusters, cluster_kernel
from tfcompress.techniques.cluster.selection import clusterable_in_file
from tfcompress.techniques.constraints import constraint_of_layer
from tfcompress.techniques.kernels import check_finite, kernels_of
from tfcompress.techniques.shared_values import MOST_VALUES, holds_few_values
from tfcompress.training.copying import copy_model


def cluster(
    model: keras.Model,
    clusters: int = 16,
    *,
    init: str | Init = "k-means++",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    seed: int = 0,
) -> keras.Model:
    """A copy of `model` whose kernels hold few values each: the nearest ones, by k-means.

    Args:
        model: A built Keras model. It is not changed.
        clusters: Values that each kernel may hold, in [2, 256]. In a kernel with zeros one of them is zero, and zeros
            stay where they are.
        init: Where the values start: `"k-means++"` (far from each other, the best of several random starts), `"linear"`
            (equal distances from the smallest to the largest weight), `"density"` (as many weights between each two),
            or a callable that takes the sorted weights that are not zero, the number of values and a NumPy random
            generator, and gives an array of them.
        include: Patterns of layer names (`fnmatch`, such as `"conv*"`) to cluster; by default every kernel of more
            weights than clusters is clustered, but depthwise ones.
        exclude: Patterns of layer names not to cluster.
        seed: Seed of a random start.

    Returns:
        A new model of the same layers.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        ModelError: If the model cannot be copied, has nothing to cluster, a kernel holds NaN or infinity or has a
            constraint of its layer other than `NonNeg`, or the model is quantization-aware already, with scales of
            channels.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="hidden")])
        >>> len(np.unique(cluster(model, 4).get_layer("hidden").kernel.numpy()))
        4

    Reference:
        Han et al., "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman
        Coding", 2015, https://arxiv.org/abs/1510.00149
    """
    check_clusters("cluster", clusters, init, MOST_VALUES)
    clustered = copy_model(model)
    clusters = int(clusters)
    found = clusterable_in_file(clustered, clusters, include, exclude)
    check_finite(found)
    kernels = [kernel.variable for kernel in found]
    make_signs_equal(clustered, kernels)
    for kernel in kernels:
        kernel.assign(cluster_kernel(keras.ops.convert_to_numpy(kernel), clusters, init, seed=seed))
    return clustered


def make_signs_equal(model: keras.Model, kernels: Sequence[Any]) -> None:
    """Prepares a model for kernels that hold few values in the integer file too.

    Where a BatchNormalization follows that the file folds into a kernel, the signs of its negative factors go into the
    kernel, which changes nothing: in the file they would turn the signs of a channel's integers around. A layer with a
    constraint of its own, which may be on signs, is left as it is; its file may hold each value with both signs.

    Args:
        model: The model, which is changed.
        kernels: Its variables that will hold few values; one that does so already is left as it is.
    """
    chosen = {id(kernel) for kernel in kernels}
    for layer, norm in normalized_sums(model):
        turned = [*kernels_of(layer), getattr(layer, "bias", None)]
        if all(constraint_of_layer(variable) is None for variable in turned) and any(
            id(kernel) in chosen and not holds_few_values(keras.ops.convert_to_numpy(kernel))
            for kernel in kernels_of(layer)
        ):
            make_factors_positive(layer, norm)
