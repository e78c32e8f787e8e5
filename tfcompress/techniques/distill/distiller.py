"""`Distiller`: a Keras model that trains a student under a teacher, with its own `train_step`.

Invariant: only the student trains, and only the student is saved; the teacher's weights, flags and precision stay as
they are. `evaluate` and validation are the student's own, without the teacher. Left out: features inside the networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcompress.data.taught import TaughtInputs
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.outputs import are_probabilities, ends_in_sigmoid, gives_probabilities
from tfcompress.graph.trace import has_graph
from tfcompress.techniques.distill.keras_losses import as_loss
from tfcompress.techniques.distill.losses import SoftTargets
from tfcompress.techniques.distill.multi_label import MultiLabelTargets
from tfcompress.techniques.distill.outputs import takes_labels
from tfcompress.techniques.distill.stored_outputs import StoredOutputs
from tfcompress.techniques.distill.teacher import Teacher, probabilities_to_logits

_LOSSES_OF_PROBABILITIES = (keras.losses.sparse_categorical_crossentropy, keras.losses.categorical_crossentropy)

DistillationLoss = Callable[..., Any]


class Distiller(keras.Model):
    """Trains `student` on its own loss and on its teacher's outputs.

    The loss of a step is `hard_weight * own + sum(loss.weight * loss)`, averaged over the batch with the sample
    weights, plus the student's regularizers. It is compiled, fitted and given callbacks like any Keras model; the
    student can be used at any time, and `save` saves it alone.

    Args:
        student: The Keras model that trains. Its outputs are class logits or probabilities, shape `(batch, classes)`.
        teacher: A Keras model, a model file, a callable, a `Teacher`, or outputs that are stored (`cache_teacher`,
            `StoredOutputs`), whose `train_batches` it is then fitted on.
        losses: Distillation losses; each has a `weight`. A plain callable, or a loss of `keras.distillation`, counts
            with a weight of 1. One with a parameter `labels` is given the labels of the batch.
        hard_weight: Weight of the student's own loss; by default what the losses leave of 1.

    Raises:
        InvalidArgumentError: If the weights or the numbers of classes do not fit.

    Example:
        >>> student, teacher = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in range(2))
        >>> distiller = Distiller(student, teacher, losses=[SoftTargets(temperature=4.0, weight=0.9)])
        >>> own = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> distiller.compile("adam", loss=own, metrics=["accuracy"])
        >>> history = distiller.fit(tf.ones((8, 4)), tf.zeros((8,)), verbose=0)
        >>> sorted(history.history)
        ['accuracy', 'distillation_loss', 'hard_loss', 'loss']

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, https://arxiv.org/abs/1503.02531
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: Any,
        losses: Sequence[DistillationLoss] | None = None,
        *,
        hard_weight: float | None = None,
        name: str | None = None,
    ):
        super().__init__(name=name)
        losses = [SoftTargets()] if losses is None else [as_loss("Distiller.losses", loss) for loss in losses]
        weights = [float(getattr(loss, "weight", 1.0)) for loss in losses]
        if not losses:
            raise InvalidArgumentError("Distiller.losses", "at least one callable (teacher, student) -> loss", losses)
        if hard_weight is None:
            hard_weight = 1.0 - sum(weights)
            if hard_weight < -1e-9:
                raise InvalidArgumentError(
                    "Distiller.losses", "with weights that add up to at most 1, or `hard_weight` given", weights
                )
        if hard_weight < -1e-9:
            raise InvalidArgumentError("Distiller.hard_weight", "at least 0", hard_weight)
        self.student = student
        self.hard_weight = max(hard_weight, 0.0)
        self._student_gives_probabilities = gives_probabilities(student)
        # Keras tracks what it sees in attributes: a tracked teacher would be trained, counted and saved.
        self._teacher = _Untracked(_in_scope(teacher))
        self._losses_and_weights = tuple(
            (loss, weight, takes_labels(loss)) for loss, weight in zip(losses, weights, strict=True)
        )
        self._hard_loss = keras.metrics.Mean(name="hard_loss")
        self._distillation_loss = keras.metrics.Mean(name="distillation_loss")
        self._check_classes()
        self._check_labels_have_logits()
        self.built = True

    @property
    def teacher(self) -> Teacher | StoredOutputs:
        """The teacher, as it was wrapped."""
        return self._teacher.value

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The student's outputs."""
        return self.student(_without_outputs(inputs), training=training)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.compile`; the loss and metrics are the student's own, on the labels.

        Raises:
            InvalidArgumentError: If the loss takes logits and the student gives probabilities, or the other way round,
                or if `jit_compile=True` meets a teacher that XLA cannot compile.
        """
        super().compile(*args, **kwargs)
        loss = keras.losses.get(self.loss) if isinstance(self.loss, str) else self.loss
        # A loss by its name, or as a function, has the default of `from_logits`, which is to take probabilities.
        from_logits = getattr(loss, "from_logits", False if loss in _LOSSES_OF_PROBABILITIES else None)
        if from_logits is not None and has_graph(self.student) and from_logits == self._student_gives_probabilities:
            gives = "probabilities" if self._student_gives_probabilities else "logits"
            raise InvalidArgumentError(
                "loss", f"a loss with from_logits={not from_logits}, since the student gives {gives}", self.loss
            )
        if not self.teacher.compiles:
            if kwargs.get("jit_compile") is True:
                raise InvalidArgumentError("jit_compile", "False with a .tflite teacher, which XLA cannot run", True)
            self.jit_compile = False

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`; the teacher is looked at before the first step."""
        inputs = _first_inputs(x)
        self.teacher.find_out_outputs(inputs)
        if not has_graph(self.student):
            # Without a graph, only outputs tell what they are.
            outputs = self.student(_without_outputs(inputs), training=False)
            self._student_gives_probabilities = are_probabilities(keras.ops.convert_to_numpy(outputs))
        return super().fit(x, *args, **kwargs)

    def train_step(self, data: Any) -> dict:
        """One step on a batch `(x, y)` or `(x, y, sample_weight)`."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        teacher_logits = self.teacher.logits(x)
        x = _without_outputs(x)
        with tf.GradientTape() as tape:
            outputs = self.student(x, training=True)
            hard, regularization = self._own_loss(x, y, outputs, sample_weight)
            soft = self._soft_loss(teacher_logits, outputs, y, sample_weight)
            loss = self.hard_weight * hard + soft + regularization
            # Keras sums gradients over replicas, so each brings its share. Its own losses have done that already.
            scaled_loss = self.optimizer.scale_loss(loss)
        trainable = self.student.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(scaled_loss, trainable), trainable, strict=True))
        batch_size = tf.shape(outputs)[0]
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        for metric, value in ((self._loss_tracker, loss), (self._hard_loss, hard), (self._distillation_loss, soft)):
            metric.update_state(value * replicas, sample_weight=batch_size)
        return self.compute_metrics(x, y, outputs, sample_weight=sample_weight)

    def test_step(self, data: Any) -> dict:
        """As `keras.Model.test_step`: the student alone, so what only training has is left out."""
        logs = super().test_step(data)
        return {name: value for name, value in logs.items() if name not in ("hard_loss", "distillation_loss")}

    def _own_loss(self, x: Any, y: Any, outputs: Any, sample_weight: Any) -> tuple[Any, Any]:
        """The student's loss on its labels, and its regularizers apart, since `hard_weight` is not for those."""
        total = tf.cast(self.compute_loss(x, y, outputs, sample_weight, training=True), tf.float32)
        if not self.losses:
            return total, 0.0
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        regularization = tf.add_n([tf.cast(loss, tf.float32) for loss in self.losses]) / replicas
        return total - regularization, regularization

    def _soft_loss(self, teacher_logits: Any, outputs: Any, labels: Any, sample_weight: Any) -> Any:
        """The weighted sum of the distillation losses, averaged as Keras averages its own."""
        if self._student_gives_probabilities:
            student_logits = probabilities_to_logits(outputs)
        else:
            student_logits = tf.cast(outputs, tf.float32)
        total = tf.constant(0.0)
        for loss, weight, labelled in self._losses_and_weights:
            options = {"labels": labels} if labelled and labels is not None else {}
            per_sample = loss(teacher_logits, student_logits, **options)
            _check_per_sample(loss, per_sample, sample_weight)
            if sample_weight is not None:
                per_sample = per_sample * tf.cast(tf.reshape(sample_weight, [-1]), tf.float32)
            total += weight * tf.reduce_mean(per_sample)
        return total / tf.distribute.get_strategy().num_replicas_in_sync

    def save_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the student's weights; `ModelCheckpoint(save_weights_only=True)` comes here too."""
        self.student.save_weights(filepath, *args, **kwargs)

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Loads weights that `save_weights` wrote into the student."""
        self.student.load_weights(filepath, *args, **kwargs)

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the student; `ModelCheckpoint` comes here too."""
        self.student.save(filepath, *args, **kwargs)

    def get_config(self) -> dict:
        raise NotImplementedError("A Distiller is a way to train. Save `distiller.student`, or call `distiller.save`.")

    def _check_classes(self) -> None:
        if has_graph(self.student) and not isinstance(self.student.output_shape, tuple):
            raise ModelError(
                f"A student must give one tensor. Received: {self.student.name!r} with outputs of shapes "
                f"{self.student.output_shape}. Distill a model with the one output that its teacher has."
            )
        expected = self.teacher.num_classes
        received = keras.tree.flatten(self.student.output_shape)[-1] if has_graph(self.student) else None
        if None not in (expected, received) and expected != received:
            raise InvalidArgumentError("student", f"a model of {expected} classes, as its teacher is", received)

    def _check_labels_have_logits(self) -> None:
        if not any(isinstance(loss, MultiLabelTargets) for loss, *_ in self._losses_and_weights):
            return
        for side, model in (("student", self.student), ("teacher", getattr(self.teacher, "source", None))):
            if isinstance(model, keras.Model) and _gives_sigmoids(model):
                raise InvalidArgumentError(
                    side, "a model of logits with MultiLabelTargets: leave out the sigmoid at its end", model.name
                )


class _Untracked:
    """Hides a value from Keras's attribute tracking."""

    def __init__(self, value: Any):
        self.value = value


def _without_outputs(inputs: Any) -> Any:
    """The inputs alone, where a teacher's outputs came along."""
    return inputs.inputs if isinstance(inputs, TaughtInputs) else inputs


def _in_scope(teacher: Any) -> Teacher | StoredOutputs:
    """The teacher; under a distribution strategy a Keras model is copied into its scope."""
    if isinstance(teacher, StoredOutputs):
        return teacher
    teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher)
    if tf.distribute.has_strategy() and isinstance(teacher.source, keras.Model):
        copy = keras.models.clone_model(teacher.source)
        copy.set_weights(teacher.source.get_weights())
        teacher = teacher.with_source(copy)
    return teacher


def _gives_sigmoids(model: keras.Model) -> bool:
    try:
        return has_graph(model) and ends_in_sigmoid(model)
    except ModelError:
        return False  # A graph that cannot be followed says nothing about its end.


def _check_per_sample(loss: DistillationLoss, values: Any, sample_weight: Any) -> None:
    """Raises an `InvalidArgumentError` if values of a loss are not one for each sample, or cannot be weighted."""
    shape = tf.convert_to_tensor(values).shape
    if shape.rank not in (None, 1):
        raise InvalidArgumentError(
            "Distiller.losses", f"callables with one value per sample, shape (batch,), {loss!r} too", tuple(shape)
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


def _first_inputs(x: Any) -> Any:
    """A few inputs from what `fit` was given."""
    if isinstance(x, tf.data.Dataset):
        batch = next(iter(x.take(1)))
        return batch[0] if isinstance(batch, tuple) else batch
    if isinstance(x, keras.utils.PyDataset):
        return x[0][0]
    if all(hasattr(array, "__getitem__") for array in keras.tree.flatten(x)):
        return keras.tree.map_structure(lambda array: keras.ops.convert_to_tensor(array[:8]), x)
    raise InvalidArgumentError("x", "arrays, tensors, a tf.data.Dataset or a keras.utils.PyDataset", type(x))
