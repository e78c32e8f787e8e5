"""Recurrent layers, unrolled, with every step's results rounded to ranges that all steps share.

The state of an integer file has 8 bits like everything else, so training sees what that loses. The converter's own
integer LSTM (one fused operation) takes no ranges from training; export after training uses it.

Invariant: that of `rounding.py`. Left out: initial states that are given, masks, dropout of recurrent connections and
sequences of unknown length, which are refused where the network is rewritten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from tfcompress.layers.fake_quantize import FakeQuantize
from tfcompress.layers.rounding import SIGMOID_RANGE, TANH_RANGE, InnerRanges, RoundedKernel, keep_in_float32

if TYPE_CHECKING:
    _Recurrent: Any = keras.layers.RNN
else:
    _Recurrent = object


class _QuantizedRecurrent(InnerRanges, RoundedKernel, _Recurrent):
    """Mixin: the loop over the steps of sequences `(batch, steps, features)`."""

    rounding_keys = (*RoundedKernel.rounding_keys, *InnerRanges.rounding_keys)
    per_channel = False
    # They are made by the cell inside of this layer; see `build`.
    kernel_names = ()
    step_names: tuple[str, ...]
    # The range of another layer's results that this one rounds its results to as well; to be set before it is built.
    given_range: FakeQuantize | None = None

    def build(self, sequences_shape, initial_state_shape=None):
        super().build(sequences_shape)
        keep_in_float32([self.cell.kernel, self.cell.recurrent_kernel])
        fixed = {keras.activations.sigmoid: SIGMOID_RANGE, keras.activations.tanh: TANH_RANGE}
        functions = {
            "gate": getattr(self.cell, "recurrent_activation", None),
            "candidate": self.cell.activation,
            "squashed": self.cell.activation,
        }
        self.step_ranges = {}
        for what in self.step_names:
            kind = what.split("_")[-1]
            if what == "output" and self.given_range is not None:
                self.step_ranges[what] = self.given_range
            else:
                self.step_ranges[what] = self.inner_range(what, fixed.get(functions.get(kind)))

    def call(self, sequences, initial_state=None, mask=None, training=False):
        outputs, states = self.run(sequences, training)
        result = ops.stack(outputs, axis=1) if self.return_sequences else outputs[-1]
        return (result, *states) if self.return_state else result

    def run(self, sequences: Any, training: Any) -> tuple[list[Any], list[Any]]:
        """What each step gives, in the order in which they are computed, and the states after the last."""
        kernel, recurrent = self.rounded_kernel(self.cell.kernel), self.rounded_kernel(self.cell.recurrent_kernel)
        order = range(sequences.shape[1])
        states: Any = None
        outputs = []
        for at in reversed(order) if self.go_backwards else order:
            inputs = sequences[:, at]
            if training and self.cell.dropout:
                inputs = self._drop(inputs)
            states = self._step(inputs, states, kernel, recurrent, training)
            outputs.append(states[0])
        return outputs, states

    def _round(self, what: str, values: Any, training: Any) -> Any:
        return self.step_ranges[what](values, training=training)

    def _sums(self, inputs: Any, states: Any, kernel: Any, recurrent: Any, training: Any) -> Any:
        """What both kernels and the bias make of the inputs and the state, rounded; the first step has no state."""
        sums = ops.matmul(inputs, kernel)
        if self.cell.use_bias:
            sums = sums + self.cell.bias
        if states is not None:
            sums = self._round("input", sums, training)
            sums = sums + self._round("state", ops.matmul(states[0], recurrent), training)
        return self._round("sum", sums, training)

    def _drop(self, inputs: Any) -> Any:
        return keras.random.dropout(inputs, self.cell.dropout, seed=self.cell.seed_generator)


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedLSTM(_QuantizedRecurrent, keras.layers.LSTM):
    """`keras.layers.LSTM`, unrolled and rounded."""

    base_class = keras.layers.LSTM
    step_names = (
        "input", "state", "sum", "input_gate", "forget_gate", "output_gate", "candidate",
        "kept", "added", "carry", "squashed", "output",
    )  # fmt: skip

    def _step(self, inputs, states, kernel, recurrent, training):
        sums = self._sums(inputs, states, kernel, recurrent, training)
        units = self.units
        parts = [sums[:, at * units : (at + 1) * units] for at in range(4)]
        gate, candidate = self.cell.recurrent_activation, self.cell.activation
        opened = self._round("input_gate", gate(parts[0]), training)
        forgotten = self._round("forget_gate", gate(parts[1]), training)
        added = opened * self._round("candidate", candidate(parts[2]), training)
        shown = self._round("output_gate", gate(parts[3]), training)
        if states is None:
            carry = self._round("carry", added, training)
        else:
            kept = self._round("kept", forgotten * states[1], training)
            carry = self._round("carry", kept + self._round("added", added, training), training)
        output = shown * self._round("squashed", candidate(carry), training)
        return [self._round("output", output, training), carry]


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedGRU(_QuantizedRecurrent, keras.layers.GRU):
    """`keras.layers.GRU`, unrolled and rounded."""

    base_class = keras.layers.GRU
    step_names = (
        "input", "state", "sum", "update_gate", "reset_gate", "reset", "candidate_sum", "candidate",
        "kept", "share", "added", "output",
    )  # fmt: skip

    def _step(self, inputs, states, kernel, recurrent, training):
        cell, units = self.cell, self.units
        input_bias, recurrent_bias = self._biases()
        sums = self._round("input", ops.matmul(inputs, kernel) + input_bias, training)
        # The first step starts from a state of zeros, of which only the biases are left.
        products = recurrent_bias
        if states is not None:
            products = self._round("state", ops.matmul(states[0], recurrent) + recurrent_bias, training)
        gates = self._round("sum", sums[..., : 2 * units] + products[..., : 2 * units], training)
        update = self._round("update_gate", cell.recurrent_activation(gates[..., :units]), training)
        reset = self._round("reset_gate", cell.recurrent_activation(gates[..., units:]), training)
        inner = self._round("reset", reset * products[..., 2 * units :], training)
        total = self._round("candidate_sum", sums[..., 2 * units :] + inner, training)
        candidate = self._round("candidate", cell.activation(total), training)
        output = self._round("share", 1.0 - update, training) * candidate
        if states is not None:
            kept = self._round("kept", update * states[0], training)
            output = kept + self._round("added", output, training)
        return [self._round("output", output, training)]

    def _biases(self) -> tuple[Any, Any]:
        bias = self.cell.bias
        if bias is None:
            nothing = ops.zeros((3 * self.units,))
            return nothing, nothing
        return bias[0], bias[1]


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedSimpleRNN(_QuantizedRecurrent, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN`, unrolled and rounded."""

    base_class = keras.layers.SimpleRNN
    step_names = ("input", "state", "sum", "squashed")

    def _step(self, inputs, states, kernel, recurrent, training):
        sums = self._sums(inputs, states, kernel, recurrent, training)
        return [self._round("squashed", self.cell.activation(sums), training)]
