"""A Keras model as the converter wants it: one endpoint with named inputs and outputs, batch 1, computing in float32.

Invariant: the model is as it was when a function here returns. Left out: subclassed models, whose inputs have no names
or shapes; wrap them as `keras.Model(inputs, model(inputs))`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.errors import ModelError
from tfcompress.export.zero_factors import zero_factors_as_zero_kernels
from tfcompress.graph.precision import computing_in_float32
from tfcompress.graph.recurrent_states import states_of

SIGNATURE = "serving_default"
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Args:
        name: Its name in Keras, which is also its name in the file's signature.
        shape: Shape of one sample, without the batch.
        dtype: Its type in Keras, such as "float32".
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


class Endpoint:
    """A functional or Sequential model with flat, named inputs and outputs.

    Args:
        model: A built Keras model.

    Raises:
        ModelError: If the model has no graph, an input of unknown size, or states that it carries between calls.

    Example:
        >>> model = keras.Sequential([keras.Input((4,), name="features"), keras.layers.Dense(2, name="scores")])
        >>> endpoint = Endpoint(model)
        >>> endpoint.inputs[0].name, endpoint.output_names
        ('features', ('scores',))
    """

    def __init__(self, model: keras.Model):
        # A Sequential or functional model has symbolic inputs once it is built; a subclassed one never.
        inputs = getattr(model, "inputs", None)
        outputs = getattr(model, "outputs", None)
        if not inputs or not outputs:
            raise ModelError(
                "Only functional and built Sequential models can be exported, since inputs need names and shapes. Let "
                "`tfcompress.load(model)` trace it, or wrap it as `keras.Model(inputs, model(inputs))`. Received: "
                f"{type(model).__name__} {model.name!r}."
            )
        for layer in model._flatten_layers():
            if states_of(layer):
                raise ModelError(
                    f"Layer {layer.name!r} of model {model.name!r} is stateful, where a file computes every sample by "
                    "itself. Rebuild the model with `stateful=False` and set its weights; for a stream, give the "
                    "states as inputs (`initial_state`) and take them as outputs (`return_state=True`)."
                )
        self.model = model
        self.inputs = tuple(_input_spec(tensor, model) for tensor in keras.tree.flatten(inputs))
        self.output_names = _unique([tensor._keras_history.operation.name for tensor in keras.tree.flatten(outputs)])
        # The model's own structure: a tensor, a list or a dict.
        self._structure = inputs[0] if isinstance(model, keras.Sequential) else model.input

    @property
    def is_fake_quantized(self) -> bool:
        """Whether any layer, however deeply nested, holds the ranges of quantization-aware training."""
        return any(getattr(layer, "is_fake_quantized", False) for layer in self.model._flatten_layers())

    @property
    def activation_bits(self) -> int | None:
        """16 where fake quantization gives any numbers between operations more than 8 bits, else 8; None without it."""
        if not self.is_fake_quantized:
            return None
        # A layer of another package that says nothing has the 8 bits of every integer file.
        rounding = (layer for layer in self.model._flatten_layers() if getattr(layer, "is_fake_quantized", False))
        return 16 if any(getattr(layer, "bits", 8) > 8 for layer in rounding) else 8

    def __call__(self, *flat: tf.Tensor, model: keras.Model | None = None) -> dict[str, tf.Tensor]:
        """Outputs by name, in inference mode, from the inputs in their flat order."""
        outputs = (model or self.model)(keras.tree.pack_sequence_as(self._structure, list(flat)), training=False)
        return dict(zip(self.output_names, keras.tree.flatten(outputs), strict=True))

    def predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs `(samples, ...)` by name from inputs `(samples, ...)` by name, computed in float32."""
        arrays = [inputs[spec.name] for spec in self.inputs]
        call = tf.function(self.__call__, reduce_retracing=True)
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.output_names}
        with model_in_float32(self.model):
            for start in range(0, len(arrays[0]), _BATCH):
                outputs = call(*(tf.convert_to_tensor(array[start : start + _BATCH]) for array in arrays))
                for name, output in outputs.items():
                    parts[name].append(output.numpy())
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    def write_legacy_saved_model(self, folder: str | os.PathLike, twin: Any) -> None:
        """Writes the same endpoint, computed by the tf_keras twin of the model, whose inputs are in the same order."""
        signature = [tf.TensorSpec((1, *spec.shape), spec.dtype, spec.name) for spec in self.inputs]

        @tf.function(input_signature=signature, autograph=False)
        def serve(*flat: tf.Tensor) -> dict[str, tf.Tensor]:
            outputs = tf.nest.flatten(twin(tf.nest.pack_sequence_as(twin.input, list(flat)), training=False))
            return dict(zip(self.output_names, outputs, strict=True))

        module = tf.Module()
        # Its variables alone: a whole tf_keras model brings the functions of all its layers, which takes a minute.
        module.weights_of_twin, module.serve = twin.variables, serve
        tf.saved_model.save(module, os.fspath(folder), signatures={SIGNATURE: serve.get_concrete_function()})

    def write_saved_model(self, folder: str | os.PathLike, model: keras.Model | None = None) -> None:
        """Writes a SavedModel with the endpoint `SIGNATURE` of batch 1 at `folder`.

        Args:
            folder: Where to write it.
            model: A model of the same inputs and outputs that computes it in the place of the endpoint's own.
        """
        model = model or self.model
        # A batch of unknown size would leave SHAPE and PACK operations in the file.
        signature = [keras.InputSpec(shape=(1, *spec.shape), dtype=spec.dtype, name=spec.name) for spec in self.inputs]
        with model_in_float32(model), zero_factors_as_zero_kernels(model):
            archive = keras.export.ExportArchive()
            archive.track(model)
            archive.add_endpoint(SIGNATURE, lambda *flat: self(*flat, model=model), input_signature=signature)
            archive.write_out(os.fspath(folder), verbose=False)


@contextlib.contextmanager
def model_in_float32(model: keras.Model) -> Iterator[None]:
    """Lets a model of mixed precision compute in float32 for a while; its variables are float32 anyway.

    Raises:
        ModelError: If variables are of another type, so that the computation would not be the model's own.
    """
    layers = [layer for layer in model._flatten_layers() if layer.dtype_policy.compute_dtype != "float32"]
    with computing_in_float32(layers):
        yield


def _input_spec(tensor: keras.KerasTensor, model: keras.Model) -> InputSpec:
    shape = tensor.shape[1:]
    if None in shape:
        raise ModelError(
            f"Input {tensor.name!r} of model {model.name!r} has the shape {tensor.shape}: all sizes but the batch must "
            "be known for a file that runs without dynamic memory. Rebuild the model with a fixed `keras.Input` shape."
        )
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    # A mixed precision policy gives inputs of half precision; the endpoint computes in float32.
    is_half = dtype in ("float16", "bfloat16")
    return InputSpec(tensor.name, tuple(int(size) for size in shape), "float32" if is_half else dtype)


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """Names with a number after those that came before: a layer with two outputs gives one name twice."""
    seen: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in seen:
            candidate, number = f"{name}_{number}", number + 1
        seen.append(candidate)
    return tuple(seen)
