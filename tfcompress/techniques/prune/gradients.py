"""Gradients as a training computes them, for criteria that need them.

The optimizer is listened to (`listening.py`). What a criterion makes of the gradients is summed into variables in the
same compiled step, which costs a few operations on each weight and no further pass through the network.

Invariant: the optimizer does what it did. Left out: `train_step`s that write to weights without `model.optimizer`;
there is nothing to listen to, and `read` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.errors import TrainingError
from tfcompress.techniques.listening import Apply, OptimizerListener

Observe = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class GradientWatch:
    """Sums what `observe` makes of kernels and their gradients, step by step.

    Args:
        kernels: The Keras variables to watch.
        observe: Called with a kernel before the step and its gradient, as float32 tensors.
        strategy: The distribution strategy that the kernels live in.
        last_only: Whether only the last step counts, in the place of the sum.
    """

    def __init__(self, kernels: Sequence[Any], observe: Observe, strategy: Any, *, last_only: bool = False):
        self._kernels = list(kernels)
        self._observe = observe
        self._last_only = last_only
        with strategy.scope():
            # Each replica sums its own; reading adds them up.
            options: dict[str, Any] = {
                "trainable": False,
                "synchronization": tf.VariableSynchronization.ON_READ,
                "aggregation": tf.VariableAggregation.SUM,
            }
            self.sums = [tf.Variable(tf.zeros(kernel.shape), **options) for kernel in self._kernels]
            # How many gradients came by, of each kernel.
            self.counts = tf.Variable(tf.zeros(len(self._kernels)), **options)
        self._listener = OptimizerListener(self._step)

    @property
    def variables(self) -> list[tf.Variable]:
        """What a resumed training needs."""
        return [*self.sums, self.counts]

    def install(self, optimizer: Any) -> None:
        """Starts to listen. A step that was compiled before has to be compiled anew."""
        self._listener.install(optimizer)

    def remove(self) -> None:
        """Stops listening."""
        self._listener.remove()

    def read(self) -> list[np.ndarray]:
        """The sum for each kernel.

        Raises:
            TrainingError: If no gradient of one came by since the last `reset`.
        """
        if not self.seen:
            raise TrainingError(
                "The pruning criterion needs gradients, and none came by: this model's `train_step` does not give them "
                "to `model.optimizer`. Call `self.optimizer.apply_gradients` there, or prune by `criterion: l1`."
            )
        without = [kernel.path for kernel, count in zip(self._kernels, self._counted(), strict=True) if not count]
        if without:
            raise TrainingError(
                "The pruning criterion needs gradients of every kernel that it compares. Name the layers that the loss "
                f"does not depend on, or that are not trained, in `exclude`. Received: none of {without}."
            )
        return [keras.ops.convert_to_numpy(_read(total)) for total in self.sums]

    @property
    def seen(self) -> bool:
        """Whether there was a step since the last `reset`."""
        return bool(self._counted().any())

    def reset(self) -> None:
        """Starts the sums anew."""
        for variable in self.variables:
            variable.assign(tf.zeros(variable.shape))

    def _step(self, apply: Apply, grads: list[Any], variables: list[Any]) -> Any:
        self._take(grads, variables)
        return apply(grads, variables)

    def _take(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        places = {id(kernel): at for at, kernel in enumerate(self._kernels)}
        for gradient, variable in zip(grads, variables, strict=True):
            at = places.get(id(variable))
            if at is None or gradient is None:
                continue
            value = tf.cast(tf.convert_to_tensor(variable), tf.float32)
            observed = self._observe(value, tf.cast(tf.convert_to_tensor(gradient), tf.float32))
            if self._last_only:
                self.sums[at].assign(observed)
            else:
                self.sums[at].assign_add(observed)
            self.counts.assign_add(tf.one_hot(at, len(self._kernels)))

    def _counted(self) -> np.ndarray:
        return keras.ops.convert_to_numpy(_read(self.counts))


def _read(variable: tf.Variable) -> tf.Tensor:
    return variable.read_value()
