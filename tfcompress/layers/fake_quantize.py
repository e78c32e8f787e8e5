"""Fake quantization: floats that take only the values an integer tensor can hold, with gradients that still flow.

Invariant: what `fake_quantize_kernel` and `FakeQuantize` compute in float32 is what the TFLite integer kernels will
hold, since the converter reads the very same ranges from the graph. Left out: where these go in a network
(`rewrite.py`) and how their ranges start (`calibrate.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError

# The least width of a range of activations, which keeps its scale finite where nothing but zeros passes. Kernels have
# `kernel_limits`.
SMALLEST_RANGE = 1e-6
# Of the range of a kernel's largest channel, what the smallest has at least.
_LEAST_SHARE = 1e-4


def fake_quantize_kernel(kernel: Any, *, bits: int, per_channel: bool, one_scale: bool = False) -> Any:
    """Rounds a kernel to symmetric signed integers and back.

    The range is the largest magnitude of the kernel as it is now (of each channel, or of all), so nothing is clipped
    and zeros stay exactly zero: pruned weights are pruned in the integer file too.

    Args:
        kernel: Float32 tensor; its last axis is the channel axis.
        bits: Bits of the integers, 2 to 8; the lowest integer is not used (narrow range), as TFLite demands.
        per_channel: One range for each index of the last axis, or one for all.
        one_scale: Whether all channels have the same range where there is one for each: equal weights are then equal
            integers, and the range of each channel can still absorb a factor of its own.

    Returns:
        A float32 tensor of the same shape.
    """
    # The range follows the weights but is no way for gradients to reach them, as in a constant.
    magnitude = tf.stop_gradient(tf.abs(kernel))
    if per_channel:
        limit = kernel_limits(tf.reduce_max(magnitude, axis=list(range(kernel.shape.rank - 1))))
        if one_scale:
            limit = tf.fill(limit.shape, tf.reduce_max(limit))
        return tf.quantization.fake_quant_with_min_max_vars_per_channel(
            kernel, -limit, limit, num_bits=bits, narrow_range=True
        )
    limit = kernel_limits(tf.reduce_max(magnitude))
    return tf.quantization.fake_quant_with_min_max_vars(kernel, -limit, limit, num_bits=bits, narrow_range=True)


def kernel_limits(largest: Any) -> Any:
    """The limits of the ranges of a kernel's channels.

    A channel of zeros, or next to nothing, must not have a scale next to nothing: its bias, which the file has in units
    of that scale, would not fit into 32 bits.

    Args:
        largest: The largest magnitude of each channel, or of all.

    Returns:
        The same, but at least a ten-thousandth of the largest of all; ones for a kernel of zeros.

    Example:
        >>> kernel_limits(tf.constant([2.0, 0.0])).numpy().tolist()
        [2.0, 0.00019999999494757503]
    """
    largest = tf.convert_to_tensor(largest)
    peak = tf.reduce_max(largest)
    return tf.maximum(largest, tf.where(peak > 0, _LEAST_SHARE * peak, tf.ones_like(peak)))


class _AtMostZero(keras.constraints.Constraint):
    def __call__(self, w):
        return keras.ops.minimum(w, 0.0)


class _AboveZero(keras.constraints.Constraint):
    def __call__(self, w):
        return keras.ops.maximum(w, SMALLEST_RANGE)


@keras.saving.register_keras_serializable(package="tfcompress")
class FakeQuantize(keras.layers.Layer):
    """Rounds activations to the values of an integer tensor with one scale and zero point, and back.

    The range is two weights, `minimum` and `maximum`. While `trainable`, it is learned through the gradient of the
    clipping, or follows a moving average of what passes; once `trainable` is `False` it stays as it is. A fixed range
    rounds only outside of training. With more than 8 bits the runtime's zero point is 0: the range is the one weight
    `maximum` and what lies on the other side of zero.

    Args:
        bits: Bits of the integers, 4 to 16.
        ranges: `"learned"`, `"moving_average"`, or `"fixed"`.
        momentum: Share of the old range that a moving average keeps at each training step, in [0, 1).
        initial_range: `(minimum, maximum)` to start from; it must hold zero.

    Input and output: a float tensor of any shape, and one of the same shape and dtype.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> layer = FakeQuantize(bits=8, ranges="fixed", initial_range=(0.0, 255.0))
        >>> [float(value) for value in layer(tf.constant([-3.0, 0.4, 0.6, 300.0]))]
        [0.0, 0.0, 1.0, 255.0]

    Reference:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        2018, https://arxiv.org/abs/1712.05877
    """

    # Export asks layers for this, so that it needs to know none of them by name.
    is_fake_quantized = True

    def __init__(
        self,
        bits: int = 8,
        ranges: str = "learned",
        momentum: float = 0.99,
        initial_range: tuple[float, float] = (-6.0, 6.0),
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not 4 <= bits <= 16:
            raise InvalidArgumentError("FakeQuantize.bits", "an integer from 4 to 16", bits)
        if ranges not in ("learned", "moving_average", "fixed"):
            raise InvalidArgumentError("FakeQuantize.ranges", "'learned', 'moving_average' or 'fixed'", ranges)
        if not 0 <= momentum < 1:
            raise InvalidArgumentError("FakeQuantize.momentum", "a number in [0, 1)", momentum)
        low, high = initial_range
        if not low <= 0 <= high or low == high:
            raise InvalidArgumentError("FakeQuantize.initial_range", "(low, high) with low <= 0 <= high", initial_range)
        self.bits = bits
        self.ranges = ranges
        self.momentum = momentum
        self.initial_range = (float(low), float(high))
        self.supports_masking = True
        # While a network is calibrated, each value is shown to this function and passes unrounded: see `calibrate.py`.
        self.observer: Callable[[Any], None] | None = None

    def build(self, input_shape):
        low, high = self.initial_range
        options = {
            "shape": (),
            "dtype": "float32",
            "autocast": False,
            "trainable": self.ranges == "learned",
            "aggregation": "mean",
        }
        # Zero must stay inside, or padding and pruned weights would have no exact integer.
        if not self.is_symmetric:
            self.minimum = self.add_weight(
                name="range_minimum",
                initializer=keras.initializers.Constant(low),
                constraint=_AtMostZero(),
                **options,
            )
        self.maximum = self.add_weight(
            name="range_maximum",
            initializer=keras.initializers.Constant(self._largest(low, high)),
            constraint=_AboveZero(),
            **options,
        )

    def set_range(self, low: float, high: float) -> None:
        """Sets the range, widened to hold zero, to be wider than nothing, and for more than 8 bits to be symmetric."""
        if not self.is_symmetric:
            self.minimum.assign(min(low, 0.0))
        self.maximum.assign(max(self._largest(low, high), SMALLEST_RANGE))

    @property
    def is_symmetric(self) -> bool:
        """Whether the zero point is 0, as the runtime has it for more than 8 bits."""
        return self.bits > 8

    @property
    def step(self) -> float:
        """The distance of two neighbouring values."""
        low, high = (float(keras.ops.convert_to_numpy(edge)) for edge in self._edges())
        return (high - low) / (2**self.bits - 1)

    def _largest(self, low: float, high: float) -> float:
        """The largest value of a range that holds `low` and `high`."""
        # There is one more integer below zero than above.
        return max(high, -low * (1 - 2.0 ** (1 - self.bits))) if self.is_symmetric else high

    def _edges(self) -> tuple[Any, Any]:
        """The smallest and the largest value, as tensors."""
        maximum = tf.convert_to_tensor(self.maximum)
        if self.is_symmetric:
            return -maximum / (1 - 2.0 ** (1 - self.bits)), maximum
        return tf.convert_to_tensor(self.minimum), maximum

    def call(self, inputs, training=False):
        if self.observer is not None:
            self.observer(inputs)
            return inputs
        # There is nothing to learn in a fixed range; and a probability that is rounded to zero has no gradient.
        if training and self.ranges == "fixed":
            return inputs
        values = tf.cast(inputs, tf.float32)
        if training and self.trainable and self.ranges == "moving_average":
            self._follow(values)
        minimum, maximum = self._edges()
        rounded = tf.quantization.fake_quant_with_min_max_vars(values, minimum, maximum, num_bits=self.bits)
        return tf.cast(rounded, inputs.dtype)

    def _follow(self, values):
        """Moves the range towards that of `values`."""
        if self.is_symmetric:
            high = tf.maximum(tf.reduce_max(tf.abs(values)), SMALLEST_RANGE)
            self.maximum.assign(self.momentum * self.maximum + (1 - self.momentum) * high)
            return
        low = tf.minimum(tf.reduce_min(values), 0.0)
        high = tf.maximum(tf.reduce_max(values), SMALLEST_RANGE)
        self.minimum.assign(self.momentum * self.minimum + (1 - self.momentum) * low)
        self.maximum.assign(self.momentum * self.maximum + (1 - self.momentum) * high)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "bits": self.bits,
            "ranges": self.ranges,
            "momentum": self.momentum,
            "initial_range": self.initial_range,
        }
