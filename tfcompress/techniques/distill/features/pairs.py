"""`Features`: a loss between what two layers give, one of the teacher and one of the student.

It goes where a loss of outputs goes, into `Distiller(losses=[...])`. What is between the layers, a projector or the
parts of the loss that are trained along, is made for their shapes, and thrown away with the `Distiller`.

Invariant: neither network is changed by it. Left out: how features are compared, which is the loss's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.features.projectors import Projector
from tfcompress.techniques.distill.features.taps import Tap

Layers = str | Sequence[str]


@dataclasses.dataclass(frozen=True)
class Features:
    """Compares features within the networks.

    Args:
        loss: A loss of features, such as `Hints()`, with a `weight` (1 without one), or any callable
            `(teacher_features, student_features) -> (batch,)`. One with `same_shape = True` is given the student's
            features in the teacher's shape, by a projector that is trained along.
        teacher_layer: Name of the teacher's layer, or a path such as `"backbone/conv_1"`; for a loss of several layers,
            such as `SolutionFlow`, a list of names.
        student_layer: Likewise of the student's.

    Raises:
        InvalidArgumentError: If an argument is none of these.

    Example:
        >>> def mean_difference(teacher, student):
        ...     return keras.ops.mean(keras.ops.abs(teacher - student), axis=-1)
        >>> Features(mean_difference, teacher_layer="hidden", student_layer="hidden").weight
        1.0
    """

    loss: Callable[..., Any]
    teacher_layer: Layers = dataclasses.field(kw_only=True)
    student_layer: Layers = dataclasses.field(kw_only=True)

    def __post_init__(self):
        if not (callable(self.loss) or hasattr(self.loss, "trained_along")):
            raise InvalidArgumentError("Features.loss", "a loss of features, such as Hints()", self.loss)
        if isinstance(self.loss, type) or hasattr(self.loss, "weight_at"):
            raise InvalidArgumentError(
                "Features.loss", "a loss itself, such as `Hints()`; a schedule goes around `Features`", self.loss
            )
        for side in ("teacher_layer", "student_layer"):
            names = getattr(self, side)
            several = isinstance(names, list | tuple) and names
            if not isinstance(names, str) and not (several and all(isinstance(name, str) for name in names)):
                raise InvalidArgumentError(f"Features.{side}", "the name of a layer, or a list of names", names)
        if len(self.names("teacher")) != len(self.names("student")):
            raise InvalidArgumentError(
                "Features.student_layer", f"as many layers as the teacher's, {self.teacher_layer}", self.student_layer
            )
        # A user's own callable may take any number of layers.
        expected = getattr(self.loss, "layers", None)
        if expected is not None and len(self.names("teacher")) != expected:
            raise InvalidArgumentError(
                "Features.teacher_layer", f"{expected} for {type(self.loss).__name__}", self.teacher_layer
            )

    @property
    def weight(self) -> float:
        """Weight of the loss, beside all others."""
        return float(getattr(self.loss, "weight", 1.0))

    def names(self, side: str) -> tuple[str, ...]:
        """Names of the layers of a side, `"teacher"` or `"student"`."""
        names = getattr(self, f"{side}_layer")
        return (names,) if isinstance(names, str) else tuple(names)

    def taps(self, side: str) -> tuple[Tap, ...]:
        """What of each layer of a side is compared."""
        return tuple(Tap(name, getattr(self.loss, "of_attention", False)) for name in self.names(side))


class Between:
    """What is between two layers, made for their shapes.

    Args:
        features: Which layers, and how they are compared.
        teacher_shapes: Shapes of the teacher's features without the batch, one for each layer.
        student_shapes: Those of the student's.
    """

    def __init__(self, features: Features, teacher_shapes: Sequence[tuple], student_shapes: Sequence[tuple]):
        self.features = features
        self._projectors: list[keras.layers.Layer] = []
        self._head: keras.layers.Layer | None = None
        if hasattr(features.loss, "trained_along"):
            self._head = features.loss.trained_along(_one_or_all(teacher_shapes), _one_or_all(student_shapes))
        elif getattr(features.loss, "same_shape", False):
            for teacher, student in zip(teacher_shapes, student_shapes, strict=True):
                projector = Projector(teacher)
                projector.build((None, *student))
                self._projectors.append(projector)
        specs = [[tf.TensorSpec((None, *shape)) for shape in shapes] for shapes in (teacher_shapes, student_shapes)]
        # What does not fit together says so here, before anything is trained.
        tf.function(self, autograph=False).get_concrete_function(*specs)

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The layers that are trained along."""
        layers = self._projectors if self._head is None else [self._head]
        return [layer for layer in layers if layer.trainable_variables]

    def __call__(self, teacher: Sequence[Any], student: Sequence[Any]) -> Any:
        """The loss of each sample, shape `(batch,)`, from the features of each layer."""
        if self._head is not None:
            return self._head(_one_or_all(teacher), _one_or_all(student))
        if self._projectors:
            student = [project(one) for project, one in zip(self._projectors, student, strict=True)]
        return self.features.loss(_one_or_all(teacher), _one_or_all(student))


def _one_or_all(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else tuple(values)
