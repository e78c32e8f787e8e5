"""`Ensemble`: several teachers that speak as one.

Invariant: each sample has one distribution, whatever the members give; members are asked side by side, each with its
own input size and range. Left out: stored outputs as members, since a batch brings those of one teacher along; the
outputs of a whole ensemble are stored as any teacher's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError
from tfcompress.files import content_key
from tfcompress.techniques.distill.outputs import class_labels
from tfcompress.techniques.distill.teacher import Teacher
from tfcompress.techniques.distill.teacher_source import Shape

_COMBINE = ("probabilities", "logits", "correct")


class Ensemble:
    """A teacher that is the mean of several; it goes wherever a `Teacher` goes.

    Args:
        teachers: At least two: whatever `Teacher` takes, `Teacher`s, or ensembles. All give outputs of one shape.
        weights: How much each counts, above 0; what matters is their ratio. None for all alike.
        combine: What is averaged. `"probabilities"`, given back as logits. `"logits"`: also for regression and for
            labels with a sigmoid each. `"correct"`: the probabilities of those teachers whose first choice is the label
            of the sample (at each position of outputs with positions), or of all where none is right; where there is no
            label, as for -1, the first choice of all together stands for it.

    Raises:
        InvalidArgumentError: If an argument is out of its range, or teachers have other classes than the first.
        ModelError: If a file cannot be read.

    Example:
        >>> ensemble = Ensemble([lambda x: x, lambda x: 3.0 * x], weights=[3, 1], combine="logits")
        >>> ensemble.logits(tf.constant([[1.0, -1.0]])).numpy().tolist()
        [[1.5, -1.5]]

    Reference:
        You, Xu, Xu, Tao, "Learning from Multiple Teacher Networks", KDD 2017, https://doi.org/10.1145/3097983.3098135
    """

    def __init__(
        self, teachers: Sequence[Any], *, weights: Sequence[float] | None = None, combine: str = "probabilities"
    ):
        if not isinstance(teachers, list | tuple) or len(teachers) < 2:
            raise InvalidArgumentError("Ensemble.teachers", "a list of at least two teachers", teachers)
        if combine not in _COMBINE:
            raise InvalidArgumentError("Ensemble.combine", f"one of {', '.join(_COMBINE)}", combine)
        self.teachers: tuple[Teacher | Ensemble, ...] = tuple(as_teacher(teacher) for teacher in teachers)
        self.combine = combine
        self._weights = _shares(weights, len(teachers))
        self._check_shapes()

    def in_scope(self) -> Ensemble:
        """The ensemble to use under the running distribution strategy."""
        members = [teacher.in_scope() for teacher in self.teachers]
        return Ensemble(members, weights=self._weights, combine=self.combine)

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"the ensemble of {', '.join(teacher.name for teacher in self.teachers)}"

    @property
    def gives_distributions(self) -> bool | None:
        """Whether its logits are logarithms of probabilities of classes; None if only its first outputs will tell."""
        members = [teacher.gives_distributions for teacher in self.teachers]
        return True if self.combine != "logits" or True in members else None if None in members else False

    @property
    def gives_sigmoids(self) -> bool:
        """Whether a member is known to give sigmoids."""
        return any(teacher.gives_sigmoids for teacher in self.teachers)

    @property
    def models(self) -> tuple[keras.Model, ...]:
        """The Keras 3 models that it asks."""
        return tuple(model for teacher in self.teachers for model in teacher.models)

    @property
    def output_shape(self) -> Shape | None:
        """Shape of the logits for one sample, where a member knows it."""
        return next((shape for shape in (teacher.output_shape for teacher in self.teachers) if shape), None)

    @property
    def num_classes(self) -> int | None:
        """Size of the last output axis, where a member knows it."""
        return next((n for n in (teacher.num_classes for teacher in self.teachers) if n is not None), None)

    @property
    def compiles(self) -> bool:
        """Whether all members are made of TensorFlow operations that XLA can compile."""
        return all(teacher.compiles for teacher in self.teachers)

    @property
    def needs_labels(self) -> bool:
        """Whether its logits depend on the labels."""
        return self.combine == "correct" or any(teacher.needs_labels for teacher in self.teachers)

    def key(self) -> str | None:
        """What its logits are known by: the keys of its members, and how they are combined; None if one has none."""
        keys = [teacher.key() for teacher in self.teachers]
        return None if None in keys else content_key("ensemble", self.combine, self._weights, keys)

    @property
    def variables(self) -> list[keras.Variable]:
        """What of its members changes in a training, and a resumed one needs."""
        return [variable for teacher in self.teachers for variable in getattr(teacher, "variables", ())]

    def follow(self, student: keras.Model) -> None:
        """Lets those members follow the student that are an average of it."""
        for teacher in self.teachers:
            if hasattr(teacher, "follow"):
                teacher.follow(student)

    def find_out_outputs(self, inputs: Any) -> None:
        """Looks at the outputs of each member, as `Teacher.find_out_outputs` does.

        Raises:
            InvalidArgumentError: As that does, and if members give other shapes than the first.
            ModelError: As that does.
        """
        for teacher in self.teachers:
            teacher.find_out_outputs(inputs)
        self._check_shapes()

    def logits(self, inputs: Any, labels: Any = None) -> Any:
        """Float32 logits of shape `(batch, classes)`, with no gradient.

        Args:
            inputs: A batch.
            labels: Its labels, integers or one-hot, which `"correct"` looks at; None where there are none.
        """
        logits = [teacher.logits(inputs, labels) for teacher in self.teachers]
        if any(each.shape.rank != logits[0].shape.rank for each in logits):
            self._raise_shapes([each.shape[1:] for each in logits])
        weights = tf.reshape(tf.constant(self._weights), (-1, *(1 for _ in logits[0].shape)))
        stacked = tf.stack(logits)
        if self.combine == "logits":
            return tf.reduce_sum(weights * stacked, 0)
        log_probabilities = tf.nn.log_softmax(stacked)
        mean = _log_mean(log_probabilities, weights)
        if self.combine == "probabilities":
            return mean
        target = class_labels("Ensemble", labels, mean)
        right = tf.argmax(stacked, -1, output_type=tf.int32) == target
        right = tf.logical_or(right, ~tf.reduce_any(right, 0))[..., None]
        return _log_mean(log_probabilities, tf.where(right, weights, 0.0))

    def _check_shapes(self) -> None:
        shapes = [teacher.output_shape for teacher in self.teachers]
        classes = {teacher.num_classes for teacher in self.teachers} - {None}
        ranks = {len(shape) for shape in shapes if shape}
        if len(classes) > 1 or len(ranks) > 1 or not _agree([shape for shape in shapes if shape]):
            self._raise_shapes(
                [shape or (teacher.num_classes,) for shape, teacher in zip(shapes, self.teachers, strict=True)]
            )
        if self.combine != "logits" and classes == {1}:
            raise InvalidArgumentError(
                "Ensemble.combine", "'logits' for outputs of one value, which are no probabilities", self.combine
            )

    def _raise_shapes(self, shapes: Sequence[Any]) -> None:
        named = [f"{tuple(shape)} of {teacher.name}" for shape, teacher in zip(shapes, self.teachers, strict=True)]
        raise InvalidArgumentError(
            "Ensemble.teachers", "teachers with outputs of one shape; `class_map` chooses classes", "; ".join(named)
        )


def as_teacher(teacher: Any) -> Teacher | Ensemble:
    """A teacher of whatever a user gives: a `Teacher` or an `Ensemble` as it is, anything else as a `Teacher`.

    Raises:
        InvalidArgumentError: If it can be none.
        ModelError: If a file cannot be read.
    """
    return teacher if isinstance(teacher, Teacher | Ensemble) else Teacher(teacher)


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """The weights, divided by their sum."""
    given = [1.0] * count if weights is None else weights
    numbers = isinstance(given, list | tuple) and all(
        isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight) and weight > 0
        for weight in given
    )
    if not numbers or len(given) != count:
        raise InvalidArgumentError(
            "Ensemble.weights", f"None or {count} numbers above 0, one for each teacher", weights
        )
    return [float(weight) / math.fsum(given) for weight in given]


def _agree(shapes: Sequence[Shape]) -> bool:
    return all(len({size for size in sizes if size is not None}) <= 1 for sizes in zip(*shapes, strict=False))


def _log_mean(log_probabilities: Any, weights: Any) -> Any:
    """The logarithm of the weighted mean over the first axis; weights of 0 leave members out."""
    return tf.reduce_logsumexp(log_probabilities + tf.math.log(weights / tf.reduce_sum(weights, 0, keepdims=True)), 0)
