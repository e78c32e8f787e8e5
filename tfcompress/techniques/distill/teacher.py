"""Teachers: anything that turns a batch into class logits, never trained and never changed.

Invariant: `Teacher.logits` gives float32 logits whatever the source gives; probabilities are turned into logits once,
by their logarithm, so that no softmax is ever taken of a softmax. Left out: several teachers, and stored outputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.bridge.load import load
from tfcompress.data.taught import TaughtInputs
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.files import content_key
from tfcompress.graph.outputs import SMALLEST_PROBABILITY, are_probabilities, gives_probabilities, output_step
from tfcompress.graph.trace import has_graph
from tfcompress.measure.tflite_runner import TFLiteRunner


def probabilities_to_logits(probabilities: Any, step: float = 0.0) -> Any:
    """Logits whose softmax is `probabilities`.

    Args:
        probabilities: Shape `(batch, classes)`.
        step: Distance of two neighbouring values, 0 for floats; a rounded zero stands for half a step.
    """
    return tf.math.log(tf.maximum(tf.cast(probabilities, tf.float32), max(step / 2, SMALLEST_PROBABILITY)))


class Teacher:
    """A source of logits.

    Args:
        source: A Keras model, the path of a `.tflite` file or of a Keras model that `load` reads, or a callable from a
            batch of inputs to outputs of shape `(batch, classes)`.
        input_range: The range of pixel values that the source wants, if it is not that of the data.
        data_range: The range of pixel values in the data; needed with `input_range`.

    Raises:
        InvalidArgumentError: If the source is nothing of these.
        ModelError: If a file cannot be read.

    Example:
        >>> teacher = Teacher(lambda inputs: inputs * 2.0)
        >>> teacher.logits(tf.constant([[1.0, -1.0]])).numpy().tolist()
        [[2.0, -2.0]]
    """

    def __init__(
        self,
        source: Any,
        *,
        input_range: tuple[float, float] | None = None,
        data_range: tuple[float, float] | None = None,
    ):
        if isinstance(source, str | os.PathLike):
            source = _read(Path(source))
        self.source = source
        self._scale, self._offset = _affine(input_range, data_range)
        self._outputs: Callable[[Any], Any]
        # The answer is known from a graph, or found out from the first batch.
        self._gives_probabilities: bool | None = None
        self._output_step = 0.0
        if isinstance(source, keras.Model):
            self._outputs = lambda inputs: source(inputs, training=False)
            if getattr(source, "inputs", None):
                self._gives_probabilities = gives_probabilities(source)
                self._output_step = output_step(source)
        elif isinstance(source, TFLiteRunner):
            self._outputs = self._run_file
            self._output_step = float(source.output_details["quantization"][0])
        elif callable(source):
            self._outputs = source
        else:
            raise InvalidArgumentError("teacher", "a Keras model, a model file, or a callable", source)

    def with_source(self, model: keras.Model) -> Teacher:
        """The same teacher over a copy of its model, such as one in the scope of a distribution strategy."""
        teacher = Teacher(model)
        teacher._scale, teacher._offset = self._scale, self._offset
        return teacher

    @property
    def num_classes(self) -> int | None:
        """Size of the last output axis, where it is known without a call."""
        if isinstance(self.source, keras.Model):
            return keras.tree.flatten(self.source.output_shape)[-1] if has_graph(self.source) else None
        if isinstance(self.source, TFLiteRunner):
            return int(self.source.output_details["shape"][-1])
        return None

    @property
    def compiles(self) -> bool:
        """Whether the teacher is made of TensorFlow operations that XLA can compile."""
        return not isinstance(self.source, TFLiteRunner)

    def key(self) -> str | None:
        """What its outputs are known by: its weights or its file, and its range; None of a callable."""
        if isinstance(self.source, keras.Model):
            weights = (weight.tobytes() for weight in self.source.get_weights())
            return content_key(self._scale, self._offset, *weights)
        if isinstance(self.source, TFLiteRunner):
            return content_key(self._scale, self._offset, self.source.content)
        return None

    def find_out_outputs(self, inputs: Any) -> None:
        """Looks at the outputs for some inputs, to know whether they are probabilities.

        Raises:
            InvalidArgumentError: If outputs of another teacher come along.
            ModelError: If an output is not finite.
        """
        if isinstance(inputs, TaughtInputs):
            raise InvalidArgumentError(
                "x", "batches without stored outputs, or the `StoredOutputs` they come from as teacher", "TaughtInputs"
            )
        outputs = keras.ops.convert_to_numpy(self._outputs(self._prepare(inputs)))
        if not np.isfinite(outputs).all():
            raise ModelError("The teacher must give finite outputs. Received: NaN or infinity on the first batch.")
        if self._gives_probabilities is None:
            self._gives_probabilities = are_probabilities(outputs, self._output_step)

    def logits(self, inputs: Any) -> Any:
        """Float32 logits of shape `(batch, classes)`, with no gradient."""
        if self._gives_probabilities is None:
            if tf.inside_function():
                raise ModelError("Call `Teacher.find_out_outputs` with a batch before compiling this teacher.")
            self.find_out_outputs(inputs)
        outputs = tf.stop_gradient(self._outputs(self._prepare(inputs)))
        if self._gives_probabilities:
            return probabilities_to_logits(outputs, self._output_step)
        return tf.cast(outputs, tf.float32)

    def _prepare(self, inputs: Any) -> Any:
        if (self._scale, self._offset) == (1.0, 0.0):
            return inputs
        return tf.cast(inputs, tf.float32) * self._scale + self._offset

    def _run_file(self, inputs: Any) -> Any:
        outputs = tf.numpy_function(self.source.predict, [inputs], tf.float32, stateful=False)
        between = [None] * (len(self.source.output_details["shape"]) - 2)
        outputs.set_shape((inputs.shape[0], *between, self.num_classes))
        return outputs


def _affine(wanted: tuple[float, float] | None, given: tuple[float, float] | None) -> tuple[float, float]:
    """Scale and offset from the data's range to the teacher's."""
    if wanted is None or wanted == given:
        return 1.0, 0.0
    if given is None:
        raise InvalidArgumentError("data_range", "the range of the data when `input_range` is given", given)
    scale = (wanted[1] - wanted[0]) / (given[1] - given[0])
    return scale, wanted[0] - given[0] * scale


def _read(path: Path) -> Any:
    if not path.exists():
        raise ModelError(f"No teacher file at {str(path)!r}.")
    if path.suffix == ".tflite":
        return TFLiteRunner(path, num_threads=2)
    return load(path)
