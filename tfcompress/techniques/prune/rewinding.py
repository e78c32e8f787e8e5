"""Rewinding: the weights that a pruning leaves go back to what they were early in the training.

Invariant: only values go back, the masks are those of the pruning. Left out: the optimizer's moments and its learning
rate, which go on; train with `schedule: constant` where each round is to learn like the first.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


class Rewind:
    """Keeps the trainable weights of one step.

    Args:
        model: The model that is pruned.
        step: The step whose weights are kept.
        strategy: The distribution strategy that the model lives in.

    Reference:
        Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis", 2020,
        https://arxiv.org/abs/1912.05671
    """

    def __init__(self, model: keras.Model, step: int, strategy: Any):
        self._model = model
        self._step = step
        with strategy.scope():
            self._kept = [tf.Variable(tf.zeros(weight.shape), trainable=False) for weight in model.trainable_variables]
            self._has_kept = tf.Variable(0.0, trainable=False)

    @property
    def variables(self) -> list[tf.Variable]:
        """What a resumed training needs."""
        return [*self._kept, self._has_kept]

    def keep_when_due(self, step: int) -> None:
        """Keeps the weights, once the step is reached."""
        if step >= self._step and not self._is_kept:
            for kept, weight in zip(self._kept, self._model.trainable_variables, strict=True):
                kept.assign(keras.ops.convert_to_numpy(weight))
            self._has_kept.assign(1.0)

    def go_back(self) -> None:
        """Sets the trainable weights to those that were kept, if the step was reached; masks come after it."""
        if self._is_kept:
            for kept, weight in zip(self._kept, self._model.trainable_variables, strict=True):
                weight.assign(keras.ops.convert_to_numpy(kept))

    @property
    def _is_kept(self) -> bool:
        return bool(keras.ops.convert_to_numpy(self._has_kept) > 0)
