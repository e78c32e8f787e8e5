"""`LearnedWeights`: how much each loss counts, learned along by how well it can be fulfilled.

Invariant: it starts at the sum of the losses with the weights that they have. Left out: what is in the losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


class LearnedWeights(keras.layers.Layer):
    """Sums up losses `L` with weights `w` as `exp(-s) * w * L + s / 2`, with a number `s` to each that is trained.

    `s` is the logarithm of a variance: a loss that stays large comes to count less, and none can come to count nothing,
    or all.

    Args:
        count: Number of losses.

    Example:
        >>> layer = LearnedWeights(2)
        >>> float(layer([ops.array(3.0), ops.array(1.0)], weights=[1.0, 0.5]))
        3.5

    Reference:
        Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics",
        2018, https://arxiv.org/abs/1705.07115
    """

    def __init__(self, count: int, **kwargs: Any):
        super().__init__(dtype="float32", **kwargs)
        self.log_variances = self.add_weight(shape=(count,), initializer="zeros", name="log_variances")
        self.built = True

    def call(self, losses: Sequence[Any], *, weights: Sequence[Any], share: float = 1.0) -> Any:
        """The sum, shape `()`, from as many losses and weights; `share` is that of this replica."""
        total = 0.0
        for at, (loss, weight) in enumerate(zip(losses, weights, strict=True)):
            log_variance = self.log_variances[at]
            total += ops.exp(-log_variance) * weight * loss + 0.5 * share * log_variance
        return total
