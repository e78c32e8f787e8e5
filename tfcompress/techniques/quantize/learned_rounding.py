"""Learned rounding (AdaRound): each weight is rounded up or down so that its layer's outputs change least.

Rounding each weight to its nearest integer is best for the weights, but not for the sums they make. Layer by layer, in
graph order, the direction of each weight is learned from calibration data: against the float layer's outputs, on the
inputs that the rounded layers before it give.

Invariant: kernels come out on the integer grid, so that the file's integers are the learned ones; zeros stay zero. A
layer keeps its nearest integers where they do as well, and where its weights share few values (clustering), which must
stay few. Left out: layers whose grid is not one scale for each index of the last kernel axis (or one for all), and
biases, which `bias_correction.py` has.

Reference: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020,
https://arxiv.org/abs/2004.10568
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.layers import kernel_limits
from tfcompress.techniques.quantize.integer_support import is_clipping, only_follower
from tfcompress.techniques.quantize.side_by_side import Visit, is_rounded, side_by_side, without_activation
from tfcompress.techniques.shared_values import shares_values
from tfcompress.training.progress import ProgressBar

ITERATIONS = 500
BATCH = 32
LEARNING_RATE = 1e-2
# The stretched sigmoid of the paper: it reaches 0 and 1 exactly.
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
# The pull towards 0 and 1 begins after a fifth of the iterations, wide first and then steep.
WARM_UP = 0.2
FIRST_BETA, LAST_BETA = 20.0, 2.0
REGULARIZATION = 1.0
# Parts of the largest weight that are tried as the kernel's range.
SMALLEST_PART = 0.4
PARTS = 61


def learn_rounding(
    model: keras.Model,
    batches: Iterable[Any],
    *,
    iterations: int = ITERATIONS,
    seed: int = 0,
    progress: bool = False,
    floats: keras.Model | None = None,
) -> list[str]:
    """Learns for each weight of a quantization-aware model whether to round it up or down, in place.

    Kernels are first clipped where that makes the rounding error smaller, which matters with 4 bits.

    Args:
        model: A calibrated model from `quantize_aware`.
        batches: Inputs, or `(inputs, ...)` tuples, of shape `(batch, ...)`; all are kept in memory.
        iterations: Training steps of each layer, at least 1.
        seed: Seed of the choice of samples.
        progress: Whether to show a progress bar.
        floats: See `side_by_side`.

    Returns:
        The names of the layers whose learned rounding is in place; others keep the nearest integers.

    Raises:
        DataError: If there is no batch.
    """
    learned: list[str] = []
    names = {layer.name for layer in model._flatten_layers() if is_rounded(layer)}
    bar = ProgressBar("learned rounding", max(1, len(names)), iterations) if progress else None

    def learn(visit: Visit) -> None:
        done = len(visited)
        visited.append(visit.layer.name)
        if bar is not None:
            bar.on_epoch_begin(done)
        if shares_values(keras.ops.convert_to_numpy(visit.layer.kernel)):
            return
        problem = _Problem(visit)
        rng = np.random.default_rng([seed, done])
        if problem.solve(iterations, rng, bar.on_train_batch_end if bar is not None else None):
            learned.append(visit.layer.name)

    visited: list[str] = []
    if bar is not None:
        bar.on_train_begin()
    try:
        side_by_side(model, batches, learn, floats=floats)
    finally:
        if bar is not None:
            bar.close()
    return learned


class _Problem:
    """The rounding of one layer's kernel."""

    def __init__(self, visit: Visit):
        self._layer = visit.layer
        self._plain = visit.plain
        self._plain.trainable = True
        self._after = _what_follows(visit)
        self._kernel = keras.ops.convert_to_numpy(visit.plain.kernel)
        self._inputs = tf.concat(list(visit.inputs), 0)
        targets = [self._outputs(visit.plain.kernel, tensor, self._plain) for tensor in visit.float_inputs]
        self._targets = tf.concat(targets, 0)
        self._largest = 2 ** (self._layer.weight_bits - 1) - 1

    def solve(self, iterations: int, rng: np.random.Generator, on_step: Callable[[int], None] | None) -> bool:
        """Puts the better of the learned and the nearest integers into the layer; whether it is the learned ones."""
        limit = kernel_limit(self._kernel, self._layer)
        scale = limit / self._largest
        clipped = np.clip(self._kernel, -limit, limit)
        nearest = np.round(clipped / scale)
        floor = np.floor(clipped / scale)
        # The largest weight keeps the scale where it is, and zeros of a mask stay.
        is_fixed = (nearest == clipped / scale) | (np.abs(clipped) >= limit * (1 - 1e-6))
        learned = self._learn(floor, clipped / scale - floor, is_fixed, scale, iterations, rng, on_step)
        learned = np.where(is_fixed, nearest, np.clip(learned, -self._largest, self._largest))
        kernels = [(integers * scale).astype("float32") for integers in (nearest, learned)]
        errors = [self._error(kernel) for kernel in kernels]
        self._layer.kernel.assign(kernels[int(np.argmin(errors))])
        return errors[1] < errors[0]

    def _learn(
        self,
        floor: np.ndarray,
        rest: np.ndarray,
        is_fixed: np.ndarray,
        scale: np.ndarray,
        iterations: int,
        rng: np.random.Generator,
        on_step: Callable[[int], None] | None,
    ) -> np.ndarray:
        """The learned integers, before the fixed ones are put in."""
        part = np.clip((rest - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW), 1e-4, 1 - 1e-4)
        direction = tf.Variable(np.log(part / (1 - part)).astype("float32"))
        nearest = np.where(is_fixed, np.round(floor + rest), floor)
        base = tf.constant(nearest.astype("float32"))
        step = tf.constant(np.broadcast_to(scale, floor.shape).astype("float32"))
        free = tf.constant((~is_fixed).astype("float32"))
        # In units of the error that the nearest integers make, so that the pull needs no tuning to a layer.
        unit = max(self._error((np.round(floor + rest) * scale).astype("float32")), 1e-20)
        optimizer = keras.optimizers.Adam(LEARNING_RATE)
        optimizer.build([direction])

        def upward() -> tf.Tensor:
            stretched = tf.sigmoid(direction) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW
            return tf.clip_by_value(stretched, 0.0, 1.0)

        @tf.function
        def train(inputs, targets, beta, pull):
            with tf.GradientTape() as tape:
                part = upward()
                kernel = step * (base + free * part)
                error = tf.reduce_mean(tf.square(self._outputs(kernel, inputs, self._layer) - targets)) / unit
                undecided = free * (1.0 - tf.pow(tf.abs(2.0 * part - 1.0), beta))
                loss = error + pull * tf.reduce_mean(undecided)
            optimizer.apply([tape.gradient(loss, direction)], [direction])

        count = len(self._inputs)
        for iteration in range(iterations):
            chosen = rng.choice(count, min(BATCH, count), replace=False)
            through = (iteration / iterations - WARM_UP) / (1 - WARM_UP)
            beta = LAST_BETA + (FIRST_BETA - LAST_BETA) * 0.5 * (1 + np.cos(np.pi * max(through, 0.0)))
            train(
                tf.gather(self._inputs, chosen),
                tf.gather(self._targets, chosen),
                tf.constant(beta, tf.float32),
                tf.constant(REGULARIZATION if through >= 0 else 0.0, tf.float32),
            )
            if on_step is not None:
                on_step(iteration)
        return floor + (upward().numpy() >= 0.5)

    def _outputs(self, kernel: Any, inputs: tf.Tensor, biased: Any) -> tf.Tensor:
        """What the layer and what is fused after it give with another kernel, and the bias of `biased`."""
        # Layers of these classes have a kernel, and then a bias or none.
        values = [kernel] if self._plain.bias is None else [kernel, biased.bias]
        with without_activation(self._plain):
            sums, _ = self._plain.stateless_call([tf.convert_to_tensor(value) for value in values], [], inputs)
        return self._after(sums)

    def _error(self, kernel: np.ndarray) -> float:
        """Mean squared difference of the outputs from the float layer's."""
        total, count = 0.0, 0
        for start in range(0, len(self._inputs), 100):
            inputs, targets = self._inputs[start : start + 100], self._targets[start : start + 100]
            difference = self._outputs(tf.constant(kernel), inputs, self._layer) - targets
            total += float(tf.reduce_sum(tf.square(difference)))
            count += int(tf.size(difference))
        return total / count


def kernel_limit(kernel: np.ndarray, layer: Any) -> np.ndarray:
    """The range of a kernel whose rounding has the least squared error, in a shape that broadcasts to the kernel's."""
    axes: tuple[int, ...] | None = tuple(range(kernel.ndim - 1)) if layer.per_channel else None
    if isinstance(layer, keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D):
        axes = tuple(range(kernel.ndim - 2))
    largest = kernel_limits(np.abs(kernel).max(axes, keepdims=True)).numpy()
    integers = 2 ** (layer.weight_bits - 1) - 1
    best, best_error = largest, np.full(largest.shape, np.inf)
    for part in np.linspace(1.0, SMALLEST_PART, PARTS):
        scale = part * largest / integers
        rounded = np.clip(np.round(kernel / scale), -integers, integers) * scale
        error = np.square(rounded - kernel).sum(axes, keepdims=True)
        best = np.where(error < best_error, part * largest, best)
        best_error = np.minimum(error, best_error)
    return best


def _what_follows(visit: Visit) -> Callable[[tf.Tensor], tf.Tensor]:
    """The normalization and clipping that the runtime fuses into a layer."""
    factor, shift = 1.0, 0.0
    follower = only_follower(visit.traced, visit.index)
    activation = visit.plain.activation
    if isinstance(follower, keras.layers.BatchNormalization):
        mean, variance = (keras.ops.convert_to_numpy(v) for v in (follower.moving_mean, follower.moving_variance))
        factor = 1.0 / np.sqrt(variance + follower.epsilon)
        factor = factor * keras.ops.convert_to_numpy(follower.gamma) if follower.scale else factor
        shift = (keras.ops.convert_to_numpy(follower.beta) if follower.center else 0.0) - mean * factor
        (index,) = visit.traced.consumers(visit.index)
        follower = only_follower(visit.traced, index)
    if follower is not None and is_clipping(follower):
        activation = follower
    return lambda sums: activation(sums * factor + shift)
