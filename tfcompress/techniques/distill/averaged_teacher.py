"""`AveragedTeacher`: the moving average of a student's own weights as its teacher.

Invariant: the average changes by `follow` alone, never by a gradient, and has the student's layers and precision. Left
out: the noise under which student and teacher differ, which is the student's own dropout and augmentation.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.techniques.distill.teacher import Teacher
from tfcompress.training.copying import copy_model


class AveragedTeacher(Teacher):
    """A teacher whose weights are an exponential moving average of the student's, updated after each step.

    An average over the last `1 / (1 - momentum)` steps errs less than the student does at any of them, so it can teach
    it, with and without labels, and costs no training of its own. The average begins short, with a momentum of
    `min(momentum, (1 + step) / (10 + step))`, so that the random start of the student does not teach.

    Moving means and variances of BatchNormalization are averaged as the weights are: the student's newest ones would
    be of other weights than the average's. Numbers that are not floats are copied.

    `Distiller` lets it `follow` its student. `distiller.teacher.source` is the averaged network, which is often the
    better of the two.

    Args:
        student: The Keras model that is distilled, the same as is given to `Distiller`.
        momentum: Share of the average that stays at each step, in [0, 1).

    Raises:
        InvalidArgumentError: If the student is no Keras model, or the momentum is out of its range.
        ModelError: If Keras cannot copy the student.

    Example:
        >>> student = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros")])
        >>> teacher = AveragedTeacher(student, momentum=0.05)
        >>> _ = student.layers[0].kernel.assign([[2.0]])
        >>> teacher.follow(student)
        >>> [round(float(value), 4) for value in keras.ops.ravel(teacher.source.weights[0])]
        [1.9]

    Reference:
        Tarvainen, Valpola, "Mean teachers are better role models: Weight-averaged consistency targets improve
        semi-supervised deep learning results", 2017, https://arxiv.org/abs/1703.01780
    """

    def __init__(self, student: keras.Model, momentum: float = 0.999):
        if not isinstance(student, keras.Model):
            raise InvalidArgumentError("AveragedTeacher.student", "the Keras model that is distilled", student)
        number = isinstance(momentum, int | float) and not isinstance(momentum, bool)
        if not number or not 0 <= momentum < 1:
            raise InvalidArgumentError("AveragedTeacher.momentum", "a number in [0, 1)", momentum)
        self.momentum = float(momentum)
        if not student.built:
            raise ModelError(
                f"A student must be built to be averaged. Received: {student.name!r}, which has no weights yet. "
                "Call it on a batch."
            )
        super().__init__(copy_model(student, precision=None))

    def _take(self, source: Any) -> None:
        super()._take(source)
        # Its first outputs, of weights at random, would not tell.
        self.gives_sigmoids = bool(self.gives_sigmoids)
        # A variable of its own, so that it is in the scope that the average is in.
        self._steps = keras.Variable(0, dtype="int64", trainable=False, name="steps")

    def with_source(self, model: keras.Model) -> AveragedTeacher:
        """The same teacher over a copy of the average, such as one in the scope of a distribution strategy."""
        teacher = super().with_source(model)
        teacher._steps.assign(self._steps)
        return teacher

    @property
    def variables(self) -> list[keras.Variable]:
        """What a training that is resumed needs: the average and the number of its steps."""
        return [*self.source.weights, self._steps]

    def key(self) -> None:
        """None, since what it says changes in each step."""
        return None

    def follow(self, student: keras.Model) -> None:
        """Moves the average towards the student, by one step; also within a compiled step, and on each replica.

        Args:
            student: The network that it is the average of.

        Raises:
            ModelError: If the student has other weights.
        """
        averages, weights = self.source.weights, student.weights
        shapes, received = ([tuple(weight.shape) for weight in side] for side in (averages, weights))
        if shapes != received:
            raise ModelError(
                f"An AveragedTeacher must follow the student that it was made of, {self.name}, with weights of shapes "
                f"{shapes}. Received: {student.name!r} with {received}. Make it of the student that is distilled."
            )
        step = tf.cast(self._steps, tf.float32)
        momentum = tf.minimum(self.momentum, (1 + step) / (10 + step))
        for average, weight in zip(averages, weights, strict=True):
            # Each replica's copy follows that replica's student, so nothing has to be summed up between them.
            average.assign(_moved(average, weight, momentum))
        self._steps.assign_add(1)


def _moved(average: Any, weight: Any, momentum: Any) -> Any:
    """The average, moved towards a weight."""
    if not keras.backend.is_float_dtype(average.dtype):
        return weight.value
    old, new = tf.convert_to_tensor(average), tf.convert_to_tensor(weight)
    return old + tf.cast(1 - momentum, old.dtype) * (new - old)
