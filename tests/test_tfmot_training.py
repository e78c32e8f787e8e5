"""Training in tf_keras by our settings: against Keras 3's training, zeros that hold, resume, and what it refuses."""

import dataclasses

import numpy as np
import pytest
import tf_keras
from helpers import blob_dataset, blobs, tiny_mlp

import tfcompress as tfc
from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.schedules import polynomial_decay
from tfcompress.techniques.tfmot.callbacks import HoldZeros, kernels, weight_name
from tfcompress.techniques.tfmot.stages import TfmotPrune
from tfcompress.techniques.tfmot.training import fit_tf_keras
from tfcompress.train_settings import TrainSettings


class ZerosAtBatchEnd(tf_keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append([np.mean(kernel.numpy() == 0) for kernel in kernels(self.model)])


def test_zeros_of_earlier_stages_hold_at_every_batch_end():
    legacy = tf_keras.Sequential([tf_keras.Input((8,)), tf_keras.layers.Dense(8), tf_keras.layers.Dense(4)])
    first = legacy.layers[0].kernel
    first.assign(first * (np.arange(64).reshape(8, 8) % 2))
    seen = ZerosAtBatchEnd()
    x, y = blobs(64, shape=(8,))
    legacy.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    legacy.fit(x, y, batch_size=16, verbose=0, callbacks=[HoldZeros(), seen])
    assert seen.seen == [[0.5, 0.0]] * 4


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "weight_decay": 0.1, "schedule": "linear", "warmup_steps": 3, "label_smoothing": 0.1},
        pytest.param(
            {"optimizer": "sgd", "weight_decay": 0.01, "momentum": 0.5, "keep": "best", "jit_compile": True},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["adamw", "sgd"],
)
def test_trains_as_keras_3_does(changes):
    settings = TrainSettings(epochs=2, learning_rate=0.01, **changes)
    data, model = blob_dataset(64, shape=(8,)), tiny_mlp()
    legacy = tf_keras.Sequential(
        [tf_keras.Input((8,)), *(tf_keras.layers.Dense(n, a) for n, a in ((16, "relu"), (16, "relu"), (4, None)))]
    )
    legacy.set_weights(model.get_weights())
    expected = tfc.fit(model, data, settings, batch_size=16, seed=4)
    trained = fit_tf_keras(legacy, data, settings, batch_size=16, seed=4, from_logits=True, hold_zeros=False)
    for ours, theirs in zip(trained.model.get_weights(), expected.model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert trained.history["val_accuracy"] == pytest.approx(expected.history["val_accuracy"])


@pytest.mark.slow
def test_a_resumed_training_ends_as_one_that_was_not_interrupted(tmp_path):
    data, start = blob_dataset(64, shape=(8,)), tiny_mlp()
    settings = TrainSettings(epochs=2, learning_rate=0.01)
    options = {"batch_size": 16, "seed": 4, "from_logits": True, "hold_zeros": False}

    class Interrupt(tf_keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def prune(checkpoint, *extra):
        def fit(legacy, callbacks):
            fit_tf_keras(
                legacy, data, settings, callbacks=lambda _: [*callbacks, *extra], checkpoint=checkpoint, **options
            )

        halves = polynomial_decay(8, final_sparsity=0.5, end=1.0)
        return tfc.tfmot_prune(start, fit, schedule=halves)

    whole = prune(None)
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path / "training.npz", Interrupt())
    resumed = prune(tmp_path / "training.npz")
    for expected, actual in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


def test_settings_that_tf_keras_cannot_follow_are_refused():
    technique = TfmotPrune(sparsity_m_by_n=(2, 4))
    technique.check_settings(TrainSettings(epochs=1))
    changes = {"precision": "mixed_bfloat16", "strategy": "mirrored", "steps_per_execution": 2}
    for name, value in changes.items():
        with pytest.raises(InvalidArgumentError, match=f"TrainSettings.{name}.*here"):
            technique.check_settings(dataclasses.replace(TrainSettings(epochs=1), **{name: value}))


def test_names_of_weights():
    layer = tf_keras.layers.Dense(2, name="dense")
    layer.build((1, 2))
    assert [weight_name(weight) for weight in layer.weights] == ["kernel", "bias"]
