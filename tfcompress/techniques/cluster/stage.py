"""The recipe stage `cluster`: trains with `WeightClustering`.

Invariant: a quantization-aware model that comes in goes out with one scale in each clustered layer, so that its file
holds as few integers as the kernel holds values. Left out: keeping the values few in later stages, which the pipeline
does with `HoldClusters`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import keras

from tfcompress.graph.copy_layer import copy_layer
from tfcompress.techniques.base import Context, Technique
from tfcompress.techniques.cluster.callback import WeightClustering
from tfcompress.techniques.cluster.centroids import check_clusters
from tfcompress.techniques.cluster.selection import clusterable_kernels, has_scales_of_channels
from tfcompress.techniques.shared_values import MOST_VALUES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster(Technique):
    """Makes kernels hold few values, and trains these.

    Args:
        clusters: Values that each kernel may hold, in [2, 256]; one of them is zero in a kernel with zeros.
        init: Where they start: `"k-means++"`, `"linear"` or `"density"`; see `tfcompress.cluster`.
        include: Patterns of layer names to cluster.
        exclude: Patterns of layer names not to cluster.
    """

    makes_clusters: ClassVar[bool] = True

    clusters: int = 16
    init: str = "k-means++"
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self):
        check_clusters("cluster", self.clusters, self.init, MOST_VALUES)

    @property
    def keeps_clusters(self) -> bool:
        return True

    def check(self, model: keras.Model, total_steps: int) -> None:
        clusterable_kernels(model, self.clusters, self.include, self.exclude)

    def apply(self, model: keras.Model, context: Context) -> keras.Model:
        def callbacks(replica: keras.Model) -> list[keras.callbacks.Callback]:
            return [
                WeightClustering(
                    replica,
                    self.clusters,
                    init=self.init,
                    include=self.include,
                    exclude=self.exclude,
                    seed=context.seed,
                )
            ]

        kernels = clusterable_kernels(model, self.clusters, self.include, self.exclude)
        of_channels = {kernel.layer.name for kernel in kernels if has_scales_of_channels(kernel.layer)}
        return context.train(_with_one_scale(model, of_channels), callbacks=callbacks).model


def _with_one_scale(model: keras.Model, names: set[str]) -> keras.Model:
    """A copy of a quantization-aware model in which layers of these names round all channels to one scale."""
    if not names:
        return model
    copy = keras.models.clone_model(
        model,
        clone_function=lambda layer: copy_layer(layer, **({"one_scale": True} if layer.name in names else {})),
    )
    copy.set_weights(model.get_weights())
    return copy
