"""`Distiller`: a Keras model that trains a student under a teacher, with its own `train_step`.

Invariant: only the student trains, and only the student is saved; the teacher's weights, flags and precision stay as
they are. `evaluate` and validation are the student's own, without the teacher. Left out: how outputs and features are
compared, which the losses say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcompress.data.taught import TaughtInputs
from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.collapse import CollapseWatch
from tfcompress.techniques.distill.features.comparison import Comparison
from tfcompress.techniques.distill.fitting import check_student, check_teacher
from tfcompress.techniques.distill.mixing import CutMix, Mixed, Mixup
from tfcompress.techniques.distill.objective import DistillationLoss, Objective, own_loss
from tfcompress.techniques.distill.several_outputs import TeacherOfSeveral
from tfcompress.techniques.distill.several_teachers import Ensemble, as_teacher
from tfcompress.techniques.distill.stored_outputs import StoredOutputs
from tfcompress.techniques.distill.student_outputs import StudentOutputs
from tfcompress.techniques.distill.teacher import Teacher, probabilities_to_logits
from tfcompress.techniques.distill.training_state import read_state, write_state
from tfcompress.techniques.listening import step_counter
from tfcompress.training.unlabelled import count_labels

_OF_TRAINING = ("hard_loss", "distillation_loss", "feature_loss")


class Distiller(keras.Model):
    """Trains `student` on its own loss and on its teacher's outputs.

    The loss of a step is `hard_weight * own + sum(loss.weight * loss)`, averaged over the batch with the sample
    weights, plus the student's regularizers. What `Features` need between the networks is trained along, in
    `trained_along`, and not saved. It is compiled, fitted and given callbacks like any Keras model; the
    student can be used at any time, and `save` saves it alone.

    Args:
        student: The Keras model that trains. Its outputs are class logits or probabilities, shape `(batch, classes)`.
        teacher: A Keras model, a model file, a callable, a `Teacher`, or outputs that are stored (`cache_teacher`,
            `StoredOutputs`), whose `train_batches` it is then fitted on.
        losses: Distillation losses of outputs, and `Features` of layers; each has a `weight`. A plain callable, or a
            loss of `keras.distillation`, counts with a weight of 1. One with a parameter `labels` is given the labels
            of the batch. Where both networks have several outputs, a dict with a list of losses for each output by its
            name; `hard_weight` is then given, too.
        hard_weight: Weight of the student's own loss; by default what the losses of outputs leave of 1.
        learn_weights: Whether the weights are learned along, from the given ones; see `LearnedWeights`.
        mix: Mixes pictures in each step, for the student and the teacher. Losses are then given no labels.

    Raises:
        InvalidArgumentError: If the weights or the numbers of classes do not fit, or there is no such layer.

    Example:
        >>> from tfcompress.techniques.distill import SoftTargets
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
        losses: Sequence[DistillationLoss] | Mapping[str, Sequence[DistillationLoss]] | None = None,
        *,
        hard_weight: float | None = None,
        learn_weights: bool = False,
        mix: Mixup | CutMix | None = None,
        name: str | None = None,
    ):
        super().__init__(name=name)
        if not isinstance(student, keras.Model):
            raise InvalidArgumentError(
                "student", "a Keras 3 model, which trains in place; `tfcompress.load` reads files and tf_keras", student
            )
        if mix is not None and not isinstance(mix, Mixup | CutMix):
            raise InvalidArgumentError("Distiller.mix", "a Mixup, a CutMix or None", mix)
        objective = Objective(losses, hard_weight, learn_weights)
        self.student = student
        # None of these is a layer, which Keras would track: a tracked teacher would be trained, counted and saved.
        self.teacher = _in_scope(teacher, objective.names)
        self._outputs = StudentOutputs(student, objective.names)
        self._objective, self._mix = objective, mix
        self._comparison = Comparison(objective.pairs, student, getattr(self.teacher, "source", self.teacher))
        self._comparison.build_from_graphs()
        self.trained_along = self._layers_along()
        self._num_classes: int | None = None
        self._ignored: int | None = None
        self._looked_at = False
        self._hard_loss = keras.metrics.Mean(name="hard_loss")
        self._distillation_loss = keras.metrics.Mean(name="distillation_loss")
        self._feature_loss = keras.metrics.Mean(name="feature_loss") if objective.pairs else None
        self._outputs.check_classes(self.teacher.num_classes)
        self._check_comparable()
        self.built = True

    @property
    def output_names(self) -> list[str] | None:
        """Names of the student's outputs, by which Keras finds the loss of each."""
        return getattr(self.student, "output_names", None)

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
        self._num_classes = self._outputs.classes_of(self.loss)
        self._ignored = getattr(self.loss, "ignore_class", None)
        if not self.teacher.compiles:
            if kwargs.get("jit_compile") is True:
                name = getattr(self.teacher, "name", "this teacher")
                raise InvalidArgumentError("jit_compile", f"False with {name}, which XLA cannot run", True)
            self.jit_compile = False

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As `keras.Model.fit`; the teacher is looked at before the first step, and the plain loss after each epoch."""
        self._look_at(first_inputs(x))
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            given = keras.tree.flatten(callbacks if callbacks is not None else [])
            # What guessing costs is known where each sample counts 1.
            callbacks = [*given, CollapseWatch(None if _weighted(x, kwargs) else self._num_classes)]
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`; the teacher is looked at before the first one."""
        if not self._looked_at:
            self._look_at(keras.tree.map_structure(keras.ops.convert_to_tensor, x))
        return super().train_on_batch(x, *args, **kwargs)

    def _look_at(self, inputs: Any) -> None:
        """Finds out what networks without a graph do not tell before they see inputs, and whether all fits it."""
        self.teacher.find_out_outputs(inputs)
        # A callable's classes are known only now.
        self._outputs.check_classes(self.teacher.num_classes)
        self._outputs.find_out(_without_outputs(inputs))
        if self.compiled:
            self._num_classes = self._outputs.classes_of(self.loss)
        self._check_comparable()
        if not self._comparison.build_from_graphs():
            prepared = self.teacher.prepare(inputs) if isinstance(self.teacher, Teacher) else inputs
            specs = [keras.tree.map_structure(_spec, _without_outputs(each)) for each in (prepared, inputs)]
            with self.distribute_strategy.scope():
                self._comparison.build(*specs)
            self.trained_along = self._layers_along()
        self._looked_at = True

    def train_step(self, data: Any) -> dict:
        """One step on a batch `(x, y)` or `(x, y, sample_weight)`."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        comparison, objective = self._comparison, self._objective
        if isinstance(sample_weight, Mapping | list | tuple):
            raise InvalidArgumentError("sample_weight", "one number per sample, not one for each output", sample_weight)
        step = step_counter(self.optimizer).value
        mixed = None if self._mix is None else self._mix(_without_outputs(x), step)
        with comparison.listening("teacher") as of_teacher:
            teacher_logits = self._taught(x, y, mixed)
        x = _without_outputs(x) if mixed is None else mixed.inputs
        taught_weight = _mixture(sample_weight, mixed)
        with tf.GradientTape() as tape:
            with comparison.listening("student") as of_student:
                outputs = self.student(x, training=True)
            hard, regularization = self._own_loss(x, y, outputs, sample_weight, mixed)
            student_logits = self._outputs.logits(outputs)
            labels = self._outputs.labels(y) if mixed is None else None
            soft = objective.of_teacher(teacher_logits, student_logits, labels, taught_weight, step)
            features = objective.of_features(comparison.losses(of_teacher, of_student), taught_weight)
            loss, soft, features = objective.total(hard, soft, features, step)
            loss += regularization
            # Keras sums gradients over replicas, so each brings its share. Its own losses have done that already.
            scaled_loss = self.optimizer.scale_loss(loss)
        trainable = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(scaled_loss, trainable), trainable, strict=True))
        if hasattr(self.teacher, "follow"):
            self.teacher.follow(self.student)
        batch_size = tf.shape(keras.tree.flatten(outputs)[0])[0]
        # The plain loss is the mean of a batch's labels: of an epoch, too.
        labelled = batch_size if self._ignored is None else count_labels(y, self._ignored)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self._hard_loss.update_state(hard * replicas, sample_weight=labelled)
        logged = [(self._loss_tracker, loss), (self._distillation_loss, soft)]
        logged += [(self._feature_loss, features)] if self._feature_loss is not None else []
        for metric, value in logged:
            metric.update_state(value * replicas, sample_weight=batch_size)
        return self.compute_metrics(x, y, outputs, sample_weight=sample_weight)

    def test_step(self, data: Any) -> dict:
        """As `keras.Model.test_step`: the student alone, so what only training has is left out."""
        logs = super().test_step(data)
        return {name: value for name, value in logs.items() if name not in _OF_TRAINING}

    def _taught(self, x: Any, y: Any, mixed: Mixed | None) -> Any:
        """The teacher's logits for a batch; of stored outputs, those of a mixture are mixed themselves."""
        if mixed is None:
            return self.teacher.logits(x, y)
        if not isinstance(x, TaughtInputs):
            return self.teacher.logits(mixed.inputs)
        probabilities = tf.nn.softmax(self.teacher.logits(x))
        return probabilities_to_logits(mixed.blend(probabilities, mixed.of(probabilities)))

    def _own_loss(self, x: Any, y: Any, outputs: Any, sample_weight: Any, mixed: Mixed | None) -> tuple[Any, Any]:
        """The student's loss on the labels, of a mixture on those of both samples in it, and its regularizers apart."""
        if isinstance(self._mix, CutMix) and any(len(one.shape) > 2 for one in keras.tree.flatten(outputs)):
            shapes = [tuple(one.shape) for one in keras.tree.flatten(outputs)]
            raise InvalidArgumentError("mix", "Mixup where outputs have positions, which CutMix would blend", shapes)
        hard, regularization = own_loss(self, x, y, outputs, sample_weight)
        if mixed is None:
            return hard, regularization
        weights = None if sample_weight is None else mixed.of(sample_weight)
        of_partners, _ = own_loss(self, x, keras.tree.map_structure(mixed.of, y), outputs, weights)
        return mixed.blend(hard, of_partners), regularization

    def _layers_along(self) -> list[keras.layers.Layer]:
        learned = self._objective.learned
        return [*self._comparison.layers, *([] if learned is None else [learned])]

    def save_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the student's weights, and what the training needs to go on beside them; callbacks come here too."""
        self.student.save_weights(filepath, *args, **kwargs)
        write_state(filepath, self._state())

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Loads what `save_weights` wrote, or a file of the student alone."""
        self.student.load_weights(filepath, *args, **kwargs)
        if self.optimizer is not None and not self.optimizer.built:
            # Before the first step, it has no variables to read the file's into.
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        read_state(filepath, self._state())

    def _state(self) -> list[keras.Variable]:
        """What a training has beside the student's weights."""
        along = [variable for layer in self.trained_along for variable in layer.variables]
        averaged = getattr(self.teacher, "variables", ())
        return [*along, *averaged, *(self.optimizer.variables if self.optimizer is not None else [])]

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the student; `ModelCheckpoint` comes here too."""
        self.student.save(filepath, *args, **kwargs)

    def get_config(self) -> dict:
        raise NotImplementedError("A Distiller is a way to train. Save `distiller.student`, or call `distiller.save`.")

    def _check_comparable(self) -> None:
        """Raises where a loss cannot compare the outputs, as far as these are known by now."""
        for name, loss in self._objective.by_output:
            check_teacher(loss, self.teacher, name, mixes=self._mix is not None)
            check_student(loss, self.student, self._outputs, name)


def _mixture(sample_weight: Any, mixed: Mixed | None) -> Any:
    """Weights of a mixture's samples."""
    if sample_weight is None or mixed is None:
        return sample_weight
    sample_weight = tf.cast(sample_weight, tf.float32)
    return mixed.blend(sample_weight, mixed.of(sample_weight))


def _without_outputs(inputs: Any) -> Any:
    """The inputs alone, where a teacher's outputs came along."""
    return inputs.inputs if isinstance(inputs, TaughtInputs) else inputs


def _in_scope(teacher: Any, names: Sequence[str] | None) -> Teacher | Ensemble | StoredOutputs | TeacherOfSeveral:
    """The teacher of an output, or of several; under a distribution strategy Keras models are copied into its scope."""
    if names is not None:
        return TeacherOfSeveral(teacher, names).in_scope()
    return teacher if isinstance(teacher, StoredOutputs) else as_teacher(teacher).in_scope()


def _weighted(x: Any, options: Mapping[str, Any]) -> bool:
    """Whether samples have weights, as far as that is known before the first batch."""
    if any(options.get(name) is not None for name in ("sample_weight", "class_weight")):
        return True
    return isinstance(x, tf.data.Dataset) and isinstance(x.element_spec, tuple) and len(x.element_spec) > 2


def _spec(tensor: Any) -> tf.TensorSpec:
    """What a batch of any size is."""
    return tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype)


def first_inputs(x: Any) -> Any:
    """A few inputs from what `fit` was given."""
    if isinstance(x, tf.data.Dataset):
        batch = next(iter(x.take(1)), None)
        if batch is None:
            raise InvalidArgumentError("x", "a tf.data.Dataset of at least one batch", "an empty one")
        return batch[0] if isinstance(batch, tuple) else batch
    if isinstance(x, keras.utils.PyDataset):
        return x[0][0]
    if all(hasattr(array, "__getitem__") for array in keras.tree.flatten(x)):
        return keras.tree.map_structure(lambda array: keras.ops.convert_to_tensor(array[:8]), x)
    raise InvalidArgumentError("x", "arrays, tensors, a tf.data.Dataset or a keras.utils.PyDataset", type(x))
