"""Teachers: anything that turns a batch into class logits, never trained and never changed.

Invariant: `Teacher.logits` gives float32 logits whatever the source gives; probabilities are turned into logits once,
by their logarithm, so that no softmax is ever taken of a softmax. Left out: what can be a source and how it is called
(`teacher_source.py`), several teachers (`several_teachers.py`), and stored outputs (`stored_outputs.py`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from tfcompress.data.taught import TaughtInputs
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.files import content_key
from tfcompress.graph.outputs import SMALLEST_PROBABILITY, are_probabilities, look_like_sigmoids
from tfcompress.techniques.distill.teacher_inputs import check_fits, to_teacher
from tfcompress.techniques.distill.teacher_source import Shape, describe, read
from tfcompress.training.copying import copy_model

OwnKind = TypeVar("OwnKind", bound="Teacher")


def probabilities_to_logits(probabilities: Any, step: float = 0.0) -> Any:
    """Logits whose softmax is `probabilities`.

    Args:
        probabilities: Shape `(batch, classes)`.
        step: Distance of two neighbouring values, 0 for floats; a rounded zero stands for half a step.
    """
    if probabilities.dtype == tf.float16:
        # What float16 cannot show is no number of float32, whose logarithm is five times as low.
        step = max(step, float(np.finfo("float16").smallest_subnormal))
    return tf.math.log(tf.maximum(tf.cast(probabilities, tf.float32), max(step / 2, SMALLEST_PROBABILITY)))


class Teacher:
    """A source of logits.

    Args:
        source: A Keras 3 or tf_keras model; the path of a `.tflite` file, of the folder of a SavedModel, or of a Keras
            model that `load` reads; or a callable from a batch of inputs to outputs of shape `(batch, classes)`.
        input_range: The range of pixel values that the source wants, if it is not that of the data.
        data_range: The range of pixel values in the data; needed with `input_range`.
        resize: Height and width of the images that the source wants, if they are not those of the data: bilinear, and
            smoothed where images shrink. Images are resized first and mapped to `input_range` then; that is the same as
            the other way round, since each new pixel is a mean of old ones.
        class_map: For each of the student's classes the index of the source's output, where their order is another, or
            the source knows more classes. Of probabilities, the chosen ones are divided by their sum by the softmax
            that each loss takes.

    Raises:
        InvalidArgumentError: If the source is nothing of these, or another argument is out of its range.
        ModelError: If a file cannot be read.

    Example:
        >>> teacher = Teacher(lambda inputs: inputs * 2.0)
        >>> teacher.logits(tf.constant([[1.0, -1.0]])).numpy().tolist()
        [[2.0, -2.0]]
        >>> Teacher(lambda inputs: inputs, class_map=[2, 0]).logits(tf.constant([[5.0, 6.0, 7.0]])).numpy().tolist()
        [[7.0, 5.0]]
    """

    # Whether its logits depend on the labels.
    needs_labels = False

    def __init__(
        self,
        source: Any,
        *,
        input_range: tuple[float, float] | None = None,
        data_range: tuple[float, float] | None = None,
        resize: tuple[int, int] | None = None,
        class_map: Sequence[int] | None = None,
    ):
        if isinstance(source, str | os.PathLike):
            source = read(Path(source))
        self._to_teacher = to_teacher(input_range, data_range, resize)
        self._class_map = None if class_map is None else _checked_class_map(class_map)
        self._take(source)

    def _take(self, source: Any) -> None:
        self.source = source
        self._about = describe(source)
        # These are known from a graph, or found out from the first batch.
        self._gives_probabilities = self._about.probabilities
        self.gives_sigmoids = self._about.sigmoids
        self._source_shape = self._about.output_shape
        self._check_class_map()

    def with_source(self: OwnKind, model: keras.Model) -> OwnKind:
        """The same teacher over a copy of its model, such as one in the scope of a distribution strategy."""
        teacher = copy.copy(self)
        teacher._take(model)
        return teacher

    def in_scope(self: OwnKind) -> OwnKind:
        """The teacher to use under the running distribution strategy: a Keras model is copied into its scope."""
        if not tf.distribute.has_strategy() or not isinstance(self.source, keras.Model):
            return self
        try:
            return self.with_source(copy_model(self.source, precision=None))
        except ValueError as error:
            # Of a class with a `get_config`, the copy may have no weights yet, which Keras says as a ValueError.
            # After the first paragraph comes an example of many lines.
            why = " ".join(str(error.__cause__ or error).strip().partition("\n\n")[0].split())
            raise ModelError(
                f"The teacher, {self.name}, must be copied into the scope of the distribution strategy, and Keras "
                f"cannot copy it: {why} Build it as a functional model, or pass a callable: "
                "`lambda x: model(x, training=False)`."
            ) from error

    @property
    def name(self) -> str:
        """What errors call it, such as "the Keras model 'resnet'"."""
        return self._about.name

    @property
    def has_class_map(self) -> bool:
        """Whether it gives some of the source's classes, or all in another order."""
        return self._class_map is not None

    @property
    def gives_distributions(self) -> bool | None:
        """Whether its logits are logarithms of probabilities of classes; None if only its first outputs will tell."""
        return self._gives_probabilities

    @property
    def models(self) -> tuple[keras.Model, ...]:
        """The Keras 3 models that it asks."""
        return (self.source,) if isinstance(self.source, keras.Model) else ()

    @property
    def output_shape(self) -> Shape | None:
        """Shape of the logits for one sample, where it is known; after `find_out_outputs` it is."""
        if self._source_shape is None or self._class_map is None:
            return self._source_shape
        return (*self._source_shape[:-1], len(self._class_map))

    @property
    def num_classes(self) -> int | None:
        """Size of the last output axis, where it is known."""
        if self._class_map is not None:
            return len(self._class_map)
        return self._source_shape[-1] if self._source_shape else None

    @property
    def compiles(self) -> bool:
        """Whether the teacher is made of TensorFlow operations that XLA can compile."""
        return self._about.compiles

    def key(self) -> str | None:
        """What its logits are known by: weights or file, input range and size, class map; None of a callable."""
        if self._about.content is None:
            return None
        chosen = {"resize": self._to_teacher.size, "class_map": self._class_map}
        # Only what is set, so that caches of earlier versions are read.
        others = [{name: value} for name, value in chosen.items() if value is not None]
        return content_key(self._to_teacher.scale, self._to_teacher.offset, *others, *self._about.content())

    def prepare(self, inputs: Any) -> Any:
        """Inputs of the data as the source takes them: resized, and in its range."""
        return self._to_teacher(inputs)

    def as_given(self, inputs: Any) -> Any:
        """What the source gives for inputs of the data: as many tensors as it has outputs, in its own scale.

        Raises:
            ModelError: If the inputs do not fit the source.
        """
        prepared = self.prepare(inputs)
        check_fits(self._about, prepared)
        return self._about.outputs(prepared)

    def find_out_outputs(self, inputs: Any) -> None:
        """Looks at the outputs for some inputs: whether they can be used, and whether they are probabilities.

        Raises:
            InvalidArgumentError: If outputs of another teacher come along, or `resize` or `class_map` do not fit.
            ModelError: If the inputs do not fit the source, or it does not give finite outputs for each of them.
        """
        if isinstance(inputs, TaughtInputs):
            raise InvalidArgumentError(
                "x", "batches without stored outputs, or the `StoredOutputs` they come from as teacher", "TaughtInputs"
            )
        outputs = self._one_tensor(self.as_given(inputs))
        if isinstance(outputs, np.ndarray) and all(map(tf.is_tensor, keras.tree.flatten(inputs))):
            raise ModelError(
                f"The teacher, {self.name}, must give a tensor for tensors, for it becomes part of a compiled step. "
                "Received: a NumPy array. Pass a Keras model itself, not its `predict`; Python code goes into "
                "`tf.numpy_function`."
            )
        values = keras.ops.convert_to_numpy(outputs)
        samples = len(keras.tree.flatten(inputs)[0])
        if values.ndim < 2 or len(values) != samples:
            raise ModelError(
                f"The teacher, {self.name}, must give outputs of shape ({samples}, ..., classes) for {samples} "
                f"samples. Received: {values.shape}."
            )
        if not np.isfinite(values).all():
            raise ModelError(
                f"The teacher, {self.name}, must give finite outputs. Received: NaN or infinity on the first batch."
            )
        self._source_shape = values.shape[1:]
        self._check_class_map()
        if self._gives_probabilities is None:
            self._gives_probabilities = are_probabilities(values, self._about.step)
        if self.gives_sigmoids is None:
            self.gives_sigmoids = not self._gives_probabilities and look_like_sigmoids(values)

    def logits(self, inputs: Any, labels: Any = None) -> Any:
        """Float32 logits of shape `(batch, classes)`, with no gradient; labels are not looked at."""
        if self._gives_probabilities is None:
            if tf.inside_function():
                raise ModelError("Call `Teacher.find_out_outputs` with a batch before compiling this teacher.")
            self.find_out_outputs(inputs)
        outputs = tf.stop_gradient(self._one_tensor(self.as_given(inputs)))
        if outputs.shape.rank is None and self._source_shape:
            # Python code in a callable hides the shape. Between, there may be positions, which differ between batches.
            outputs.set_shape((None, *(None for _ in self._source_shape[:-1]), self._source_shape[-1]))
        if self._gives_probabilities:
            outputs = probabilities_to_logits(outputs, self._about.step)
        logits = tf.cast(outputs, tf.float32)
        return logits if self._class_map is None else tf.gather(logits, self._class_map, axis=-1)

    def _one_tensor(self, outputs: Any) -> Any:
        found = keras.tree.flatten(outputs)
        if len(found) != 1:
            raise ModelError(
                f"The teacher, {self.name}, must give one tensor. Received: {len(found)}. Pass a callable that gives "
                "one of them."
            )
        return found[0]

    def _check_class_map(self) -> None:
        if self._class_map is None or not self._source_shape:
            return
        classes = self._source_shape[-1]
        if classes is not None and max(self._class_map) >= classes:
            raise InvalidArgumentError(
                "class_map", f"indices below {classes}, the outputs of {self.name}", max(self._class_map)
            )


def _checked_class_map(class_map: Any) -> list[int]:
    indices = np.asarray(class_map)
    if indices.ndim != 1 or not len(indices) or indices.dtype.kind not in "iu" or indices.min() < 0:
        raise InvalidArgumentError(
            "class_map", "for each class of the student the index of the teacher's output, from 0", class_map
        )
    values, counts = np.unique(indices, return_counts=True)
    if counts.max() > 1:
        raise InvalidArgumentError("class_map", "indices that are all different", f"{values[counts > 1][0]} twice")
    return [int(index) for index in indices]
