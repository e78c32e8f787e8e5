"""Features as the losses see them: two tensors that fit each other, precise enough, of one length or one size.

Features are tensors `(batch, ..., channels)`: a map has height and width in between, a sequence its steps, a vector
nothing. Each point in between is a position.

Invariant: no function here divides by less than a fixed number, so that constant or zero features give finite values
and gradients; where a length is divided out, one of nothing stays 0 and has no gradient. Left out: masks (the padding
of a sequence counts as any other position), and changes of the number of channels, which take something trained.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.features.projectors import resized
from tfcompress.techniques.distill.outputs import check_shape, precise

# Features below this are those of units that are dead: they have no direction, and blown up they would only be noise.
LEAST = 1e-4


def features(
    owner: str, teacher: Any, student: Any, *, positions: bool = False, alike: bool = False
) -> tuple[Any, Any]:
    """Both features as tensors of at least float32.

    Args:
        owner: The loss, for the error.
        teacher: Features of the teacher, shape `(batch, ..., channels)`.
        student: Features of the student, for the same samples.
        positions: Whether there must be an axis between batch and channels, and as many on both sides.
        alike: Whether the shapes must be the same.

    Raises:
        InvalidArgumentError: If the shapes do not fit each other or the loss.
    """
    teacher, student = precise(teacher), precise(student)
    for side, tensor in (("teacher", teacher), ("student", student)):
        check_axes(f"{owner}.{side}_features", tensor, positions=positions)
    name = f"{owner}.student_features"
    if alike:
        check_shape(name, student, teacher, "teacher's")
    if positions:
        check_as_many_axes(name, student, teacher, "teacher's")
    check_samples(name, student, teacher)
    return teacher, student


def check_axes(name: str, tensor: Any, *, positions: bool = False) -> None:
    """Raises an `InvalidArgumentError` unless a tensor has batch and channels, and positions where there must be."""
    if len(tensor.shape) < 2 + positions:
        wanted = "(batch, positions..., channels)" if positions else "(batch, ..., channels)"
        raise InvalidArgumentError(name, f"of shape {wanted}", tuple(tensor.shape))


def check_as_many_axes(name: str, tensor: Any, model: Any, whose: str) -> None:
    """Raises an `InvalidArgumentError` unless two tensors have equally many axes."""
    if len(tensor.shape) != len(model.shape):
        expected = f"of as many axes as the {whose}, which are of shape {tuple(model.shape)}"
        raise InvalidArgumentError(name, expected, tuple(tensor.shape))


def check_samples(name: str, student: Any, teacher: Any) -> None:
    """Raises an `InvalidArgumentError` if two tensors are known to be of different numbers of samples."""
    count, expected = student.shape[0], teacher.shape[0]
    if None not in (count, expected) and count != expected:
        raise InvalidArgumentError(name, f"of {expected} samples, as the teacher's are", tuple(student.shape))


def vectors(tensor: Any) -> Any:
    """One vector for each sample, shape `(batch, features)`."""
    return ops.reshape(tensor, (ops.shape(tensor)[0], -1))


def largest(tensor: Any, axis: int | tuple[int, ...] | None) -> Any:
    """The largest absolute value along an axis, which is kept, and at least `LEAST`.

    It is a constant to the gradient: it is for what does not depend on the scale of the features, whose squares or
    higher powers could leave the range of float32.
    """
    return ops.stop_gradient(ops.maximum(ops.max(ops.abs(tensor), axis=axis, keepdims=True), LEAST))


def unit_length(tensor: Any) -> Any:
    """Vectors along the last axis divided by their length; 0 where no entry is above `LEAST`."""
    scale = largest(tensor, -1)
    tensor = ops.where(scale > LEAST, tensor / scale, ops.zeros_like(tensor))
    # With an entry of 1, a vector is at least that long, up to rounding.
    return tensor * ops.rsqrt(ops.maximum(ops.sum(ops.square(tensor), axis=-1, keepdims=True), 0.5))


def different_samples(tensor: Any) -> Any:
    """Which pairs are of two different samples, bool of shape `(batch, batch)`."""
    samples = ops.arange(ops.shape(tensor)[0])
    return ops.not_equal(ops.expand_dims(samples, 1), samples)


def of_one_size(one: Any, other: Any) -> tuple[Any, Any]:
    """Both tensors `(batch, positions..., channels)` with the smaller of their sizes on each axis, by means over areas.

    A size that is not known before the run is taken to be the same on both sides.
    """
    sizes = tuple(None if None in pair else min(pair) for pair in zip(one.shape[1:-1], other.shape[1:-1], strict=True))
    return resized(one, sizes), resized(other, sizes)
