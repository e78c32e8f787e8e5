"""Losses of `keras.distillation` as losses of ours.

Invariant: the mean over the batch of what comes out is what Keras's `compute_loss` gives for the batch. Left out:
Keras's losses of several outputs.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import keras
from keras import ops

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.arguments import check_weight
from tfcompress.techniques.distill.features.pairs import Features
from tfcompress.techniques.distill.outputs import comparable

# Keras had no distillation before 3.12.
_KERAS: Any = getattr(keras, "distillation", None)
_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "none", None)


def as_loss(name: str, loss: Any) -> Any:
    """A loss as a callable `(teacher, student) -> (batch,)`, or as `Features` where it names layers.

    Args:
        name: What the argument is called, for the error.
        loss: A callable, `Features`, or a `keras.distillation.DistillationLoss`.

    Raises:
        InvalidArgumentError: If it is none of these.
    """
    if _KERAS is not None and isinstance(loss, _KERAS.DistillationLoss):
        teacher_layer, student_layer = _layers(loss)
        if teacher_layer is None and student_layer is None:
            return KerasDistillation(loss)
        if teacher_layer is None or student_layer is None:
            raise InvalidArgumentError(name, "with layers of both sides or of none", [teacher_layer, student_layer])
        of_outputs = KerasDistillation(_KERAS.FeatureDistillation(loss=loss.loss))
        return Features(of_outputs, teacher_layer=teacher_layer, student_layer=student_layer)
    if isinstance(loss, type):
        raise InvalidArgumentError(name, f"a loss itself, such as `{loss.__name__}()`, not its class", loss)
    if not callable(loss) and not isinstance(loss, Features):
        raise InvalidArgumentError(
            name, "a callable (teacher, student) -> loss, `Features`, or a loss of `keras.distillation`", loss
        )
    return loss


def _layers(loss: Any) -> tuple[str | None, str | None]:
    """Names of the teacher's and the student's layer, where a loss of Keras has them."""
    return getattr(loss, "teacher_layer_name", None), getattr(loss, "student_layer_name", None)


@dataclasses.dataclass(frozen=True)
class KerasDistillation:
    """A loss of `keras.distillation` with a weight; without one, give `Distiller` the loss as it is.

    Keras's losses give one number for a batch. Where that is a mean over samples, as in `LogitsDistillation`, each
    sample has its value here, and sample weights count. Where it is not, or is not known to be, every sample has the
    value of the batch, and `Distiller` refuses sample weights.

    Args:
        loss: A `LogitsDistillation`, a `FeatureDistillation` without names of layers, or a `DistillationLoss` of one's
            own.
        weight: Share of this loss beside the student's own, in [0, 1].

    Raises:
        InvalidArgumentError: If it is none of these.

    Example:
        >>> inner = keras.distillation.LogitsDistillation(temperature=2.0, loss=keras.losses.KLDivergence())
        >>> logits = ops.array([[2.0, 0.0], [0.0, 2.0]])
        >>> [round(float(value), 4) for value in KerasDistillation(inner, weight=0.5)(logits, logits)]
        [0.0, 0.0]
    """

    loss: Any
    weight: float = dataclasses.field(default=1.0, kw_only=True)

    def __post_init__(self):
        check_weight("KerasDistillation", self.weight)
        if _KERAS is None or not isinstance(self.loss, _KERAS.DistillationLoss):
            raise InvalidArgumentError("KerasDistillation.loss", "a `keras.distillation.DistillationLoss`", self.loss)
        if any(layer is not None for layer in _layers(self.loss)):
            raise InvalidArgumentError(
                "KerasDistillation.loss", "one without names of layers, which `Features` has around it", self.loss
            )
        inner = getattr(self.loss, "loss", None)
        if isinstance(inner, list | tuple | dict):
            raise InvalidArgumentError("KerasDistillation.loss", "one of a single output", inner)
        if isinstance(self.loss, _KERAS.LogitsDistillation) and inner is keras.losses.kl_divergence:
            # Keras takes the softmax only before an instance of `KLDivergence`, and its default is the name.
            warnings.warn(
                "LogitsDistillation(loss='kl_divergence'), its default, compares logits as if they were probabilities, "
                "without a softmax. Give it loss=keras.losses.KLDivergence(), or use tfcompress.SoftTargets.",
                stacklevel=2,
            )

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the loss is not known to be a mean over samples."""
        known = (_KERAS.LogitsDistillation.compute_loss, _KERAS.FeatureDistillation.compute_loss)
        if type(self.loss).compute_loss not in known:
            return True
        return getattr(self.loss.loss, "reduction", None) not in _MEANS

    def __call__(self, teacher_outputs: Any, student_outputs: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two tensors of shape `(batch, ..., classes)`."""
        teacher, student = comparable("KerasDistillation", teacher_outputs, student_outputs)
        if self.needs_whole_batch:
            return ops.broadcast_to(self.loss.compute_loss(teacher, student), ops.shape(student)[:1])
        return ops.vectorized_map(self._of_sample, (teacher, student))

    def _of_sample(self, sides: tuple[Any, Any]) -> Any:
        return self.loss.compute_loss(*(ops.expand_dims(side, axis=0) for side in sides))
