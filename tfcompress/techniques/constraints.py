"""What holds of a variable after each step of a training: the constraint that masks and shared values are.

It acts through `variable.constraint`, which Keras optimizers apply after every step: with `jit_compile`, mixed
precision, several replicas, `steps_per_execution` and custom `train_step`s alike.

Invariant: a constraint that the variable has already is applied before, and is the variable's own again once ours is
removed. Of several of ours on one variable any may go first: the others close the gap. Left out: what holds
(`masks.py`, `shared_values.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcompress.errors import ModelError, TrainingError
from tfcompress.techniques.kernels import Kernel


class Held(keras.constraints.Constraint):
    """The constraint of one variable from construction on, until it is removed; what it holds is in `hold`.

    Args:
        variable: A trainable Keras variable; a constraint that it has already is applied before.
    """

    # What a variable cannot be both of: kept at few values, and given more and more zeros.
    keeps_values_few = False
    adds_zeros = False

    def __init__(self, variable: Any):
        # What `begin` says of it.
        self.training: Any = None
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
        """Gives the variable, or ours on top of it, the constraint back that it had."""
        # A constraint of someone else's on top may call it still.
        self._installed = False
        if self.variable.constraint is self:
            self.variable.constraint = self._own_constraint
            return
        above = self.variable.constraint
        while isinstance(above, Held) and above._own_constraint is not self:
            above = above._own_constraint
        if isinstance(above, Held):
            above._own_constraint = self._own_constraint


def begin(held: Sequence[Held], training: Any) -> None:
    """Says of constraints that were just installed in which training they are.

    Those that a training left behind which was interrupted are removed.

    Args:
        held: The constraints that a callback installed.
        training: Its `params`: one object for all callbacks of a `fit`.

    Raises:
        TrainingError: If what they hold would be undone by what another callback of this training holds, or undo it.
    """
    for each in held:
        each.training = training
        below = each._own_constraint
        while isinstance(below, Held):
            if below.training is not training:
                below.remove()
            elif (each.keeps_values_few and below.adds_zeros) or (each.adds_zeros and below.keeps_values_few):
                for installed in held:
                    installed.remove()
                raise TrainingError(
                    "A kernel cannot be pruned and held at few values in one training: zeros that are new would be "
                    "further values, or be lost. Prune in a `fit` before; `WeightClustering` and `HoldClusters` keep "
                    f"the zeros. Received: both for {each.variable.path!r}."
                )
            below = below._own_constraint


def constraint_of_layer(variable: Any) -> Callable | None:
    """The constraint that the layer gave its variable, whatever of ours is on top of it.

    Example:
        >>> variable = keras.Variable([1.0], name="kernel")
        >>> variable.constraint = keras.constraints.NonNeg()
        >>> constraint_of_layer(variable).__class__.__name__
        'NonNeg'
    """
    constraint = getattr(variable, "constraint", None)
    while isinstance(constraint, Held):
        constraint = constraint._own_constraint
    return constraint


def refuse_broken_by_means(kernels: Iterable[Kernel]) -> None:
    """Refuses kernels that values shared by their weights would take out of the constraint that their layer has.

    A value is the mean of its weights. Where each weight is at least zero so is their mean; nothing like it holds of
    norms, or of constraints that are not known.

    Raises:
        ModelError: For the first kernel with a constraint other than `NonNeg`.
    """
    for kernel in kernels:
        constraint = constraint_of_layer(kernel.variable)
        if constraint is not None and not isinstance(constraint, keras.constraints.NonNeg):
            raise ModelError(
                f"Kernel {kernel.name!r} has a constraint, {type(constraint).__name__}, that values shared by its "
                "weights would not keep; only NonNeg is kept. Name the layer in `exclude`, or remove the constraint."
            )
