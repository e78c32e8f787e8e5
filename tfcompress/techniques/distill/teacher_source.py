"""What can teach, and what is known about each kind before it is called.

A Keras 3 or tf_keras model, a `.tflite` file, a SavedModel, or a callable; a path is read as whatever lies there.

Invariant: a source is called for inference, and never changed. Left out: what is done with inputs and outputs
(`teacher.py`), and the order of several inputs, which a Keras model knows itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfcompress.bridge.load import is_tf_keras, load
from tfcompress.bridge.recognize import Kind, recognize
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.outputs import gives_sigmoids, known_probabilities, output_step
from tfcompress.graph.trace import has_graph
from tfcompress.measure.tflite_runner import TFLiteRunner
from tfcompress.techniques.distill.saved_model import SavedModel, is_saved_model

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Source:
    """What is known about a source.

    Args:
        name: What errors call it.
        outputs: Gives the outputs for a batch.
        inputs: Shapes of the inputs by name, without the batch, as far as they are known.
        output_shape: Shape of the one output, without the batch; None if it is not known.
        probabilities: Whether it gives probabilities; None if only outputs tell.
        sigmoids: Whether it gives sigmoids; None if only outputs tell.
        step: Distance of two neighbouring output values, 0 for floats.
        compiles: Whether it is made of TensorFlow operations that XLA can compile.
        adjusts_rank: Whether a last axis of 1 may be there or not.
        content: Gives what it is known by: its weights or its file; None where there is no such thing.
    """

    name: str
    outputs: Callable[[Any], Any]
    inputs: Mapping[str, Shape] = dataclasses.field(default_factory=dict)
    output_shape: Shape | None = None
    probabilities: bool | None = None
    sigmoids: bool | None = None
    step: float = 0.0
    compiles: bool = True
    adjusts_rank: bool = False
    content: Callable[[], tuple[bytes, ...]] | None = None


def read(path: Path) -> Any:
    """What teaches from a path: a Keras 3 model, a `TFLiteRunner` or a `SavedModel`.

    Raises:
        ModelError: If there is nothing that can.
    """
    if path.name == "saved_model.pb":
        path = path.parent
    if is_saved_model(path):
        if (path / "keras_metadata.pb").is_file():
            try:
                return load(path)
            except ModelError as error:
                # Only to teach, it needs no layers.
                logging.info("The graph of %s teaches, since its layers cannot be read: %s", path, error)
        return SavedModel(path)
    # The prefix of a checkpoint is no file.
    if not path.exists() and not path.with_name(path.name + ".index").exists():
        raise ModelError(f"No teacher file at {str(path)!r}.")
    if recognize(path).kind is Kind.TFLITE:
        return TFLiteRunner(path, num_threads=2)
    return load(path)


def describe(source: Any) -> Source:
    """What is known about a Keras or tf_keras model, a `TFLiteRunner`, a `SavedModel` or a callable.

    Raises:
        InvalidArgumentError: If the source is nothing of these.
        ModelError: If a file has several inputs or outputs.

    Example:
        >>> describe(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="large")).output_shape
        (3,)
    """
    if isinstance(source, keras.Model):
        return _keras(source)
    if is_tf_keras(source):
        return _tf_keras(source)
    if isinstance(source, TFLiteRunner):
        return _tflite(source)
    if isinstance(source, SavedModel):
        return Source(
            name=f"the SavedModel {source.path.name!r}",
            outputs=source,
            inputs={name: tuple(spec.shape[1:]) for name, spec in source.inputs.items() if spec.shape.rank},
            output_shape=tuple(source.output.shape[1:]) if source.output.shape.rank else None,
            content=lambda: (source.key().encode(),),
        )
    if callable(source):
        return Source(name=f"the callable {getattr(source, '__name__', type(source).__name__)!r}", outputs=source)
    raise InvalidArgumentError("teacher", "a Keras model, a model file, or a callable", source)


def _keras(model: keras.Model) -> Source:
    _check_stateless(model)
    known = has_graph(model)
    return Source(
        name=f"the Keras model {model.name!r}",
        outputs=lambda inputs: model(inputs, training=False),
        inputs={tensor.name: tuple(tensor.shape[1:]) for tensor in model.inputs} if known else {},
        output_shape=tuple(model.outputs[0].shape[1:]) if known and len(model.outputs) == 1 else None,
        probabilities=known_probabilities(model) if known and len(model.outputs) == 1 else None,
        sigmoids=gives_sigmoids(model) if known and len(model.outputs) == 1 else None,
        step=output_step(model) if known else 0.0,
        # As Keras decides for a model of its own: tables, for one, are not for XLA.
        compiles=all(layer.supports_jit for layer in model._flatten_layers()),
        adjusts_rank=True,
        content=lambda: tuple(weight.tobytes() for weight in model.get_weights()),
    )


def _tf_keras(model: Any) -> Source:
    _check_stateless(model)
    inputs, outputs = (tf.nest.flatten(getattr(model, side, None) or []) for side in ("inputs", "outputs"))
    return Source(
        name=f"the tf_keras model {model.name!r}",
        outputs=lambda inputs: model(inputs, training=False),
        inputs={tensor.name: tuple(tensor.shape[1:]) for tensor in inputs},
        output_shape=tuple(outputs[0].shape[1:]) if len(outputs) == 1 else None,
        adjusts_rank=True,
        content=lambda: tuple(weight.tobytes() for weight in model.get_weights()),
    )


def _check_stateless(model: Any) -> None:
    """Raises a `ModelError` if what a model, of either Keras, says about a batch depends on the batches before."""
    names = [
        layer.name
        for layer in model._flatten_layers()
        if getattr(layer, "stateful", False) and hasattr(layer, "states")
    ]
    if names:
        raise ModelError(
            f"A teacher must say the same about a sample whenever it is asked. Received: the model {model.name!r}, "
            f"whose recurrent layers {names} carry their states from batch to batch. Build it with stateful=False, "
            "and give it the weights."
        )


def _tflite(runner: TFLiteRunner) -> Source:
    sides = {"inputs": runner.inputs, "outputs": runner.outputs}
    if any(len(side) != 1 for side in sides.values()):
        named = {name: [details["name"] for details in side] for name, side in sides.items()}
        raise ModelError(f"A .tflite teacher must have one input and one output. Received: {named}.")
    output_shape = tuple(int(size) for size in runner.output_details["shape"][1:])

    def predict(inputs: Any) -> Any:
        # A replica's share of a small last batch may be none.
        return runner.predict(inputs) if len(inputs) else np.zeros((0, *output_shape), "float32")

    def outputs(inputs: Any) -> Any:
        found = tf.numpy_function(predict, [inputs], tf.float32, stateful=False)
        # Between, there may be positions, of which the file shows how many a sample without content has.
        found.set_shape((inputs.shape[0], *(None for _ in output_shape[:-1]), output_shape[-1]))
        return found

    return Source(
        name="the .tflite file",
        outputs=outputs,
        inputs={runner.input_details["name"]: tuple(int(size) for size in runner.input_details["shape"][1:])},
        output_shape=output_shape,
        step=float(runner.output_details["quantization"][0]),
        compiles=False,
        content=lambda: (runner.content,),
    )
