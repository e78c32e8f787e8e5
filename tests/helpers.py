"""What tests share: tiny models and data, NumPy references, tolerances named once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfcompress.data import from_arrays
from tfcompress.export import flatbuffer
from tfcompress.train_settings import TrainSettings
from tfcompress.training.fit import fit

SHARED = Path(__file__).resolve().parents[2] / "shared"

# Float32 sums in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def shared_path(relative: str) -> Path:
    """A file or folder of the shared material; skips the test where that is not at hand."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"shared material is not here: {relative}")
    return path


def tiny_cnn(*, classes: int = 4, softmax: bool = False, name: str = "tiny") -> keras.Model:
    """Convolution, BatchNorm, ReLU, a depthwise convolution, a residual block, pooling and a dense layer, on 8x8x1."""
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(inputs)
    # Statistics that follow in the few steps that tests train.
    x = layers.BatchNormalization(momentum=0.7, name="stem_bn")(x)
    shortcut = layers.ReLU(name="stem_relu")(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="middle")(shortcut)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Add(name="residual")([x, shortcut])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(16, activation="relu", name="hidden")(x)
    outputs = layers.Dense(classes, activation="softmax" if softmax else None, name="classes")(x)
    return keras.Model(inputs, outputs, name=name)


def tiny_mlp(*, inputs: int = 8, classes: int = 4, softmax: bool = False, name: str = "mlp") -> keras.Model:
    """Two hidden layers of 16."""
    return keras.Sequential(
        [
            keras.Input((inputs,), name="features"),
            layers.Dense(16, activation="relu", name="first"),
            layers.Dense(16, activation="relu", name="second"),
            layers.Dense(classes, activation="softmax" if softmax else None, name="last"),
        ],
        name=name,
    )


def blobs(count: int = 128, *, classes: int = 4, shape: tuple[int, ...] = (8, 8, 1), seed: int = 0):
    """Inputs and labels that can be learned: each class is a picture of its own brightness, with noise, in [0, 1]."""
    rng = np.random.default_rng(seed)
    pictures = np.random.default_rng(42).uniform(size=(classes, *shape))
    pictures *= (np.arange(1, classes + 1) / classes).reshape(-1, *(1 for _ in shape))
    labels = np.arange(count) % classes
    noise = rng.normal(scale=0.1, size=(count, *shape))
    return np.clip(pictures[labels] + noise, 0, 1).astype("float32"), labels.astype("int32")


def blob_dataset(count: int = 128, **options):
    """The same as a `Dataset`, with a validation and a test split of half the size."""
    validation, test = blobs(count // 2, seed=1, **options), blobs(count // 2, seed=2, **options)
    return from_arrays(*blobs(count, **options), name="blobs", validation=validation, test=test)


class OwnStep(keras.Model):
    """Trains another model by a `train_step` of its own."""

    def __init__(self, inner: keras.Model):
        super().__init__()
        self.inner = inner

    def call(self, inputs, training=False):
        return self.inner(inputs, training=training)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.loss_of(x, y)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return {"loss": loss}

    def loss_of(self, x, y):
        return self.compute_loss(x, y, self(x, training=True))


class BatchEnds(keras.callbacks.Callback):
    """Notes a variable at each batch end."""

    def __init__(self, variable: keras.Variable):
        super().__init__()
        self.variable, self.seen = variable, []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(keras.ops.convert_to_numpy(self.variable).copy())


class Killed(Exception):
    """Stands for the end of the process."""


class KillAfter(keras.callbacks.Callback):
    def __init__(self, epochs: int):
        super().__init__()
        self.epochs = epochs

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epochs:
            raise Killed


def whole_and_resumed(run: Callable[..., Any], checkpoint: Path, *, kill_after: int) -> tuple[Any, Any]:
    """What a training `run(checkpoint, *callbacks)` gives that runs through, and one that is killed and run again."""
    whole = run(None)
    with pytest.raises(Killed):
        run(checkpoint, KillAfter(kill_after))
    return whole, run(checkpoint)


def check_resumes_from_a_saved_model(make: Callable[[keras.Model], keras.callbacks.Callback], folder: Path):
    """Checks that a callback is resumed by the saved model, its optimizer, and what the callback shows as `variables`.

    Args:
        make: Gives the callback for a model.
        folder: Where the model is saved after two of four epochs.

    Returns:
        The kernel of the layer `second` as it was saved.
    """
    x, y = blobs(shape=(8,))

    def epochs(model, first, *more, state=()):
        callback = make(model)
        for variable, value in zip(variables(callback), state, strict=True) if state else ():
            variable.assign(value)
        # The plan is the same before the interruption: it ends with the last epoch.
        options = {"batch_size": 32, "shuffle": False, "verbose": 0, "callbacks": [callback, *more]}
        model.fit(x, y, initial_epoch=first, epochs=4, **options)
        return [keras.ops.convert_to_numpy(variable) for variable in variables(callback)]

    def variables(callback):
        return getattr(callback, "variables", ())

    through, interrupted = tiny_mlp(), tiny_mlp()
    interrupted.set_weights(through.get_weights())
    for model in (through, interrupted):
        model.compile("adam", cross_entropy())
    epochs(through, 0)
    state = epochs(
        interrupted,
        0,
        keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: setattr(interrupted, "stop_training", epoch == 1)
        ),
    )
    interrupted.save(folder / "half.keras")
    resumed = keras.saving.load_model(folder / "half.keras")
    half = resumed.get_layer("second").kernel.numpy().copy()
    epochs(resumed, 2, state=state)
    for expected, actual in zip(through.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    return half


def trained_on_one_and_two_replicas(callbacks: Callable[[keras.Model], list[Any]]) -> tuple[keras.Model, keras.Model]:
    """`tiny_mlp`, trained for two epochs on one replica and on two."""
    # Without BatchNormalization, whose statistics are those of one replica.
    model, data = tiny_mlp(), blob_dataset(shape=(8,))

    def trained(strategy):
        settings = TrainSettings(epochs=2, strategy=strategy, optimizer="sgd", learning_rate=0.1)
        return fit(model, data, settings, batch_size=32, seed=0, callbacks=callbacks).model

    return trained("default"), trained("mirrored")


def zeros_fraction(layer: keras.layers.Layer) -> float:
    """Share of zeros in a layer's kernel."""
    return float(np.mean(keras.ops.convert_to_numpy(layer.kernel) == 0))


def integer_kernels(path: Path) -> list[np.ndarray]:
    """The integers of each int8 constant of at least two axes in a `.tflite` file."""
    model = flatbuffer.parse(path.read_bytes())
    found = []
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data) and flatbuffer.type_name(tensor.type) == "int8" and len(tensor.shape) > 1:
            found.append(np.frombuffer(bytes(data), "int8").reshape(tensor.shape))
    return found


def cross_entropy() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def numpy_log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
