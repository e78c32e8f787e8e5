"""Losses of regression outputs: values, not logits.

Invariant: nothing is centred, softened or scaled. Left out: outputs that are distributions (mean and variance).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from keras import ops

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.arguments import check_not_negative, check_weight
from tfcompress.techniques.distill.outputs import check_shape, comparable, mean_over_positions, precise

DISTANCES = ("squared", "absolute", "huber")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputMatching:
    """Mean distance of the outputs, as they are. It is 0 where both agree.

    It is for values, sigmoids too. `Distiller` refuses networks that end in a softmax, for losses see its logarithms.

    Args:
        distance: `squared`; `absolute`, which a few wild outputs of the teacher move less; or `huber`: half the square
            up to `delta`, from there on a line.
        delta: Where `huber` turns into a line, above 0, in units of the outputs.
        weight: Share of this loss beside the student's own, in [0, 1].

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> float(OutputMatching(distance="absolute")(ops.array([[1.0, 4.0]]), ops.array([[2.0, 1.0]]))[0])
        2.0
    """

    distance: Literal["squared", "absolute", "huber"] = "squared"
    delta: float = 1.0
    weight: float = 0.5

    def __post_init__(self):
        if self.distance not in DISTANCES:
            raise InvalidArgumentError("OutputMatching.distance", f"one of {list(DISTANCES)}", self.distance)
        if not 0 < self.delta < float("inf"):
            raise InvalidArgumentError("OutputMatching.delta", "a number above 0", self.delta)
        check_weight("OutputMatching", self.weight)

    def __call__(self, teacher_outputs: Any, student_outputs: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two tensors of shape `(batch, ..., values)`."""
        teacher, student = comparable("OutputMatching", teacher_outputs, student_outputs)
        apart = ops.abs(student - teacher)
        if self.distance == "squared":
            apart = ops.square(apart)
        elif self.distance == "huber":
            near = ops.minimum(apart, self.delta)
            apart = 0.5 * ops.square(near) + self.delta * (apart - near)
        return mean_over_positions(apart)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherBounded:
    """Mean squared error to the labels, where the student is not yet better than the teacher by a margin; 0 elsewhere.

    A teacher of regression may be wrong without bound, so it says when to stop and the label says where to. It is 0
    wherever the squared error of the student plus `margin` is at most that of the teacher, and where the student meets
    the labels.

    Args:
        margin: How much smaller than the teacher's the student's squared error must be, at least 0, in squared units
            of the outputs.
        weight: Share of this loss beside the student's own, in [0, 1].

    Raises:
        InvalidArgumentError: If an argument is out of its range, or there are no labels.

    Example:
        >>> loss, label = TeacherBounded(), ops.array([[0.0], [0.0]])
        >>> [float(value) for value in loss(ops.array([[2.0], [2.0]]), ops.array([[1.0], [3.0]]), labels=label)]
        [0.0, 9.0]

    Reference:
        Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", 2017,
        https://papers.nips.cc/paper/6676-learning-efficient-object-detection-models-with-knowledge-distillation
    """

    margin: float = 0.0
    weight: float = 0.5

    def __post_init__(self):
        check_not_negative("TeacherBounded.margin", self.margin)
        check_weight("TeacherBounded", self.weight)

    def __call__(self, teacher_outputs: Any, student_outputs: Any, labels: Any = None) -> Any:
        """Returns the loss of each sample, shape `(batch,)`.

        Args:
            teacher_outputs: Shape `(batch, ..., values)`. Errors are means over the values, one for each position.
            student_outputs: Of the same shape.
            labels: The true values, of the same shape, or without the last axis if there is one value.
        """
        teacher, student = comparable("TeacherBounded", teacher_outputs, student_outputs)
        if labels is None:
            raise InvalidArgumentError(
                "TeacherBounded.labels", "the true values: of data with labels, and without `mix`", labels
            )
        labels = ops.cast(precise(labels), student.dtype)
        if len(labels.shape) == len(student.shape) - 1 and student.shape[-1] == 1:
            labels = ops.expand_dims(labels, axis=-1)
        check_shape("TeacherBounded.labels", labels, student, "student's")
        of_teacher, of_student = (ops.mean(ops.square(side - labels), axis=-1) for side in (teacher, student))
        return mean_over_positions(
            ops.where(of_student + self.margin > of_teacher, of_student, ops.zeros_like(of_student))
        )
