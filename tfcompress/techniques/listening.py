"""Listening to the optimizer, to which every `train_step` hands its gradients.

A callback sees no gradients, and a loss computed beside the training would not be that of a custom `train_step`, a
teacher or an augmented batch. So `optimizer.apply` is taken over while a training lasts: what is done there is compiled
into the same step.

Invariant: once `remove` is called the optimizer is as it was. Left out: `train_step`s that write to weights without
`model.optimizer`; there is nothing to listen to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

Apply = Callable[[list[Any], list[Any]], Any]


def innermost(optimizer: Any) -> Any:
    """The optimizer that steps: under loss scaling the inner one."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def step_counter(optimizer: Any) -> keras.Variable:
    """The variable in which an optimizer counts the steps of a training, for a graph; see `steps_so_far`."""
    # `iterations` counts updates, which under gradient accumulation are one for several steps.
    return innermost(optimizer)._iterations


def steps_so_far(optimizer: Any) -> int:
    """Steps of a training that an optimizer has taken part in: batches, also where it accumulates their gradients.

    It counts on from one `fit` to the next, and leaves out steps that overflowed under loss scaling.

    Args:
        optimizer: A Keras optimizer; one that scales the loss counts in its inner optimizer.

    Example:
        >>> optimizer = keras.optimizers.SGD(gradient_accumulation_steps=4)
        >>> weight = keras.Variable(1.0)
        >>> for _ in range(6):
        ...     optimizer.apply([keras.ops.ones(())], [weight])
        >>> steps_so_far(optimizer), int(optimizer.iterations)
        (6, 1)
    """
    return int(keras.ops.convert_to_numpy(step_counter(optimizer)))


class OptimizerListener:
    """Calls a function in the place of `optimizer.apply`.

    Args:
        step: Called with `(apply, gradients, variables)`: the optimizer's own `apply`, which it calls, and two lists.
            It gives what `apply` gives.
    """

    def __init__(self, step: Callable[[Apply, list[Any], list[Any]], Any]):
        self._step = step
        self._hook: Any = None
        self.optimizer: Any = None

    def install(self, optimizer: Any) -> None:
        """Starts to listen. A step that was compiled before has to be compiled anew."""
        # Under loss scaling the inner optimizer gets the gradients unscaled, and only where they are finite.
        self.optimizer = innermost(optimizer)
        original = self.optimizer.apply

        def apply(grads: Any, trainable_variables: Any = None) -> Any:
            variables = self.optimizer._trainable_variables if trainable_variables is None else trainable_variables
            grads, variables = list(grads), list(variables)
            # Another listener on top may still call this one after its removal.
            return self._step(original, grads, variables) if self._hook is apply else original(grads, variables)

        self._hook = apply
        # Past Keras's attribute tracking, which is for variables.
        object.__setattr__(self.optimizer, "apply", apply)

    def remove(self) -> None:
        """Stops listening."""
        if self.optimizer is not None and self.optimizer.__dict__.get("apply") is self._hook:
            object.__delattr__(self.optimizer, "apply")
        self._hook = None
