"""`Objective`: what a training under a teacher minimizes, out of the student's own loss and all that it is taught.

Invariant: it is `hard_weight * own + sum(weight * loss)`, each loss averaged over the batch as Keras averages its own,
and as a share of this replica; where weights are learned, each term goes through `LearnedWeights`. Left out:
regularizers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.arguments import check_not_negative
from tfcompress.techniques.distill.features.pairs import Features
from tfcompress.techniques.distill.keras_losses import as_loss
from tfcompress.techniques.distill.learned_weights import LearnedWeights
from tfcompress.techniques.distill.losses import SoftTargets
from tfcompress.techniques.distill.outputs import takes_labels
from tfcompress.techniques.distill.scheduled import Scheduled, features_of, weight_at

DistillationLoss = Callable[..., Any]


def own_loss(model: keras.Model, x: Any, y: Any, outputs: Any, sample_weight: Any) -> tuple[Any, Any]:
    """A model's loss on its labels, and its regularizers apart, both as this replica's share.

    Args:
        model: A compiled model, whose forward pass has given the outputs.
        x: Its inputs.
        y: The labels.
        outputs: What it gave.
        sample_weight: Weights of the samples, or None.
    """
    total = tf.cast(model.compute_loss(x, y, outputs, sample_weight, training=True), tf.float32)
    if not model.losses:
        return total, 0.0
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    regularization = tf.add_n([tf.cast(loss, tf.float32) for loss in model.losses]) / replicas
    return total - regularization, regularization


class Objective:
    """The weighted sum of losses.

    Args:
        losses: Losses of outputs and of features; None is `SoftTargets()`. A dict has a list of them for each output.
        hard_weight: Weight of the student's own loss; None is what the losses of outputs leave of 1.
        learn_weights: Whether the weights are learned along.
        owner: What the losses are an argument of, for errors.

    Raises:
        InvalidArgumentError: If there is no loss, one is none, or the weights do not fit.
    """

    def __init__(
        self,
        losses: Sequence[Any] | Mapping[str, Sequence[Any]] | None,
        hard_weight: float | None,
        learn_weights: bool,
        owner: str = "Distiller",
    ):
        self._argument = f"{owner}.losses"
        by_name: dict[str | None, Sequence[Any]]
        if isinstance(losses, Mapping):
            self.names: tuple[str, ...] | None = tuple(losses)
            by_name = dict(losses.items())
        else:
            self.names, by_name = None, {None: [SoftTargets()] if losses is None else losses}
        for part in by_name.values():
            if not isinstance(part, list | tuple):
                expected = "a list of losses, or a dict with a list for each output"
                raise InvalidArgumentError(self._argument, expected, part)
        given = [(name, as_loss(self._argument, loss)) for name, part in by_name.items() for loss in part]
        losses = [loss for _, loss in given]
        if not losses:
            raise InvalidArgumentError(self._argument, "at least one callable (teacher, student) -> loss", losses)
        if self.names is not None and hard_weight is None:
            raise InvalidArgumentError(
                "Distiller.hard_weight", "given where losses are, by output, for it is that of all labels", hard_weight
            )
        self.of_outputs = tuple(loss for loss in losses if features_of(loss) is None)
        self._of = tuple(name for name, loss in given if features_of(loss) is None)
        self._of_features = tuple(loss for loss in losses if features_of(loss) is not None)
        scheduled = [loss for loss in losses if isinstance(loss, Scheduled) and loss.weight is not None]
        weights = [weight_at(loss, 0) for loss in self.of_outputs]
        if hard_weight is None and not scheduled and 1.0 - sum(weights) < -1e-9:
            raise InvalidArgumentError(
                self._argument, "with weights that add up to at most 1, or `hard_weight` given", weights
            )
        if isinstance(hard_weight, float) and -1e-9 <= hard_weight < 0:
            hard_weight = 0.0  # What others left of 1, rounded.
        if hard_weight is not None:
            check_not_negative(f"{owner}.hard_weight", hard_weight)
        if learn_weights and scheduled:
            raise InvalidArgumentError("Distiller.learn_weights", "False where a weight has a schedule", learn_weights)
        self._hard_weight = hard_weight
        self.learned: LearnedWeights | None = None
        if learn_weights:
            taught = [weight_at(loss, 0) for loss in (*self.of_outputs, *self._of_features)]
            self.learned = LearnedWeights([self.hard_weight_at(0), *taught])

    @property
    def by_output(self) -> tuple[tuple[str | None, Any], ...]:
        """The losses of outputs, each with the name of its output; None of a single one."""
        return tuple(zip(self._of, self.of_outputs, strict=True))

    @property
    def pairs(self) -> tuple[Features, ...]:
        """The pairs of layers that are compared."""
        return tuple(pair for loss in self._of_features if (pair := features_of(loss)) is not None)

    def hard_weight_at(self, step: Any) -> Any:
        """Weight of the student's own loss at a step."""
        if self._hard_weight is not None:
            return self._hard_weight
        left = 1.0 - sum(weight_at(loss, step) for loss in self.of_outputs)
        return max(left, 0.0) if isinstance(left, float) else tf.maximum(left, 0.0)

    def of_teacher(self, teacher: Any, student: Any, labels: Any, sample_weight: Any, step: Any) -> list[Any]:
        """The mean of each loss of outputs, shape `()`; of several outputs, logits and labels are by name."""
        found = []
        for name, loss in zip(self._of, self.of_outputs, strict=True):
            sides = (teacher, student) if name is None else (teacher[name], student[name])
            # An output without labels has none for its losses: each says what it does then.
            target = labels if name is None or labels is None else labels.get(name)
            options = {"labels": target} if takes_labels(loss) and target is not None else {}
            options |= {"step": step} if isinstance(loss, Scheduled) else {}
            found.append(_averaged(self._argument, loss, loss(*sides, **options), sample_weight))
        return found

    def of_features(self, per_sample: Sequence[Any], sample_weight: Any) -> list[Any]:
        """The mean of each loss of features, shape `()`, from its values of each sample."""
        return [
            _averaged(self._argument, loss, values, sample_weight)
            for loss, values in zip(self._of_features, per_sample, strict=True)
        ]

    def total(self, hard: Any, outputs: Sequence[Any], features: Sequence[Any], step: Any) -> tuple[Any, Any, Any]:
        """What is minimized, and of it the weighted sums of the losses of outputs and of features.

        Args:
            hard: The student's own loss, as this replica's share.
            outputs: What `of_teacher` gives.
            features: What `of_features` gives.
            step: The number of the step.
        """
        share = 1 / tf.distribute.get_strategy().num_replicas_in_sync
        means = [share * mean for mean in (*outputs, *features)]
        losses = (*self.of_outputs, *self._of_features)
        weighted = [weight_at(loss, step) * mean for loss, mean in zip(losses, means, strict=True)]
        soft, of_features = (
            tf.add_n([tf.constant(0.0), *part]) for part in (weighted[: len(outputs)], weighted[len(outputs) :])
        )
        if self.learned is None:
            return self.hard_weight_at(step) * hard + soft + of_features, soft, of_features
        return self.learned([hard, *means], share=share), soft, of_features


def _averaged(argument: str, loss: Any, per_sample: Any, sample_weight: Any) -> Any:
    """The mean over the batch, of each sample times its weight."""
    _check_per_sample(argument, loss, per_sample, sample_weight)
    if sample_weight is not None:
        per_sample = per_sample * ops.cast(ops.reshape(sample_weight, (-1,)), "float32")
    per_sample = ops.cast(per_sample, "float32")
    # A replica may be left without samples.
    return ops.divide_no_nan(ops.sum(per_sample), ops.cast(ops.shape(per_sample)[0], "float32"))


def _check_per_sample(argument: str, loss: Any, values: Any, sample_weight: Any) -> None:
    """Raises an `InvalidArgumentError` if values of a loss are not one for each sample, or cannot be weighted."""
    shape = tf.convert_to_tensor(values).shape
    if shape.rank not in (None, 1):
        raise InvalidArgumentError(
            argument, f"callables with one value per sample, shape (batch,), {loss!r} too", tuple(shape)
        )
    if sample_weight is None:
        return
    if getattr(loss, "needs_whole_batch", False):
        raise InvalidArgumentError(
            "sample_weight", f"left out with {loss!r}, which gives one value per batch", "sample weights"
        )
    weights_shape = tf.convert_to_tensor(sample_weight).shape
    if weights_shape.rank is not None and any(size not in (None, 1) for size in weights_shape[1:]):
        raise InvalidArgumentError(
            "sample_weight", "one number per sample; `WhereLabelled` leaves positions out", tuple(weights_shape)
        )
