"""Bidirectional recurrent layers, both directions unrolled and rounded, and their results merged.

Invariant: that of `rounding.py`. Left out: what `quantized_recurrent.py` leaves out.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfcompress.layers.quantized_recurrent import QuantizedGRU, QuantizedLSTM, QuantizedSimpleRNN
from tfcompress.layers.rounding import InnerRanges, RoundedKernel

_TWINS: dict[type[keras.layers.Layer], type[Any]] = {
    twin.base_class: twin for twin in (QuantizedLSTM, QuantizedGRU, QuantizedSimpleRNN)
}


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedBidirectional(InnerRanges, RoundedKernel, keras.layers.Bidirectional):
    """`keras.layers.Bidirectional` around LSTM, GRU or SimpleRNN; the layers within are rounded twins.

    Args:
        layer: The layer that goes forward, plain or rounded.
        backward_layer: The other one, likewise; by default a copy that goes backward.
    """

    base_class = keras.layers.Bidirectional
    rounding_keys = (*RoundedKernel.rounding_keys, *InnerRanges.rounding_keys)
    # They are made by the cells of the layers inside of this one.
    kernel_names = ()

    def __init__(
        self,
        layer: Any,
        *args: Any,
        backward_layer: Any = None,
        weight_bits: int = 8,
        activation_bits: int = 8,
        ranges: str = "learned",
        momentum: float = 0.99,
        **kwargs: Any,
    ):
        settings: dict[str, Any] = {
            "weight_bits": weight_bits,
            "activation_bits": activation_bits,
            "ranges": ranges,
            "momentum": momentum,
        }
        backward = None if backward_layer is None else _twin(backward_layer, settings)
        super().__init__(_twin(layer, settings), *args, backward_layer=backward, **settings, **kwargs)

    def build(self, sequences_shape, initial_state_shape=None):
        forward, backward = self.forward_layer, self.backward_layer
        forward.build(sequences_shape)
        if self._has_one_range:
            # One scale for both, so that nothing is rounded to put them side by side.
            backward.given_range = forward.step_ranges["output"]
        backward.build(sequences_shape)
        self.sum_range = self.inner_range("sum") if self.merge_mode == "ave" else None
        is_merged = self.merge_mode is not None and not self._has_one_range
        self.merged_range = self.inner_range("merged") if is_merged else None

    @property
    def _has_one_range(self) -> bool:
        """Whether both directions put their results side by side with ranges that can be one."""
        names = (self.forward_layer.step_names, self.backward_layer.step_names)
        return self.merge_mode == "concat" and all("output" in own for own in names)

    def call(self, sequences, initial_state=None, mask=None, training=None):
        forward, forward_states = self.forward_layer.run(sequences, training)
        backward, backward_states = self.backward_layer.run(sequences, training)
        if self.return_sequences:
            # In the order of the steps, which costs the file no operation here.
            results = [ops.stack(forward, axis=1), ops.stack(backward[::-1], axis=1)]
        else:
            results = [forward[-1], backward[-1]]
        merged = results if self.merge_mode is None else [self._merged(results, training)]
        if self.return_state:
            return (*merged, *forward_states, *backward_states)
        return tuple(merged) if self.merge_mode is None else merged[0]

    def _merged(self, results: list[Any], training: Any) -> Any:
        first, second = results
        if self.merge_mode == "concat":
            merged = ops.concatenate(results, axis=-1)
        elif self.merge_mode == "mul":
            merged = first * second
        else:
            merged = first + second
            if self.sum_range is not None:
                merged = self.sum_range(merged, training=training) * 0.5
        return merged if self.merged_range is None else self.merged_range(merged, training=training)

    def get_config(self) -> dict:
        # As the plain layer says it; how both directions are rounded is said once, for this layer.
        own = {"layer": _plain(self.forward_layer), "backward_layer": _plain(self.backward_layer)}
        return {**super().get_config(), **own}


def _twin(layer: Any, settings: dict[str, Any]) -> Any:
    kind = _TWINS.get(type(layer))
    return layer if kind is None else kind.from_config({**layer.get_config(), **settings})


def _plain(layer: Any) -> dict[str, Any]:
    """The serialized plain layer of a twin."""
    config = {key: value for key, value in layer.get_config().items() if key not in layer.rounding_keys}
    return keras.saving.serialize_keras_object(layer.base_class.from_config(config))
