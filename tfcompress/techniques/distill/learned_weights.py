"""`LearnedWeights`: how much each loss counts, learned along by how well it can be fulfilled.

Invariant: it starts at the sum of the losses with the weights that they have. Left out: what is in the losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfcompress.errors import InvalidArgumentError


class LearnedWeights(keras.layers.Layer):
    """Sums up losses `L` with weights `w` as `exp(-s) * w * L + s / 2`, with a number `s` to each that is trained.

    `s` is the logarithm of a variance: a loss that stays large comes to count less, and none can come to count nothing,
    or all. One with a weight of 0 is left out, for its variance would fall for ever.

    Args:
        weights: The weight of each loss that it starts from, at least 0.

    Raises:
        InvalidArgumentError: If all weights are 0.

    Example:
        >>> layer = LearnedWeights([1.0, 0.5])
        >>> float(layer([ops.array(3.0), ops.array(1.0)]))
        3.5

    Reference:
        Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics",
        2018, https://arxiv.org/abs/1705.07115
    """

    def __init__(self, weights: Sequence[float], **kwargs: Any):
        super().__init__(dtype="float32", **kwargs)
        self._weight_of = {at: weight for at, weight in enumerate(weights) if weight > 0}
        if not self._weight_of:
            raise InvalidArgumentError("Distiller.learn_weights", "False where all weights are 0", list(weights))
        self.log_variances = self.add_weight(shape=(len(self._weight_of),), initializer="zeros", name="log_variances")
        self.built = True

    def call(self, losses: Sequence[Any], *, share: float = 1.0) -> Any:
        """The sum, shape `()`, from as many losses as there are weights; `share` is that of this replica."""
        total = 0.0
        for number, (at, weight) in enumerate(self._weight_of.items()):
            log_variance = self.log_variances[number]
            total += ops.exp(-log_variance) * weight * losses[at] + 0.5 * share * log_variance
        return total
