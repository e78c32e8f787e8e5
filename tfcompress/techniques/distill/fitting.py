"""Which losses can compare which outputs: values as they are, logits of labels, or logits of classes.

Probabilities of classes reach a loss as their logarithms, whose softmax they are again. A loss of classes takes that
softmax; one of values or of labels would compare logarithms. Sigmoids are the logits of nothing.

Invariant: what is refused is known, from a graph or from first outputs; of losses that are the user's own, nothing is.
Left out: shapes (`outputs.py`), and whether the student's own loss fits it (`student_outputs.py`).
"""

from __future__ import annotations

from typing import Any

import keras

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.decoupled import Decoupled
from tfcompress.techniques.distill.dense_losses import ChannelWiseTargets
from tfcompress.techniques.distill.losses import (
    HardLabels,
    LabelSmoothing,
    LogitMatching,
    SoftCrossEntropy,
    SoftTargets,
)
from tfcompress.techniques.distill.multi_label import MultiLabelTargets
from tfcompress.techniques.distill.regression import OutputMatching, TeacherBounded
from tfcompress.techniques.distill.scheduled import Scheduled
from tfcompress.techniques.distill.several_outputs import TeacherOfSeveral
from tfcompress.techniques.distill.several_teachers import Ensemble
from tfcompress.techniques.distill.stored_outputs import StoredOutputs
from tfcompress.techniques.distill.student_outputs import StudentOutputs
from tfcompress.techniques.distill.teacher import Teacher
from tfcompress.techniques.distill.weighting import AroundLoss

_OF_CLASSES = (
    ChannelWiseTargets,
    Decoupled,
    HardLabels,
    LabelSmoothing,
    LogitMatching,
    SoftCrossEntropy,
    SoftTargets,
)
_OF_NO_CLASSES = (MultiLabelTargets, OutputMatching, TeacherBounded)


def check_teacher(
    loss: Any, teacher: Teacher | Ensemble | StoredOutputs | TeacherOfSeveral, name: str | None, *, mixes: bool
) -> None:
    """Raises an `InvalidArgumentError` if a loss cannot compare what a teacher gives.

    Args:
        loss: Any loss of outputs.
        teacher: The teacher.
        name: The output that it is a loss of; None of a single one.
        mixes: Whether samples are mixed.
    """
    one = teacher.outputs[str(name)] if isinstance(teacher, TeacherOfSeveral) else teacher
    mixed = mixes and isinstance(one, StoredOutputs)
    received = "stored outputs" if isinstance(one, StoredOutputs) else one.name if name is None else f"output {name!r}"
    _check("teacher", loss, mixed or one.gives_distributions, one.gives_sigmoids, _way_out(one, mixed), received)


def check_student(loss: Any, student: keras.Model, outputs: StudentOutputs, name: str | None) -> None:
    """Raises an `InvalidArgumentError` if a loss cannot compare what a student gives.

    Args:
        loss: Any loss of outputs.
        student: The student.
        outputs: What its outputs are.
        name: The output that it is a loss of; None of a single one.
    """
    received = student.name if name is None else f"{student.name}, output {name!r}"
    distributions, sigmoids = outputs.gives_distributions(name), outputs.gives_sigmoids(name)
    _check("student", loss, distributions, sigmoids, "leave out the softmax at its end", received)


def innermost(loss: Any) -> Any:
    """The loss within schedules and wrappers."""
    while isinstance(loss, Scheduled | AroundLoss):
        loss = loss.loss
    return loss


def _check(
    side: str, loss: Any, distributions: bool | None, sigmoids: bool | None, way_out: str, received: object
) -> None:
    loss = innermost(loss)
    kind = type(loss).__name__
    if distributions and isinstance(loss, _OF_NO_CLASSES):
        expected = f"one of raw outputs with {kind}, not of probabilities of classes: {way_out}, or take `SoftTargets`"
        raise InvalidArgumentError(side, expected, received)
    if sigmoids and isinstance(loss, MultiLabelTargets):
        expected = f"a model of logits with {kind}: leave out the sigmoid at its end"
        raise InvalidArgumentError(side, expected, received)
    if sigmoids and isinstance(loss, _OF_CLASSES):
        expected = (
            f"a model of class logits or probabilities with {kind}, not of sigmoids: leave out the sigmoid at its end, "
            "and take `MultiLabelTargets`"
        )
        raise InvalidArgumentError(side, expected, received)


def _way_out(teacher: Teacher | Ensemble | StoredOutputs, mixed: bool) -> str:
    """What helps where a teacher gives distributions."""
    if mixed:
        return "give a live teacher where `mix` is given"
    if isinstance(teacher, StoredOutputs):
        return "give a live teacher, or store raw outputs, without `top_k`"
    if isinstance(teacher, Ensemble) and teacher.combine != "logits":
        return 'give the `Ensemble` combine="logits"'
    return "leave out the softmax at its end"
