"""Training that makes weights small before they are pruned: a penalty on the kernels that a pruning is for.

Invariant: the penalty is part of the loss during `fit` and of nothing after it. Left out: gates that open and close
(`hard_concrete.py`), and which weights go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError, TrainingError
from tfcompress.techniques.prune.kernels import prunable_kernels


class SparsityPenalty(keras.callbacks.Callback):
    """Adds `l1 * sum(|w|) + l2 * sum(w ** 2)` of the prunable kernels to the loss: the pruning loss.

    It goes beside a pruning callback, or before it in a training of its own. Keras adds it wherever a `train_step` uses
    `compute_loss` or `self.losses`, as a `Distiller` does.

    Args:
        model: The model that is fitted, or the student of a `Distiller`.
        l1: Weight of the sum of absolute values, at least 0; it pulls every weight by the same amount.
        l2: Weight of the sum of squares, at least 0; it pulls large weights more.
        include: Patterns of layer names; see `prunable_kernels`.
        exclude: Patterns of layer names to leave out.

    Raises:
        InvalidArgumentError: If a weight is negative, or both are 0.
        ModelError: If the model has no such kernel.
        TrainingError: After the first step, if the model's `train_step` leaves such losses out.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="y")])
        >>> penalty = SparsityPenalty(model, l1=1e-4, include=["y"])

    Reference:
        Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015,
        https://arxiv.org/abs/1506.02626
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        l1: float = 0.0,
        l2: float = 0.0,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ):
        super().__init__()
        if min(l1, l2) < 0 or max(l1, l2) == 0:
            raise InvalidArgumentError("SparsityPenalty.l1 and l2", "at least 0, and one of them above 0", (l1, l2))
        self._l1, self._l2 = l1, l2
        self._kernels = [kernel.variable for kernel in prunable_kernels(model, include, exclude)]
        self._own: list[Callable | None] = []
        self._is_used = False

    def on_train_begin(self, logs=None):
        self._own = [kernel.regularizer for kernel in self._kernels]
        for kernel, own in zip(self._kernels, self._own, strict=True):
            kernel.regularizer = self._with_penalty(own)
        self._is_used = False
        # A step that was compiled before knows nothing of it.
        self.model.make_train_function(force=True)

    def on_train_batch_end(self, batch, logs=None):
        if not self._is_used:
            raise TrainingError(
                "The penalty on the weights is not part of this model's loss: its `train_step` uses neither "
                "`self.compute_loss` nor `self.losses`. Add `sum(self.losses)` to the loss there."
            )

    def on_train_end(self, logs=None):
        for kernel, own in zip(self._kernels, self._own, strict=True):
            kernel.regularizer = own
        self.model.make_train_function(force=True)

    def _with_penalty(self, own: Callable | None) -> keras.regularizers.Regularizer:
        def penalty(kernel: Any) -> Any:
            self._is_used = True
            kernel = tf.cast(tf.convert_to_tensor(kernel), tf.float32)
            total = self._l1 * tf.reduce_sum(tf.abs(kernel)) + self._l2 * tf.reduce_sum(tf.square(kernel))
            return total if own is None else total + tf.cast(own(kernel), tf.float32)

        return _Penalty(penalty)


class _Penalty(keras.regularizers.Regularizer):
    """A function as a regularizer, since Keras 3.12 takes no other callable."""

    def __init__(self, function: Callable[[Any], Any]):
        self._function = function

    def __call__(self, x: Any) -> Any:
        return self._function(x)
