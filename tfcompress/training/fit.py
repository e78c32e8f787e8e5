"""`fit`: the one way in which tfcompress trains, for every stage and every technique.

Invariant: the model that comes in is not changed; the one that goes out is a float32 Keras model of the same structure,
outside of any distribution strategy, whatever it was trained in. Left out: what makes a training special, which comes
in as a wrapper (a distiller) and as callbacks (pruning, freezing).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfcompress.data import Dataset
from tfcompress.errors import InvalidArgumentError
from tfcompress.graph.outputs import gives_probabilities
from tfcompress.train_settings import TrainSettings
from tfcompress.training.checkpoint import BestEpoch, EpochCheckpoint, StopOnNaN
from tfcompress.training.copying import copy_model
from tfcompress.training.optimizers import make_optimizer
from tfcompress.training.progress import ProgressBar
from tfcompress.training.unlabelled import AccuracyOfLabelled, LossOfLabelled

EVALUATION_BATCH = 256


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a training gives.

    Args:
        model: The trained model.
        history: For each logged quantity its value after each epoch.
        seconds: Time it took; of a resumed training, only since it resumed.
    """

    model: keras.Model
    history: dict[str, list[float]]
    seconds: float


def fit(
    model: keras.Model,
    data: Dataset,
    settings: TrainSettings,
    *,
    batch_size: int,
    seed: int,
    wrap: Callable[[keras.Model], keras.Model] | None = None,
    callbacks: Callable[[keras.Model], Sequence[keras.callbacks.Callback]] | None = None,
    teacher_outputs: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
    checkpoint: Path | None = None,
    key: str = "",
    label: str | None = None,
) -> TrainResult:
    """Trains a copy of `model` on the train split of `data`.

    Args:
        model: A classifier with integer labels; its outputs are logits or probabilities, shape `(batch, classes)`.
        data: The data; validation measures each epoch, and chooses one if the settings say so. Test is not touched.
            Training samples without labels, of `Dataset.taught`, count for what `wrap` adds, not for loss and accuracy
            on the labels.
        settings: How to train.
        batch_size: Samples in a step, over all replicas.
        seed: Seed of order, augmentation, and random layers.
        wrap: Gives the model to compile and fit around the copy, such as a `Distiller`.
        callbacks: Gives further callbacks for the copy.
        teacher_outputs: What a teacher has said, which goes along with each batch; see `Dataset.train_batches`.
        checkpoint: File in which the training is kept after each epoch, and from which it resumes.
        key: What the checkpoint must be of.
        label: Name beside the progress bar; `None` shows no bar.

    Returns:
        The trained copy, its history and time.

    Raises:
        ModelError: If the model cannot be copied.
        TrainingError: If the loss becomes NaN, a callback's claim cannot be met, or the checkpoint is of another
            training.
    """
    started = time.perf_counter()
    keras.utils.set_random_seed(seed)
    steps = data.steps_per_epoch(batch_size)
    check_steps_per_execution(settings, steps)
    check_batch_size(settings, data.sizes["train"], batch_size)
    with distribution_scope(settings.strategy):
        replica = copy_model(model, settings.precision, fused=True)
        trainable = replica if wrap is None else wrap(replica)
        if settings.precision != "float32":
            trainable.dtype_policy = settings.precision
        loss = classification_loss(model, data.num_classes, settings.label_smoothing)
        all_labelled = data.splits["train"].labelled
        trainable.compile(
            make_optimizer(settings, settings.epochs * steps),
            loss=loss if all_labelled else LossOfLabelled(loss),
            metrics=["accuracy" if all_labelled else AccuracyOfLabelled(name="accuracy")],
            jit_compile=settings.jit_compile,
            steps_per_execution=settings.steps_per_execution,
        )
        _make_variables(trainable, settings, data.num_classes)

    best = BestEpoch(replica, settings.early_stopping, settings.keep == "best")
    own = [] if callbacks is None else list(callbacks(replica))
    best.others = own
    # What a callback has to remember from epoch to epoch it shows as `variables`.
    state = [variable for callback in own for variable in getattr(callback, "variables", ())]
    # A distiller may train more than the student along.
    known = {id(variable) for variable in replica.variables}
    along = [variable for variable in trainable.weights if id(variable) not in known]
    # Its teacher may follow the student.
    along += getattr(getattr(trainable, "teacher", None), "variables", ())
    record = EpochCheckpoint(
        checkpoint, key, lambda: [*replica.variables, *along, *trainable.optimizer.variables, *state], best
    )
    first_epoch = record.restore()
    if first_epoch < settings.epochs and not best.exhausted:
        bar = [] if label is None else [ProgressBar(label, settings.epochs, steps)]
        try:
            trainable.fit(
                data.train_batches(
                    batch_size,
                    seed=seed,
                    first_epoch=first_epoch,
                    epochs=settings.epochs,
                    teacher_outputs=teacher_outputs,
                ),
                initial_epoch=first_epoch,
                epochs=settings.epochs,
                steps_per_epoch=steps,
                shuffle=False,  # The stream is shuffled already, as a function of seed and epoch.
                validation_data=data.batches("validation", _validation_batch(data, trainable)),
                # What changes weights or chooses them goes before what records them.
                callbacks=[*own, best, StopOnNaN(), record, *bar],
                verbose=0,
            )
        finally:
            for shown in bar:
                shown.close()
    else:
        best.on_train_end()
    trained = copy_model(model)
    trained.set_weights(replica.get_weights())
    return TrainResult(trained, record.history, time.perf_counter() - started)


def _validation_batch(data: Dataset, model: keras.Model) -> int:
    """Samples in a validation batch: over several replicas as many for each, for Keras sums up the first batch's."""
    size, replicas = data.sizes["validation"], model.distribute_strategy.num_replicas_in_sync
    if replicas == 1:
        return EVALUATION_BATCH
    count = max(math.ceil(size / EVALUATION_BATCH), 1 + (size % replicas > 0))
    return math.ceil(size / count / replicas) * replicas


def check_steps_per_execution(settings: TrainSettings, steps: int) -> None:
    """Raises unless an epoch of `steps` steps is whole executions: Keras would run further steps, on the next epoch's
    data.

    Raises:
        InvalidArgumentError: If `settings.steps_per_execution` does not divide `steps`.
    """
    if steps % settings.steps_per_execution:
        divisors = [number for number in range(1, steps + 1) if steps % number == 0]
        raise InvalidArgumentError(
            "TrainSettings.steps_per_execution",
            f"a divisor of the {steps} steps of an epoch, one of {divisors}",
            settings.steps_per_execution,
        )


def _make_variables(trainable: keras.Model, settings: TrainSettings, classes: int) -> None:
    """Makes the variables of optimizer and metrics: a step that made them would be traced twice by TensorFlow."""
    trainable.optimizer.build(trainable.trainable_variables)
    if settings.strategy == "default":  # Under another one Keras makes those of metrics by itself.
        trainable.compute_metrics(None, tf.zeros((1,), tf.int32), tf.zeros((1, classes)))
        trainable.reset_metrics()


def check_batch_size(settings: TrainSettings, samples: int, batch_size: int) -> None:
    """Raises unless each of several replicas has samples in each step, and as many as the others in the first one.

    Keras sums up the replicas' shares of the first batch, and batch normalization has no statistics of nothing.

    Args:
        settings: How is trained.
        samples: Samples of an epoch.
        batch_size: Samples of a step, over all replicas.

    Raises:
        InvalidArgumentError: If the last batch, or each, leaves a replica with fewer samples than that.
    """
    replicas = 1 if settings.strategy == "default" else _mirrored_strategy().num_replicas_in_sync

    def fits(size: int) -> bool:
        last = samples % size or size
        # As the batch is split: the first replicas have equally many, the last one what is left.
        return min(size, samples) % replicas == 0 and last > (replicas - 1) * math.ceil(last / replicas)

    if not fits(batch_size):
        near = [size for size in range(max(batch_size // 2, 1), 2 * batch_size) if fits(size)]
        near = sorted(near, key=lambda size: abs(size - batch_size))[:2]
        raise InvalidArgumentError(
            "batch_size",
            f"a multiple of {replicas} with `strategy: mirrored`, the number of replicas here, by which the last batch "
            f"of {samples} samples leaves none of them without a sample; near are {near}",
            batch_size,
        )


def distribution_scope(strategy: str) -> Any:
    """The scope that a training's variables are made in.

    `"mirrored"` spreads each batch over all GPUs, or over all logical CPU devices where there is no GPU.
    """
    if strategy == "default":
        return contextlib.nullcontext()
    return _mirrored_strategy().scope()


@functools.cache
def _mirrored_strategy() -> tf.distribute.MirroredStrategy:
    # One for the whole process: the collective operations of two would take each other for their own, and fail.
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def classification_loss(model: keras.Model, num_classes: int, label_smoothing: float = 0.0) -> Any:
    """Cross-entropy on integer labels that fits what the model gives, logits or probabilities."""
    from_logits = not gives_probabilities(model)
    if not label_smoothing:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    return SmoothedCrossentropy(num_classes, label_smoothing, from_logits)


@keras.saving.register_keras_serializable(package="tfcompress")
class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy on integer labels, with a share of the label's probability spread over all classes.

    Args:
        num_classes: Number of classes.
        label_smoothing: The share, in [0, 1).
        from_logits: Whether the outputs are logits.
    """

    def __init__(self, num_classes: int, label_smoothing: float, from_logits: bool, **kwargs):
        super().__init__(**kwargs)
        self.num_classes, self.label_smoothing, self.from_logits = num_classes, label_smoothing, from_logits

    def call(self, y_true, y_pred):
        one_hot = keras.ops.one_hot(keras.ops.reshape(y_true, (-1,)), self.num_classes)
        return keras.losses.categorical_crossentropy(
            one_hot, y_pred, from_logits=self.from_logits, label_smoothing=self.label_smoothing
        )

    def get_config(self):
        own = {"num_classes": self.num_classes, "label_smoothing": self.label_smoothing}
        return {**super().get_config(), **own, "from_logits": self.from_logits}
