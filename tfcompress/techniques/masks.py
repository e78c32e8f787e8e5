"""Masks: kernels that keep their zeros while they train.

A mask acts through `variable.constraint`, which Keras optimizers apply after every step: with `jit_compile`, mixed
precision, several replicas, `steps_per_execution` and custom `train_step`s alike.

Invariant: while masks are installed, a masked weight is exactly zero at every batch end. The model keeps its layers and
weights; nothing has to be stripped. Left out: which weights to mask (`prune/`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError


class KernelMask(keras.constraints.Constraint):
    """A mask on one variable: the constraint that it is given at construction.

    Args:
        variable: A trainable Keras variable; a constraint that it has already is applied before the mask.
        strategy: The distribution strategy that the variable lives in, if any.
    """

    def __init__(self, variable: Any, strategy: Any = None):
        self.variable = variable
        self._own_constraint: Callable | None = variable.constraint
        scope = (strategy or tf.distribute.get_strategy()).scope
        with scope():
            # A variable, so that a compiled step sees every new mask.
            self._mask = tf.Variable(tf.ones(variable.shape, variable.dtype), trainable=False)
        self._installed = True
        variable.constraint = self

    def __call__(self, value: Any) -> Any:
        if self._own_constraint is not None:
            value = self._own_constraint(value)
        value = tf.convert_to_tensor(value)
        return value * self._mask if self._installed else value

    def assign(self, keep: np.ndarray) -> None:
        """Sets the mask to `keep`, a boolean array of the variable's shape, and zeroes the rest at once."""
        keep = keep.astype(self._mask.dtype.as_numpy_dtype)
        self._mask.assign(keep)
        self.variable.assign(keras.ops.convert_to_numpy(self.variable) * keep)

    def reapply(self) -> None:
        """Zeroes what the mask drops, after something wrote to the variable past the optimizer's constraints."""
        self.assign(self._mask.numpy() != 0)

    def remove(self) -> None:
        """Gives the variable the constraint back that it had, or steps aside where another mask came on top."""
        self._installed = False
        if self.variable.constraint is self:
            self.variable.constraint = self._own_constraint


class HoldMasks(keras.callbacks.Callback):
    """Keeps the zeros that the kernels of a model have when training begins.

    What `MagnitudePruning` or another stage made sparse stays sparse through any later training: fine-tuning,
    distillation, quantization-aware training.

    Args:
        model: The model to hold (the student, when it trains inside a `Distiller`).
        layers: Names of the layers to hold; by default every layer that has a zero in a kernel.

    Raises:
        InvalidArgumentError: If a layer does not exist or has no kernel.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="y")])
        >>> model.layers[0].kernel.assign([[0.0, 1.0], [2.0, 0.0]]).shape
        TensorShape([2, 2])
        >>> callback = HoldMasks(model)
    """

    def __init__(self, model: keras.Model, layers: Iterable[str] | None = None):
        super().__init__()
        kernels = find_kernels(model)
        names = {kernel.layer.name for kernel in kernels}
        unknown = sorted(set(layers or ()) - names)
        if unknown:
            raise InvalidArgumentError("HoldMasks.layers", f"names among {sorted(names)}", unknown)
        self._kernels = [kernel.variable for kernel in kernels if layers is None or kernel.layer.name in set(layers)]
        self._masks: list[KernelMask] = []

    def on_train_begin(self, logs=None):
        for kernel in self._kernels:
            keep = keras.ops.convert_to_numpy(kernel) != 0
            if not keep.all():
                mask = KernelMask(kernel, self.model.distribute_strategy)
                mask.assign(keep)
                self._masks.append(mask)
        # A step that was compiled before knows nothing of the masks.
        self.model.make_train_function(force=True)

    def on_train_end(self, logs=None):
        for mask in self._masks:
            mask.reapply()
            mask.remove()
        self._masks.clear()
        # The compiled step still has the masks in it.
        self.model.make_train_function(force=True)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A trainable kernel.

    Args:
        name: The name of its layer, with the way to the kernel behind it where the layer has several:
            `"lstm/lstm_cell/recurrent_kernel"`.
        layer: The layer of the model that it is in.
        owner: The layer that made it: `layer` itself, or one inside of it, such as the cell of a recurrent layer.
        variable: The Keras variable.
    """

    name: str
    layer: keras.layers.Layer
    owner: keras.layers.Layer
    variable: keras.Variable


def find_kernels(model: keras.Model) -> list[Kernel]:
    """The trainable kernels of a model and of models within it, each once.

    Those of recurrent cells, of attention and of separable convolutions are among them.

    Example:
        >>> model = keras.Sequential([keras.Input((5, 3)), keras.layers.GRU(4, name="gru")])
        >>> [kernel.name for kernel in find_kernels(model)]
        ['gru/gru_cell/kernel', 'gru/gru_cell/recurrent_kernel']
    """
    found: list[Kernel] = []
    seen: set[int] = set()
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            inner = find_kernels(layer)
        else:
            owned = [
                (owner, variable)
                for owner in layer._flatten_layers()
                for variable in owner._trainable_variables
                if variable.name.endswith("kernel") and variable.trainable
            ]
            inner = [
                Kernel(layer.name if len(owned) == 1 else _path_within(layer, variable), layer, owner, variable)
                for owner, variable in owned
            ]
        found.extend(kernel for kernel in inner if id(kernel.variable) not in seen)
        seen.update(id(kernel.variable) for kernel in inner)
    return found


def _path_within(layer: keras.layers.Layer, variable: keras.Variable) -> str:
    parts = variable.path.split("/")
    start = parts.index(layer.name) if layer.name in parts else len(parts) - 2
    return "/".join([layer.name, *parts[start + 1 :]])
