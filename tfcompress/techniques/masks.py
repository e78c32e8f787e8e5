"""Masks: kernels that keep their zeros while they train.

A mask is a constraint of the kernel (`constraints.py`), so that it holds however the training goes.

Invariant: while masks are installed, a masked weight is exactly zero at every batch end. The model keeps its layers and
weights; nothing has to be stripped. Left out: which weights to mask (`prune/`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.constraints import Held, begin
from tfcompress.techniques.kernels import find_kernels


class KernelMask(Held):
    """A mask on one variable: the constraint that it is given at construction.

    Args:
        variable: A trainable Keras variable; a constraint that it has already is applied before the mask.
        strategy: The distribution strategy that the variable lives in, if any.
    """

    def __init__(self, variable: Any, strategy: Any = None):
        scope = (strategy or tf.distribute.get_strategy()).scope
        with scope():
            # A variable, so that a compiled step sees every new mask.
            self._mask = tf.Variable(tf.ones(variable.shape, variable.dtype), trainable=False)
        super().__init__(variable)

    def hold(self, value: tf.Tensor) -> tf.Tensor:
        return value * self._mask

    def assign(self, keep: np.ndarray) -> None:
        """Sets the mask to `keep`, a boolean array of the variable's shape, and zeroes the rest at once."""
        keep = keep.astype(self._mask.dtype.as_numpy_dtype)
        self._mask.assign(keep)
        self.variable.assign(keras.ops.convert_to_numpy(self.variable) * keep)

    def reapply(self) -> None:
        # The mask alone: what is left of the weights stays to the bit, whatever the layer's own constraint makes of it.
        self.assign(self._mask.numpy() != 0)


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
        self._masks = []
        for kernel in self._kernels:
            keep = keras.ops.convert_to_numpy(kernel) != 0
            if not keep.all():
                mask = KernelMask(kernel, self.model.distribute_strategy)
                mask.assign(keep)
                self._masks.append(mask)
        begin(self._masks, self.params)
        # A step that was compiled before knows nothing of the masks.
        self.model.make_train_function(force=True)

    def on_train_end(self, logs=None):
        for mask in self._masks:
            mask.reapply()
            mask.remove()
        self._masks.clear()
        # The compiled step still has the masks in it.
        self.model.make_train_function(force=True)
