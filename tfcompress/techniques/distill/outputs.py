"""Outputs as the losses see them: comparable, precise enough, with one class label for each position.

Outputs are tensors `(batch, ..., last)`. Between the batch and the last axis, which holds classes, labels or values,
any number of axes may lie: the height and width of a segmentation, the steps of a sequence. Each of their points is a
position; a plain classifier has one position for each sample.

Invariant: nothing here changes a value, except that half precision becomes float32. Left out: what is compared, which
each loss says itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from tfcompress.errors import InvalidArgumentError


def comparable(owner: str, teacher: Any, student: Any, *, least: int = 1, positions: bool = False) -> tuple[Any, Any]:
    """Both outputs as tensors of at least float32.

    Args:
        owner: The loss, for the error.
        teacher: Outputs of the teacher, shape `(batch, ..., last)`.
        student: Outputs of the student, of the same shape.
        least: What the last axis has at least: a softmax over one class is 1 whatever the class.
        positions: Whether there must be an axis between the batch and the last.

    Raises:
        InvalidArgumentError: If the shapes do not fit each other or the loss.
    """
    teacher, student = precise(teacher), precise(student)
    check_shape(f"{owner}.student_outputs", student, teacher, "teacher's")
    shape = tuple(student.shape)
    if len(shape) < 2 + positions:
        wanted = "(batch, positions..., channels)" if positions else "(batch, ..., classes)"
        raise InvalidArgumentError(f"{owner}.student_outputs", f"of shape {wanted}", shape)
    if shape[-1] is not None and shape[-1] < least:
        raise InvalidArgumentError(
            f"{owner}.student_outputs",
            f"logits of at least {least} classes; `MultiLabelTargets` is for labels with a sigmoid each, "
            "`OutputMatching` for regression",
            shape,
        )
    return teacher, student


def check_shape(name: str, values: Any, model: Any, whose: str) -> None:
    """Raises an `InvalidArgumentError` if two tensors cannot be compared, as far as their shapes are known."""
    shape, expected = tuple(values.shape), tuple(model.shape)
    same_rank = len(shape) == len(expected)
    if not same_rank or any(None not in (a, b) and a != b for a, b in zip(expected, shape, strict=True)):
        raise InvalidArgumentError(name, f"of the {whose} shape {expected}", shape)


def precise(outputs: Any) -> Any:
    """The outputs as a tensor, half precision and integers as float32."""
    outputs = ops.convert_to_tensor(outputs)
    return outputs if keras.backend.standardize_dtype(outputs.dtype) == "float64" else ops.cast(outputs, "float32")


def mean_over_positions(values: Any) -> Any:
    """One value for each sample, shape `(batch,)`, from one for each position, shape `(batch, ...)`."""
    return ops.mean(values, axis=tuple(range(1, len(values.shape)))) if len(values.shape) > 1 else values


def integer_labels(owner: str, labels: Any, outputs: Any) -> Any:
    """Labels as int32, one for each position of `outputs`: shape `(batch, ...)`, without the class axis.

    Args:
        owner: The loss, for the error.
        labels: Integers of that shape, or with a last axis of 1, or one-hot as the outputs are.
        outputs: Shape `(batch, ..., classes)`.

    Raises:
        InvalidArgumentError: If the labels have no such shape.
    """
    labels = ops.convert_to_tensor(labels)
    rank, classes = len(outputs.shape), outputs.shape[-1]
    if len(labels.shape) == rank and labels.shape[-1] == 1:
        labels = ops.squeeze(labels, axis=-1)
    elif len(labels.shape) == rank and labels.shape[-1] == classes:
        labels = ops.argmax(labels, axis=-1)
    if len(labels.shape) != rank - 1:
        raise InvalidArgumentError(
            f"{owner}.labels",
            f"integer classes or one-hot for outputs of shape {tuple(outputs.shape)}",
            tuple(labels.shape),
        )
    return ops.cast(labels, "int32")


def class_labels(owner: str, labels: Any, teacher: Any) -> Any:
    """The class of each position, int32 of shape `(batch, ...)`: the label, or the teacher's first choice.

    The teacher's first choice stands where there are no labels, and where a label is no class, such as the -1 of an
    unlabelled sample.
    """
    first_choice = ops.cast(ops.argmax(teacher, axis=-1), "int32")
    if labels is None:
        return first_choice
    labels = integer_labels(owner, labels, teacher)
    return ops.where(ops.logical_and(labels >= 0, labels < ops.shape(teacher)[-1]), labels, first_choice)


def takes_labels(loss: Callable[..., Any]) -> bool:
    """Whether a loss has a parameter `labels`.

    Example:
        >>> takes_labels(lambda teacher, student, labels=None: None), takes_labels(lambda teacher, student: None)
        (True, False)
    """
    try:
        return "labels" in inspect.signature(loss).parameters
    except ValueError:  # A function written in C may have no signature; then it cannot say that it takes labels.
        return False
