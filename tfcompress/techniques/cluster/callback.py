"""`WeightClustering`: kernels that hold few values from the first step on, and train them.

Invariant: at every batch end each clustered kernel holds at most as many values as asked for; a zero stays zero. Which
weights belong together is chosen once, when training begins. Left out: choosing the values (`centroids.py`), and later
trainings, in which `HoldClusters` keeps them few.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfcompress.techniques.cluster.centroids import Init, check_clusters
from tfcompress.techniques.cluster.one_shot import cluster_in_place
from tfcompress.techniques.cluster.selection import clusterable_variables
from tfcompress.techniques.shared_values import MOST_VALUES, release, share


class WeightClustering(keras.callbacks.Callback):
    """Clusters the weights of a model when `fit` begins, and trains the values of the clusters.

    The weights of a cluster move together, by the mean of what the optimizer does to each; see `SharedValues`. Works in
    plain `model.fit` and inside a custom `train_step`, with `jit_compile`, `steps_per_execution`, mixed precision and
    distribution strategies. Resuming needs no state beside the model: a kernel that holds few values already keeps its
    clusters.

    Args:
        model: The model to cluster: the one that is fitted, or the student of a `Distiller`.
        clusters: Values that each kernel may hold, in [2, 256]. In a kernel with zeros one of them is zero.
        init: Where the values start before k-means: `"k-means++"`, `"linear"`, `"density"`, or a callable; see
            `cluster`.
        include: Patterns of layer names to cluster; by default every kernel of more weights than clusters is clustered,
            but depthwise ones.
        exclude: Patterns of layer names not to cluster.
        seed: Seed of a random start.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        ModelError: If the model has nothing to cluster, or is quantization-aware already, with scales of channels.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="hidden"), keras.layers.Dense(2)])
        >>> model.compile("sgd", "mse")
        >>> clustering = WeightClustering(model, clusters=4)
        >>> _ = model.fit(np.ones((4, 8)), np.ones((4, 2)), verbose=0, callbacks=[clustering])
        >>> len(np.unique(model.get_layer("hidden").kernel.numpy()))
        4

    Reference:
        Han et al., "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman
        Coding", 2015, https://arxiv.org/abs/1510.00149
    """

    def __init__(
        self,
        model: keras.Model,
        clusters: int = 16,
        *,
        init: str | Init = "k-means++",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        seed: int = 0,
    ):
        super().__init__()
        check_clusters("WeightClustering", clusters, init, MOST_VALUES)
        self._kernels = clusterable_variables(model, clusters, include, exclude)
        self._clustered = model
        self._clusters = clusters
        self._init = init
        self._seed = seed
        self._held: list[Any] = []

    def on_train_begin(self, logs=None):
        cluster_in_place(self._clustered, self._kernels, self._clusters, self._init, self._seed)
        self._held = share(self.model, self._clustered, self._kernels)

    def on_train_end(self, logs=None):
        release(self.model, self._held)
        self._held = []
