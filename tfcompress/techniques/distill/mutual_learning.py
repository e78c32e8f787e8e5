"""`MutualLearning`: a Keras model that trains several students, each of which learns from the others.

Invariant: a student is moved by its own loss only: what the others say in a step teaches it, with no gradient to them.
Left out: features, and teachers, which `Distiller` has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError
from tfcompress.graph.trace import has_graph
from tfcompress.techniques.distill.distiller import first_inputs
from tfcompress.techniques.distill.fitting import check_student
from tfcompress.techniques.distill.losses import SoftTargets
from tfcompress.techniques.distill.objective import DistillationLoss, Objective, own_loss
from tfcompress.techniques.distill.student_outputs import StudentOutputs
from tfcompress.techniques.listening import step_counter


class MutualLearning(keras.Model):
    """Trains several students together, without a teacher.

    The loss of a student is `hard_weight * own + sum(weight * loss)`, where each loss is its mean over the other
    students, with what they say in the same step as the teacher's outputs; plus its regularizers. Each learns as fast
    as it would alone: the optimizer is given the gradient of the sum. An optimizer that looks at all gradients at once,
    as by `global_clipnorm`, sees those of all students.

    It is compiled, fitted and given callbacks like any Keras model. The loss and each metric are logged for each
    student, as `loss_1` and `accuracy_1`, and as their mean, `loss` and `accuracy`. `evaluate` and validation are on
    the labels alone; `predict` gives a list of all students' outputs. `save` writes a file for each student, with `_1`
    and so on at the end of its name; `save_weights` writes one of all.

    Args:
        students: At least two Keras models, which take the same inputs and give outputs of one shape. They train in
            place.
        losses: Distillation losses of outputs, each with a `weight`, from those of another student to a student's own.
            A plain callable counts with a weight of 1. One with a parameter `labels` is given the labels of the batch.
            None is the paper's, `[SoftTargets(temperature=1.0, weight=1.0)]`.
        hard_weight: Weight of each student's loss on the labels, at least 0.

    Raises:
        InvalidArgumentError: If an argument is none of these, or the students' outputs differ in shape.

    Example:
        >>> students = [keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in range(2)]
        >>> mutual = MutualLearning(students)
        >>> own = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> mutual.compile("adam", loss=own, metrics=["accuracy"])
        >>> history = mutual.fit(tf.ones((8, 4)), tf.zeros((8,)), verbose=0)
        >>> sorted(history.history)
        ['accuracy', 'accuracy_1', 'accuracy_2', 'loss', 'loss_1', 'loss_2']

    Reference:
        Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", 2018, https://arxiv.org/abs/1706.00384
    """

    def __init__(
        self,
        students: Sequence[keras.Model],
        losses: Sequence[DistillationLoss] | None = None,
        *,
        hard_weight: float = 1.0,
        name: str | None = None,
    ):
        super().__init__(name=name)
        _check_students(students)
        if losses is None:
            losses = [SoftTargets(temperature=1.0, weight=1.0)]
        self._objective = Objective(losses, hard_weight, False, owner="MutualLearning")
        if self._objective.pairs:
            raise InvalidArgumentError(
                "MutualLearning.losses", "losses of outputs; features are compared by `Distiller`", losses
            )
        self.students = list(students)
        self._members = _Members(students)
        self._check_comparable()
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> list[Any]:
        """The outputs of each student."""
        return [student(inputs, training=training) for student in self.students]

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, *, metrics: Any = None, **kwargs: Any) -> None:
        """As `keras.Model.compile`; the loss and metrics are those of each student, on the labels.

        Raises:
            InvalidArgumentError: If the loss takes logits and a student gives probabilities, or the other way round, or
                there are `loss_weights`.
        """
        if kwargs.get("loss_weights") is not None:
            weights = kwargs["loss_weights"]
            raise InvalidArgumentError("loss_weights", "None: the weight of the labels is `hard_weight`", weights)
        super().compile(optimizer, loss, metrics=metrics, **kwargs)
        self._members.compile(loss, metrics, kwargs.get("weighted_metrics"))

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`; what the outputs of students without a graph are is found out before the first step."""
        self._look_at(first_inputs(x))
        return super().fit(x, *args, **kwargs)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`; what is not known of the outputs is found out before."""
        self._look_at(keras.tree.map_structure(keras.ops.convert_to_tensor, x))
        return super().train_on_batch(x, *args, **kwargs)

    def train_step(self, data: Any) -> dict:
        """One step on a batch `(x, y)` or `(x, y, sample_weight)`."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        step = step_counter(self.optimizer).value
        members = self._members.each
        with tf.GradientTape() as tape:
            outputs = self(x, training=True)
            logits = [member.outputs_of.logits(given) for member, given in zip(members, outputs, strict=True)]
            losses = []
            for at, member in enumerate(members):
                hard, regularization = own_loss(member, x, y, outputs[at], sample_weight)
                soft = [
                    self._objective.of_teacher(tf.stop_gradient(other), logits[at], y, sample_weight, step)
                    for other in (*logits[:at], *logits[at + 1 :])
                ]
                means = [tf.add_n(of_loss) / len(of_loss) for of_loss in zip(*soft, strict=True)]
                losses.append(self._objective.total(hard, means, [], step)[0] + regularization)
            scaled_loss = self.optimizer.scale_loss(tf.add_n(losses))
        trainable = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(scaled_loss, trainable), trainable, strict=True))
        for member, loss in zip(members, losses, strict=True):
            member.note(loss, tf.shape(outputs[0])[0])
        return self.compute_metrics(x, y, outputs, sample_weight=sample_weight)

    def _look_at(self, inputs: Any) -> None:
        """Finds out what students without a graph give, and whether the losses can compare it."""
        for member in self._members.each:
            member.outputs_of.find_out(inputs)
        self._check_comparable()

    def _check_comparable(self) -> None:
        for name, loss in self._objective.by_output:
            for member in self._members.each:
                check_student(loss, member.student, member.outputs_of, name)

    def test_step(self, data: Any) -> dict:
        """As `keras.Model.test_step`, of each student alone."""
        for member in self._members.each:
            member.test_step(data)
        return self.get_metrics_result()

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The mean of the students' losses on the labels, with their regularizers."""
        losses = [
            member.compute_loss(x, y, outputs, *args, **kwargs)
            for member, outputs in zip(self._members.each, y_pred, strict=True)
        ]
        return keras.ops.mean(keras.ops.stack(losses))

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict:
        """Updates the metrics of each student, and gives all that is logged."""
        for member, outputs in zip(self._members.each, y_pred, strict=True):
            member.compute_metrics(x, y, outputs, sample_weight)
        return self.get_metrics_result()

    def get_metrics_result(self) -> dict:
        """All that is logged."""
        return self._members.results()

    def reset_metrics(self) -> None:
        """As `keras.Model.reset_metrics`."""
        super().reset_metrics()
        for member in self._members.each:
            member.reset_metrics()

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Saves each student: the first of `best.keras` as `best_1.keras`; `ModelCheckpoint` comes here too."""
        path = Path(filepath)
        for number, student in enumerate(self.students, 1):
            student.save(path.with_name(f"{path.stem}_{number}{path.suffix}"), *args, **kwargs)

    def get_config(self) -> dict:
        raise NotImplementedError("A MutualLearning is a way to train. Save its `students`, or call its `save`.")


class _Member(keras.Model):
    """A student with its own loss and metrics, which leaves those alone that the student was compiled with."""

    def __init__(self, student: keras.Model):
        super().__init__(name=student.name)  # Its class's is no name of a scope.
        self.student = student
        self.outputs_of = StudentOutputs(student, None)
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self.student(inputs, training=training)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        super().compile(*args, **kwargs)
        self.outputs_of.classes_of(self.loss)

    def note(self, loss: Any, batch_size: Any) -> None:
        """Takes the loss of a step, as this replica's share, into the mean that is logged."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self._loss_tracker.update_state(loss * replicas, sample_weight=batch_size)


class _Members:
    """All students; a class that Keras's attribute tracking does not know, since the students are tracked already."""

    def __init__(self, students: Sequence[keras.Model]):
        self.each = tuple(_Member(student) for student in students)

    def compile(self, loss: Any, metrics: Any, weighted_metrics: Any) -> None:
        """Gives each the loss, and metrics of its own."""
        for member in self.each:
            member.compile("sgd", loss, metrics=_again(metrics), weighted_metrics=_again(weighted_metrics))

    def results(self) -> dict[str, Any]:
        """What is logged: the mean over all under each name, and the values of each."""
        found = [member.get_metrics_result() for member in self.each]
        logs = {name: tf.add_n([result[name] for result in found]) / len(found) for name in found[0]}
        return logs | {
            f"{name}_{number}": value for number, result in enumerate(found, 1) for name, value in result.items()
        }


def _again(metrics: Any) -> Any:
    """Metrics of the same kinds, with a state of their own."""
    return keras.tree.map_structure(
        lambda metric: (
            type(metric).from_config(metric.get_config()) if isinstance(metric, keras.metrics.Metric) else metric
        ),
        metrics,
    )


def _check_students(students: Any) -> None:
    models = isinstance(students, list | tuple) and all(isinstance(student, keras.Model) for student in students)
    if not models or len({id(student) for student in students}) < max(len(students), 2):
        raise InvalidArgumentError("MutualLearning.students", "a list of at least two different Keras models", students)
    shapes = [student.output_shape for student in students if has_graph(student)]
    if any(not isinstance(shape, tuple) for shape in shapes) or len({shape[1:] for shape in shapes}) > 1:
        raise InvalidArgumentError("MutualLearning.students", "models that each give one tensor, of one shape", shapes)
