"""Recurrent layers in a form that the TFLite converter (TensorFlow 2.21) can quantize.

It crashes on the loop that Keras 3 makes of a recurrent layer. Two forms work. The LSTM of tf_keras becomes one fused
integer operation, so a model with LSTM layers crosses the bridge first. Any other recurrent layer is unrolled: its
steps are written out one after the other, and the file grows with them. Measured on an LSTM of 8 units over 10 steps:
4,528 B and 36 dB fused, 42,896 B and 30 dB unrolled; a GRU 41,840 B and 34 dB unrolled.

Modes of floats keep the loop, which the runtime has as the operation WHILE.

Invariant: the model is not changed, what is converted computes the same, and what was done is said in words. Left out:
layers that hold state between calls.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tfcompress.bridge.to_tf_keras import to_tf_keras
from tfcompress.errors import ModelError
from tfcompress.export.modes import MODES
from tfcompress.graph.copy_layer import LayerCopies, copy_layer
from tfcompress.graph.flatten import unique_names
from tfcompress.graph.trace import Trace, replay, trace

# Each step of an unrolled layer adds about ten operations to the file.
MOST_STEPS = 256
_FUSED = keras.layers.LSTM


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What is converted in the place of a model.

    Args:
        model: A Keras 3 model; the one that was given where nothing had to be done.
        twin: A tf_keras model of the same function that is converted in its place, or None.
        notes: What was done to which layer, in words.
    """

    model: keras.Model
    twin: Any = None
    notes: tuple[str, ...] = ()


def prepare_recurrent(model: keras.Model, mode: str) -> Prepared:
    """A model whose recurrent layers can be converted in a mode.

    Args:
        model: A functional or Sequential model without fake quantization.
        mode: A key of `MODES`.

    Raises:
        ModelError: If a layer to be unrolled has more than 256 steps, or the bridge cannot carry the model over.
    """
    if not MODES[mode].is_integer:
        return Prepared(model)
    rolled = [layer for layer in model._flatten_layers() if _is_loop(layer)]
    if not rolled:
        return Prepared(model)
    traced = trace(model, allow_equal_names=True)
    calls = [call for call in traced.calls if _loops_in(call.operation)]
    masked = _is_masked(traced)
    # The converter has no fused LSTM of 16-bit activations, and a mask makes a loop of it again.
    fused = MODES[mode].activations == "int8" and not masked
    notes: dict[str, str] = {}
    unrolled: set[int] = set()
    for call in calls:
        layer = call.operation
        if fused and all(_can_be_fused(inner) for inner in _loops_in(layer)) and len(call.sources) == 1:
            notes[layer.name] = f"layer '{layer.name}' is a fused UNIDIRECTIONAL_SEQUENCE_LSTM, by way of tf_keras"
            continue
        steps = _steps(model, layer)
        unrolled.add(id(layer))
        notes[layer.name] = f"layer '{layer.name}' is unrolled over its {steps} steps, with which the file grows"
    prepared = _unroll(traced, unrolled) if unrolled else model
    # The gate compares the file with the model itself, so the bridge need not.
    twin = to_tf_keras(prepared, check=False) if len(unrolled) < len({id(call.operation) for call in calls}) else None
    return Prepared(prepared, twin, tuple(notes.values()))


def _is_loop(layer: Any) -> bool:
    return isinstance(layer, keras.layers.RNN) and not layer.unroll


def _loops_in(layer: Any) -> list[Any]:
    """The layer itself, or the recurrent layers in a wrapper such as Bidirectional."""
    if not isinstance(layer, keras.layers.Layer):
        return []
    return [inner for inner in layer._flatten_layers() if _is_loop(inner)]


def _can_be_fused(layer: Any) -> bool:
    return (
        type(layer) is _FUSED
        and layer.activation is keras.activations.tanh
        and layer.recurrent_activation is keras.activations.sigmoid
        and layer.use_bias
        and not layer.recurrent_dropout
        and not layer.stateful
        and not layer.return_state
    )


def _is_masked(traced: Trace) -> bool:
    return any(
        isinstance(call.operation, keras.layers.Masking) or getattr(call.operation, "mask_zero", False)
        for call in traced.calls
    )


def _steps(model: keras.Model, layer: Any) -> int:
    """Length of the sequences that a layer takes, at the first place where it is used."""
    # Not `layer.input`, which a layer that is used twice does not have.
    steps = layer._inbound_nodes[0].input_tensors[0].shape[1]
    if steps is None or steps > MOST_STEPS:
        raise ModelError(
            f"Layer {layer.name!r} ({type(layer).__name__}) of model {model.name!r} must be unrolled to be quantized, "
            f"over at most {MOST_STEPS} steps. Use an LSTM, which has an integer operation of its own, shorter "
            f"sequences, or mode='float32' or 'dynamic'. Received: {steps} steps."
        )
    return int(steps)


def _unroll(traced: Trace, unrolled: set[int]) -> keras.Model:
    """A copy of the model, nested models opened, whose layers `unrolled` (by identity) have no loop."""
    names = unique_names(traced)

    def copy(layer: Any) -> Any:
        if id(layer) not in unrolled:
            return copy_layer(layer, name=names[id(layer)])
        # Not `copy_layer`: what changes may lie deep in the configuration of a wrapper.
        return type(layer).from_config({**_unrolled_config(layer.get_config()), "name": names[id(layer)]})

    return replay(traced, LayerCopies(copy))


def _unrolled_config(config: Any) -> Any:
    """A layer's configuration with `unroll` wherever a recurrent layer, wrapped or not, has the key."""
    if isinstance(config, dict):
        return {key: True if key == "unroll" else _unrolled_config(value) for key, value in config.items()}
    return config
