"""Activations that the runtime computes in several integer operations, with the result of each rounded.

Invariant: that of `rounding.py`. Left out: activations that are one integer operation, which stay Keras's own, and
those that have no integer form, which `techniques/quantize` refuses by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from tfcompress.layers.rounding import SIGMOID_RANGE, InnerRanges

_Range = Callable[[str, Any], Any]


def _silu(x: Any, rounded: _Range) -> Any:
    return x * rounded("sigmoid", ops.sigmoid(x))


def _hard_sigmoid(x: Any, rounded: _Range) -> Any:
    return rounded("clipped", ops.relu6(x + 3.0)) * (1.0 / 6.0)


def _elu(x: Any, rounded: _Range) -> Any:
    # exp(0) - 1 is zero where x is positive, and relu(x) where it is negative.
    below = rounded("below", ops.minimum(x, 0.0))
    return rounded("above", ops.relu(x)) + rounded("shifted", rounded("exponential", ops.exp(below)) - 1.0)


def _softplus(x: Any, rounded: _Range) -> Any:
    above = rounded("above", ops.relu(x))
    # 0 - |x|, since a negation has no integer kernel.
    exponential = rounded("exponential", ops.exp(rounded("negative", 0.0 - rounded("size", ops.abs(x)))))
    return above + rounded("logarithm", ops.log(rounded("shifted", exponential + 1.0)))


def _selu(x: Any, rounded: _Range) -> Any:
    below = rounded("below", ops.minimum(x, 0.0))
    exponential = rounded("shifted", rounded("exponential", ops.exp(below)) - 1.0)
    above = rounded("scaled_above", rounded("above", ops.relu(x)) * 1.0507009873554805)
    return above + rounded("scaled_below", exponential * 1.7580993408473766)


_ELU_STEPS = {"below": None, "above": None, "exponential": None, "shifted": None}
# For each activation its steps, the ranges that are fixed among them, and how it is computed.
COMPOSED: Mapping[str, tuple[Mapping[str, tuple[float, float] | None], Callable[[Any, _Range], Any]]] = {
    "silu": ({"sigmoid": SIGMOID_RANGE}, _silu),
    "hard_sigmoid": ({"clipped": (0.0, 6.0)}, _hard_sigmoid),
    "elu": (_ELU_STEPS, _elu),
    "selu": ({**_ELU_STEPS, "scaled_above": None, "scaled_below": None}, _selu),
    "softplus": (dict.fromkeys(["above", "size", "negative", "exponential", "shifted", "logarithm"]), _softplus),
}


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedActivation(InnerRanges, keras.layers.Activation):
    """`keras.layers.Activation` of a function in `COMPOSED`."""

    base_class = keras.layers.Activation

    def build(self, input_shape):
        steps, self._compute = COMPOSED[keras.activations.serialize(self.activation)]
        self.steps = {what: self.inner_range(what, fixed) for what, fixed in steps.items()}
        self.built = True

    def call(self, inputs, training=None):
        return self._compute(inputs, lambda what, values: self.steps[what](values, training=training))


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedReLU(InnerRanges, keras.layers.ReLU):
    """`keras.layers.ReLU` with a largest value that the runtime does not know: a ReLU and a minimum."""

    base_class = keras.layers.ReLU

    def build(self, input_shape):
        self.above_range = self.inner_range("above")
        self.built = True

    def call(self, inputs, training=None):
        return ops.minimum(self.above_range(ops.relu(inputs), training=training), self.max_value)
