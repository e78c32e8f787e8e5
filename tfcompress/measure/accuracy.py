"""Accuracy and loss of a classifier, be it a Keras model or the `.tflite` file made of it.

Invariant: every kind of model sees the same samples in the same order, and its loss is the mean cross-entropy in nats,
whether it gives logits or probabilities. Left out: other tasks than classification, and sample weights.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.bridge.load import load
from tfcompress.data import Dataset
from tfcompress.errors import DataError, InvalidArgumentError, ModelError
from tfcompress.graph.outputs import SMALLEST_PROBABILITY, are_probabilities
from tfcompress.measure.tflite_runner import TFLiteRunner


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Args:
        accuracy: Share of samples whose largest output is that of their label, in [0, 1].
        loss: Mean cross-entropy, in nats.
        num_samples: How many samples were seen.
    """

    accuracy: float
    loss: float
    num_samples: int


def evaluate(
    model_or_path: keras.Model | Callable[[tf.Tensor], Any] | str | os.PathLike,
    data: Dataset | tf.data.Dataset,
    *,
    split: str = "test",
    batch_size: int = 256,
    limit: int | None = None,
) -> Evaluation:
    """Measures a classifier on one split.

    Args:
        model_or_path: A Keras model or another callable, or the path of a `.tflite` file, or of any Keras model that
            `load` reads; outputs `(batch, classes)`, logits or probabilities.
        data: A `Dataset`, or a `tf.data.Dataset` of batches `(x, y)` with whole-number labels `y` of shape `(batch,)`.
        split: Which part of a `Dataset`: "train", "validation" or "test".
        batch_size: Samples at a time of a `Dataset`.
        limit: Stop after this many samples.

    Returns:
        Accuracy, loss and number of samples.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        ModelError: If a file is missing, broken or of an unknown kind, or outputs are no finite `(batch, classes)`.
        DataError: If there is no sample, or labels are not what the model can answer.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Activation("linear")])
        >>> x, y = np.array([[2.0, 0.0], [0.0, 2.0]], "float32"), np.array([0, 0])
        >>> evaluate(model, tf.data.Dataset.from_tensors((x, y))).accuracy
        0.5
    """
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise InvalidArgumentError("limit", "a whole number above 0, or None", limit)
    predict = _predictor(model_or_path)
    totals = _Totals()
    for x, y in _batches(data, split, batch_size, limit):
        totals.add(*predict(x), y)
    return totals.result()


class _Totals:
    """Sums over batches. Both losses are kept until it is known which one the outputs stand for."""

    def __init__(self) -> None:
        self.samples = self.correct = 0
        self.loss_of_logits = self.loss_of_probabilities = 0.0
        self.are_probabilities = True

    def add(self, outputs: np.ndarray, step: float, labels: np.ndarray) -> None:
        """Takes outputs `(batch, classes)`, the distance of two neighbouring values of them, and labels `(batch,)`."""
        _check_batch(outputs, labels)
        own = outputs[np.arange(len(labels)), labels].astype(np.float64)
        self.samples += len(labels)
        self.correct += int((outputs.argmax(axis=1) == labels).sum())
        largest = outputs.max(axis=1).astype(np.float64)
        shifted = np.exp(outputs.astype(np.float64) - largest[:, None])
        self.loss_of_logits += float((np.log(shifted.sum(axis=1)) + largest - own).sum())
        # A zero among quantized probabilities stands for a value below half a step; taking it for that keeps the loss
        # finite.
        self.are_probabilities &= are_probabilities(outputs, step)
        smallest = max(step / 2, SMALLEST_PROBABILITY)
        self.loss_of_probabilities -= float(np.log(np.maximum(own, smallest)).sum())

    def result(self) -> Evaluation:
        if self.samples == 0:
            raise DataError("There is no sample to evaluate on: the split is empty.")
        loss = self.loss_of_probabilities if self.are_probabilities else self.loss_of_logits
        return Evaluation(self.correct / self.samples, loss / self.samples, self.samples)


def _check_batch(outputs: np.ndarray, labels: np.ndarray) -> None:
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise ModelError(f"A classifier's outputs must have shape (batch, classes). Received: {outputs.shape}.")
    if not np.isfinite(outputs).all():
        raise ModelError("A classifier's outputs must be finite. Received: NaN or infinity among them.")
    if labels.shape != outputs.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"Labels must be whole numbers of shape ({len(outputs)},). "
            f"Received: {labels.dtype} of shape {labels.shape}."
        )
    if labels.min() < 0 or labels.max() >= outputs.shape[1]:
        raise DataError(
            f"Labels must be in [0, {outputs.shape[1]}), since the model has {outputs.shape[1]} outputs. "
            f"Received: labels from {labels.min()} to {labels.max()}."
        )


def _predictor(model_or_path: Any) -> Callable[[np.ndarray], tuple[np.ndarray, float]]:
    """A function from a batch of samples to float32 outputs and the step between two of them (0 for floats)."""
    if isinstance(model_or_path, keras.Model):
        return _predictor_in_graph(functools.partial(model_or_path, training=False))
    if callable(model_or_path):
        return _predictor_in_graph(model_or_path)
    if not isinstance(model_or_path, (str, os.PathLike)):
        raise InvalidArgumentError(
            "model_or_path", "a Keras model, another callable or the path of a model file", model_or_path
        )
    if Path(model_or_path).suffix.lower() != ".tflite":
        return _predictor(load(model_or_path))
    runner = TFLiteRunner(model_or_path, num_threads=os.cpu_count() or 1)
    if len(runner.outputs) != 1:
        raise ModelError(f"A classifier must have one output. Received: {len(runner.outputs)} in {model_or_path!r}.")
    step = float(runner.output_details["quantization"][0])
    return lambda x: (runner.predict(x), step)


def _predictor_in_graph(forward: Callable[[tf.Tensor], Any]) -> Callable[[np.ndarray], tuple[np.ndarray, float]]:
    forward = tf.function(forward, reduce_retracing=True)

    def predict(x: np.ndarray) -> tuple[np.ndarray, float]:
        outputs = keras.tree.flatten(forward(tf.convert_to_tensor(x)))
        if len(outputs) != 1:
            raise ModelError(f"A classifier must have one output. Received: {len(outputs)}.")
        return tf.cast(outputs[0], tf.float32).numpy(), 0.0

    return predict


def _batches(data: Dataset | tf.data.Dataset, split: str, batch_size: int, limit: int | None):
    """NumPy batches `(x, y)`, at most `limit` samples in all."""
    if isinstance(data, Dataset):
        yield from data.batches(split, batch_size, limit=limit).as_numpy_iterator()
        return
    if not isinstance(data, tf.data.Dataset):
        raise InvalidArgumentError("data", "a Dataset or a tf.data.Dataset of batches (x, y)", type(data))
    if not isinstance(data.element_spec, tuple) or len(data.element_spec) != 2:
        raise InvalidArgumentError("data", "a tf.data.Dataset whose elements are batches (x, y)", data.element_spec)
    left = limit
    for x, y in data.as_numpy_iterator():
        if y.ndim == 0:
            raise DataError("Data must come in batches, and these are single samples. Add `.batch(...)`.")
        yield (x, y) if left is None else (x[:left], y[:left])
        left = None if left is None else left - len(y)
        if left is not None and left <= 0:
            return
