"""`WeightClustering`: kernels that hold few values from the first step on, and train them.

Invariant: at every batch end each clustered kernel holds at most as many values as asked for; a zero stays zero. Left
out: choosing the values (`centroids.py`), how they and their weights change (`reassignment.py`), and later trainings,
in which `HoldClusters` keeps them few.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfcompress.techniques.cluster.centroids import Init, check_clusters, cluster_kernel
from tfcompress.techniques.cluster.one_shot import make_signs_equal
from tfcompress.techniques.cluster.reassignment import Clusters, ReassignedValues
from tfcompress.techniques.cluster.selection import clusterable_in_file
from tfcompress.techniques.kernels import check_finite
from tfcompress.techniques.shared_values import MOST_VALUES, release, share


class WeightClustering(keras.callbacks.Callback):
    """Clusters the weights of a model when `fit` begins, and trains the values of the clusters and who is in which.

    The network computes with few values; each weight beside has a value of its own, to which every step of the
    optimizer is applied, and which says its cluster; see `ReassignedValues`. Works in plain `model.fit` and inside a
    custom `train_step`, with `jit_compile`, `steps_per_execution`, mixed precision and distribution strategies. A
    training that is resumed exactly needs `variables` beside the model and its optimizer; without them each weight
    starts again from the value of its cluster.

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
        ModelError: If the model has nothing to cluster, a kernel has a constraint of its layer other than `NonNeg`, or
            the model is quantization-aware already, with scales of channels; when training begins, if a kernel holds
            NaN or infinity.
        TrainingError: When training begins, if the same `fit` prunes a kernel; prune in one before it.

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
        clusters = int(clusters)
        self._found = clusterable_in_file(model, clusters, include, exclude)
        self._kernels = [kernel.variable for kernel in self._found]
        self._clustered = model
        self._clusters = clusters
        self._init = init
        self._seed = seed
        strategy = model.distribute_strategy
        self._states = [Clusters(kernel.shape.num_elements(), clusters, strategy) for kernel in self._kernels]
        self._held: list[Any] = []

    @property
    def variables(self) -> list[Any]:
        """What a training resumed in the middle needs beside the model and its optimizer."""
        return [variable for state in self._states for variable in state.variables]

    def on_train_begin(self, logs=None):
        check_finite(self._found)
        make_signs_equal(self._clustered, self._kernels)
        for kernel, state in zip(self._kernels, self._states, strict=True):
            weights = keras.ops.convert_to_numpy(kernel)
            if not state.are_of(weights):
                state.choose(weights, cluster_kernel(weights, self._clusters, self._init, seed=self._seed))
        states = {id(kernel): state for kernel, state in zip(self._kernels, self._states, strict=True)}
        self._held = share(
            self, self._clustered, self._kernels, lambda kernel: ReassignedValues(kernel, states[id(kernel)])
        )

    def on_train_end(self, logs=None):
        release(self.model, self._held)
        self._held = []
