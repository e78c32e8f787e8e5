"""`synthesize`: images to distill on, made from what a teacher remembers of its own, where there are no data.

Invariant: the teacher is not changed, and the same seed gives the same images. Left out: random shifts and flips in
between, and images at which a student still differs from its teacher.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.progress import Progress

from tfcompress.errors import InvalidArgumentError, ModelError, TrainingError
from tfcompress.graph.trace import has_graph
from tfcompress.techniques.distill.features.taps import Tap, Taps, layer_paths
from tfcompress.techniques.distill.student_outputs import StudentOutputs


def synthesize(
    teacher: keras.Model,
    count: int,
    *,
    batch_size: int = 128,
    steps: int = 500,
    seed: int = 0,
    input_range: tuple[float, float] = (0.0, 1.0),
    learning_rate: float = 0.05,
    statistics_weight: float = 10.0,
    variation_weight: float = 0.01,
    l2_weight: float = 0.001,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Makes images of which a teacher is sure, and at which its layers see what they saw in training.

    Noise is moved, by Adam, until the teacher says a given class of each image, the classes being equally frequent, and
    until mean and variance of what comes to each BatchNormalization are those that it has stored. They are moved and
    measured in units in which `input_range` is -1 to 1, and kept within it.

    Args:
        teacher: A functional or Sequential classifier with BatchNormalization, of one image, shape
            `(height, width, channels)`. It gives logits or probabilities.
        count: Number of images.
        batch_size: Images that are made together. Their statistics are compared, so it should be several times the
            number of classes.
        steps: Steps of each batch.
        seed: Seed of the noise that they start from.
        input_range: Lowest and highest pixel value that the teacher was trained on.
        learning_rate: Step size of Adam, where pixels are from -1 to 1.
        statistics_weight: Weight of the distance of the statistics, beside the cross-entropy: over all layers the sum
            of the Euclidean distances of means and of variances.
        variation_weight: Weight of the mean squared difference of neighbouring pixels.
        l2_weight: Weight of the mean squared pixel.
        progress: Whether a bar is shown.

    Returns:
        Images, float32 of shape `(count, height, width, channels)`, and for each the class that the teacher says it is,
        int32 of shape `(count,)`.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        ModelError: If the teacher is no such model.
        TrainingError: If the loss becomes NaN.

    Example:
        >>> inputs = keras.Input((4, 4, 1))
        >>> x = keras.layers.Flatten()(keras.layers.BatchNormalization()(inputs))
        >>> teacher = keras.Model(inputs, keras.layers.Dense(2)(x))
        >>> images, labels = synthesize(teacher, 6, batch_size=4, steps=2, progress=False)
        >>> images.shape, labels.shape, bool(images.min() >= 0 and images.max() <= 1)
        ((6, 4, 4, 1), (6,), True)

    Reference:
        Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", 2020,
        https://arxiv.org/abs/1912.08795
    """
    _check_arguments(
        count=count, batch_size=batch_size, steps=steps, learning_rate=learning_rate, input_range=input_range
    )
    weights = {"statistics": statistics_weight, "variation": variation_weight, "l2": l2_weight}
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise InvalidArgumentError(f"synthesize.{name}_weight", "a number of at least 0", weight)
    _check_teacher(teacher)
    search = _Search(teacher, batch_size, input_range, learning_rate, weights)
    batches = math.ceil(count / batch_size)
    # Batches are whole, also the last one, since statistics of a few images say little.
    targets = (np.arange(batches * batch_size) % teacher.output_shape[-1]).reshape(batches, batch_size)
    found = []
    with Progress(disable=not progress, transient=True) as bar:
        task = bar.add_task("images", total=batches * steps)
        for number, classes in enumerate(targets):
            search.start((seed, number))
            for _ in range(steps):
                loss = search.step(tf.constant(classes))
                bar.advance(task)
            if not math.isfinite(loss):
                raise TrainingError(f"The loss became {float(loss)}. Lower `learning_rate`.")
            found.append(search.result())
    images, labels = (np.concatenate(parts)[:count] for parts in zip(*found, strict=True))
    return images, labels


class _Search:
    """A batch of images that is moved, and the loss that it is moved by."""

    def __init__(
        self,
        teacher: keras.Model,
        batch_size: int,
        input_range: tuple[float, float],
        learning_rate: float,
        weights: dict[str, float],
    ):
        self._teacher, self._weights = teacher, weights
        self._norms = {
            Tap(path, inputs=True): layer
            for path, layer in layer_paths(teacher)
            if isinstance(layer, keras.layers.BatchNormalization)
        }
        self._taps = Taps(teacher, list(self._norms))
        self._outputs = StudentOutputs(teacher, None)
        self._middle, self._half = (input_range[1] + input_range[0]) / 2, (input_range[1] - input_range[0]) / 2
        self._pixels = keras.Variable(np.zeros((batch_size, *teacher.input_shape[1:]), "float32"))
        self._optimizer = keras.optimizers.Adam(learning_rate)
        self._optimizer.build([self._pixels])
        self._new_optimizer = [keras.ops.convert_to_numpy(variable) for variable in self._optimizer.variables]
        self.step = tf.function(self._step)

    def start(self, seed: tuple[int, int]) -> None:
        """Begins with noise."""
        noise = tf.random.stateless_normal(self._pixels.shape, seed, stddev=0.5)
        self._pixels.assign(tf.clip_by_value(noise, -1.0, 1.0))
        for variable, value in zip(self._optimizer.variables, self._new_optimizer, strict=True):
            variable.assign(value)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """The images, and what the teacher says they are."""
        images = self._images(self._pixels.value)
        return images.numpy(), np.argmax(self._teacher(images, training=False), -1).astype("int32")

    def _images(self, pixels: Any) -> Any:
        return self._middle + self._half * pixels

    def _step(self, classes: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = self._loss(self._pixels.value, classes)
        self._optimizer.apply([tape.gradient(loss, self._pixels.value)], [self._pixels])
        self._pixels.assign(tf.clip_by_value(self._pixels.value, -1.0, 1.0))
        return loss

    def _loss(self, pixels: Any, classes: Any) -> Any:
        with self._taps.listening() as heard:
            outputs = self._teacher(self._images(pixels), training=False)
        logits = self._outputs.logits(outputs)
        sure = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(classes, logits))
        statistics = tf.add_n([_distance(layer, inputs) for tap, layer in self._norms.items() for inputs in heard[tap]])
        down, right = pixels[:, 1:] - pixels[:, :-1], pixels[:, :, 1:] - pixels[:, :, :-1]
        variation = tf.reduce_mean(tf.square(down)) + tf.reduce_mean(tf.square(right))
        return (
            sure
            + self._weights["statistics"] * statistics
            + self._weights["variation"] * variation
            + self._weights["l2"] * tf.reduce_mean(tf.square(pixels))
        )


def _distance(layer: keras.layers.BatchNormalization, inputs: Any) -> Any:
    """How far mean and variance of what comes to a layer are from those that it has stored."""
    axes = [axis for axis in range(len(inputs.shape)) if axis != layer.axis % len(inputs.shape)]
    mean, variance = tf.nn.moments(tf.cast(inputs, tf.float32), axes)
    return _length(mean - layer.moving_mean) + _length(variance - layer.moving_variance)


def _length(difference: Any) -> Any:
    # The root has no gradient at 0.
    return tf.sqrt(tf.reduce_sum(tf.square(difference)) + 1e-12)


def _check_arguments(
    *, count: Any, batch_size: Any, steps: Any, learning_rate: float, input_range: tuple[float, float]
) -> None:
    for name, value, least in (("count", count, 1), ("batch_size", batch_size, 2), ("steps", steps, 1)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise InvalidArgumentError(f"synthesize.{name}", f"an integer of at least {least}", value)
    if not 0 < learning_rate < math.inf:
        raise InvalidArgumentError("synthesize.learning_rate", "a number above 0", learning_rate)
    if not isinstance(input_range, list | tuple) or len(input_range) != 2 or not input_range[0] < input_range[1]:
        raise InvalidArgumentError("synthesize.input_range", "(lowest, highest) pixel value", input_range)


def _check_teacher(teacher: Any) -> None:
    if not isinstance(teacher, keras.Model):
        raise InvalidArgumentError("synthesize.teacher", "a Keras model; `tfcompress.load` reads a file", teacher)
    if not has_graph(teacher):
        raise ModelError(
            f"A teacher must have a graph. Received: {type(teacher).__name__}. Pass `tfcompress.load(it)`."
        )
    images, outputs = teacher.input_shape, teacher.output_shape
    if not isinstance(images, tuple) or len(images) != 4 or None in images[1:]:
        raise ModelError(
            f"The teacher must take one image of known size, (height, width, channels). Received: {teacher.name!r}, "
            f"with inputs of shape {images}."
        )
    if not teacher.inputs[0].dtype.startswith(("float", "bfloat")):
        raise ModelError(f"The teacher must take floats, which can be moved. Received: {teacher.inputs[0].dtype}.")
    if not isinstance(outputs, tuple) or len(outputs) != 2 or outputs[1] < 2:
        raise ModelError(
            f"The teacher must give one tensor of at least 2 classes, (batch, classes). Received: {teacher.name!r}, "
            f"with outputs of shape {outputs}."
        )
    if not any(isinstance(layer, keras.layers.BatchNormalization) for _, layer in layer_paths(teacher)):
        raise ModelError(
            "The teacher must have BatchNormalization, whose statistics are what it remembers of its data. Received: "
            f"{teacher.name!r} without, or with it folded into other layers. Pass the model as it was trained."
        )
