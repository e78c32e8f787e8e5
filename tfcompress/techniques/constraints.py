"""What holds of a variable after each step of a training: the constraint that masks and shared values are.

It acts through `variable.constraint`, which Keras optimizers apply after every step: with `jit_compile`, mixed
precision, several replicas, `steps_per_execution` and custom `train_step`s alike.

Invariant: a constraint that the variable has already is applied before, and is the variable's own again once ours is
removed. Left out: what holds (`masks.py`, `shared_values.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class Held(keras.constraints.Constraint):
    """The constraint of one variable from construction on, until it is removed; what it holds is in `hold`.

    Args:
        variable: A trainable Keras variable; a constraint that it has already is applied before.
    """

    def __init__(self, variable: Any):
        self.variable = variable
        self._own_constraint: Callable | None = variable.constraint
        self._installed = True
        variable.constraint = self

    def __call__(self, value: Any) -> Any:
        if self._own_constraint is not None:
            value = self._own_constraint(value)
        value = tf.convert_to_tensor(value)
        return self.hold(value) if self._installed else value

    def hold(self, value: tf.Tensor) -> tf.Tensor:
        """The value as it must be."""
        raise NotImplementedError

    def reapply(self) -> None:
        """Holds it again, after something wrote to the variable past the optimizer's constraints."""
        self.variable.assign(self(tf.convert_to_tensor(keras.ops.convert_to_numpy(self.variable))))

    def remove(self) -> None:
        """Gives the variable the constraint back that it had, or steps aside where another one came on top."""
        self._installed = False
        if self.variable.constraint is self:
            self.variable.constraint = self._own_constraint
