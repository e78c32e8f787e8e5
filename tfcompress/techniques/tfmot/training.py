"""`fit_tf_keras`: trains a tf_keras model in place by the same settings, data and order as `tfcompress.training.fit`.

Invariant: what tf_keras or TFMOT cannot honour of the settings is an error before training (`check_settings`), never
ignored; a training that is resumed ends as one that was not interrupted. Left out: teachers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from tfcompress.data import Dataset
from tfcompress.techniques.tfmot.callbacks import HoldZeros, in_tf_keras
from tfcompress.train_settings import TrainSettings
from tfcompress.training.checkpoint import BestEpoch, EpochCheckpoint, StopOnNaN
from tfcompress.training.fit import EVALUATION_BATCH, TrainResult
from tfcompress.training.optimizers import WarmUpThenFall, make_optimizer
from tfcompress.training.progress import ProgressBar


def fit_tf_keras(
    model: Any,
    data: Dataset,
    settings: TrainSettings,
    *,
    batch_size: int,
    seed: int,
    from_logits: bool,
    hold_zeros: bool,
    callbacks: Callable[[Any], Sequence[Any]] | None = None,
    checkpoint: Path | None = None,
    key: str = "",
    label: str | None = None,
) -> TrainResult:
    """Trains a tf_keras classifier on the train split of `data`, in place.

    Args:
        model: A tf_keras model, not compiled; one output, logits or probabilities of shape `(batch, classes)`.
        data: The data; validation measures each epoch, and chooses one if the settings say so.
        settings: How to train; see `check_settings`.
        batch_size: Samples in a step.
        seed: Seed of order, augmentation, and random layers.
        from_logits: Whether the outputs are logits.
        hold_zeros: Whether weights of kernels that are zero stay zero.
        callbacks: Gives further tf_keras callbacks for the model.
        checkpoint: File in which the training is kept after each epoch, and from which it resumes.
        key: What the checkpoint must be of.
        label: Name beside the progress bar; `None` shows no bar.

    Returns:
        The model itself, its history and the time.

    Raises:
        TrainingError: If the loss becomes NaN, a callback's claim cannot be met, or the checkpoint is of another
            training.
    """
    started = time.perf_counter()
    tf_keras.utils.set_random_seed(seed)
    steps = data.steps_per_epoch(batch_size)
    optimizer = make_optimizer(settings, settings.epochs * steps, library=tf_keras.optimizers, adapt=_Rate)
    model.compile(
        optimizer,
        loss=classification_loss(from_logits, data.num_classes, settings.label_smoothing),
        metrics=["accuracy"],
        jit_compile=settings.jit_compile,
    )
    optimizer.build(model.trainable_variables)

    best = BestEpoch(model, settings.early_stopping, settings.keep == "best")
    own = [] if callbacks is None else list(callbacks(model))
    best.others = own
    record = EpochCheckpoint(checkpoint, key, lambda: [*model.variables, *optimizer.variables], best)
    first_epoch = record.restore()
    if first_epoch < settings.epochs and not best.exhausted:
        held = [HoldZeros()] if hold_zeros else []
        bar = [] if label is None else [ProgressBar(label, settings.epochs, steps)]
        try:
            model.fit(
                data.train_batches(batch_size, seed=seed, first_epoch=first_epoch, epochs=settings.epochs),
                initial_epoch=first_epoch,
                epochs=settings.epochs,
                steps_per_epoch=steps,
                shuffle=False,  # The stream is shuffled already, as a function of seed and epoch.
                validation_data=data.batches("validation", EVALUATION_BATCH),
                # What changes weights or chooses them goes before what records them.
                callbacks=[*held, *own, *in_tf_keras([best, StopOnNaN(), record, *bar])],
                verbose=0,
            )
        finally:
            for shown in bar:
                shown.close()
    else:
        best.on_train_end()
    return TrainResult(model, record.history, time.perf_counter() - started)


class _Rate(tf_keras.optimizers.schedules.LearningRateSchedule):
    """Our learning-rate schedule, for an optimizer of tf_keras."""

    def __init__(self, schedule: WarmUpThenFall):
        super().__init__()
        self._schedule = schedule

    def __call__(self, step):
        return tf.convert_to_tensor(self._schedule(step))

    def get_config(self):
        return self._schedule.get_config()


def classification_loss(from_logits: bool, num_classes: int, label_smoothing: float) -> Callable[[Any, Any], Any]:
    """Cross-entropy on integer labels."""
    if not label_smoothing:
        return tf_keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)

    def loss(labels, outputs):
        one_hot = tf.one_hot(tf.reshape(tf.cast(labels, tf.int32), (-1,)), num_classes)
        return tf_keras.losses.categorical_crossentropy(
            one_hot, outputs, from_logits=from_logits, label_smoothing=label_smoothing
        )

    return loss
