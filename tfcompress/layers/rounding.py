"""What makes a Keras layer a rounded one: its kernels in float32 until they are rounded, and ranges of its own inside.

Invariant: a layer with these mixed in is its Keras layer in everything but the values it computes: its variables have
the same names, order and shapes, so weights and masks move over unchanged, and `base_class` gives the plain layer back.
Left out: biases, which the converter stores in 32 bits, and the range of a layer's result, which follows it in the
graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tfcompress.layers.fake_quantize import FakeQuantize, fake_quantize_kernel

# The ranges that the runtime's 8-bit kernels have, whatever comes in, and that of its 16-bit ones for all of these.
SIGMOID_RANGE = (0.0, 255.0 / 256.0)
TANH_RANGE = (-1.0, 127.0 / 128.0)
WIDE_UNIT_RANGE = (-1.0, 32767.0 / 32768.0)


def fixed_range_of(narrow: tuple[float, float], bits: int) -> tuple[float, float]:
    """The range that 16-bit kernels have where 8-bit ones have `narrow`; `narrow` itself for 8 bits.

    Example:
        >>> fixed_range_of(SIGMOID_RANGE, 16), fixed_range_of((0.0, 6.0), 16)
        ((-1.0, 0.999969482421875), (0.0, 6.0))
    """
    return WIDE_UNIT_RANGE if bits > 8 and narrow in (SIGMOID_RANGE, TANH_RANGE) else narrow


class RoundedKernel:
    """Mixin: adds `weight_bits`, keeps the kernels in float32, and rounds them on demand."""

    is_fake_quantized = True
    # Whether the kernel has a scale for each channel, and if so, whether these are all the same.
    per_channel = True
    one_scale = False
    base_class: type[keras.layers.Layer]
    # The keys of `get_config` that the plain layer does not have.
    rounding_keys: ClassVar[tuple[str, ...]] = ("weight_bits",)
    # The variables that are rounded, by the names that Keras gives them.
    kernel_names: ClassVar[tuple[str, ...]] = ("kernel",)

    def __init__(self, *args: Any, weight_bits: int = 8, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.weight_bits = weight_bits

    def add_weight(self, *args: Any, **kwargs: Any):
        # Rounding must see the float32 kernel: under mixed precision a kernel cast to 16 bits first would round
        # differently from the exported file.
        if kwargs.get("name") in self.kernel_names:
            kwargs["autocast"] = False
        return super().add_weight(*args, **kwargs)  # type: ignore[misc]

    def rounded_kernel(self, kernel: Any) -> Any:
        """A kernel, its last axis that of the channels, as the file will hold it."""
        kernel = tf.convert_to_tensor(kernel)
        if self.per_channel:
            rounded = fake_quantize_kernel(kernel, bits=self.weight_bits, per_channel=True, one_scale=self.one_scale)
        else:
            # The converter (TensorFlow 2.21) drops the range of a rounded kernel that goes to several operations, as in
            # a shared layer or at every step of a recurrent one, and rounds again, each channel to another scale. This
            # one goes to a reshaping alone, which leaves no operation in the file.
            rounded = fake_quantize_kernel(kernel[None], bits=self.weight_bits, per_channel=False)
            rounded = tf.reshape(rounded, kernel.shape)
        return tf.cast(rounded, self.compute_dtype)  # type: ignore[attr-defined]

    def get_config(self) -> dict:
        return {**super().get_config(), "weight_bits": self.weight_bits}  # type: ignore[misc]


class RoundedChannels(RoundedKernel):
    """Mixin: a rounded kernel with a scale for each channel.

    Args:
        one_scale: Whether these scales are the same, so that equal weights are equal integers in all channels.
    """

    rounding_keys: ClassVar[tuple[str, ...]] = (*RoundedKernel.rounding_keys, "one_scale")

    def __init__(self, *args: Any, one_scale: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.one_scale = one_scale

    def get_config(self) -> dict:
        return {**super().get_config(), "one_scale": self.one_scale}


class InnerRanges:
    """Mixin: a layer that computes in several steps and rounds the result of each."""

    is_fake_quantized = True
    base_class: type[keras.layers.Layer]
    rounding_keys: ClassVar[tuple[str, ...]] = ("activation_bits", "ranges", "momentum")

    def __init__(
        self, *args: Any, activation_bits: int = 8, ranges: str = "learned", momentum: float = 0.99, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.activation_bits = activation_bits
        self.ranges = ranges
        self.momentum = momentum

    def inner_range(self, what: str, fixed: tuple[float, float] | None = None) -> FakeQuantize:
        """A range for one step, built; to be made in `build` and kept as an attribute."""
        settings: dict[str, Any] = (
            {"ranges": self.ranges, "momentum": self.momentum}
            if fixed is None
            else {"ranges": "fixed", "initial_range": fixed_range_of(fixed, self.activation_bits)}
        )
        name = f"{self.name}_{what}_range"  # type: ignore[attr-defined]
        # Under mixed precision a step may be computed in float32 or in half precision; its range keeps either.
        layer = FakeQuantize(name=name, bits=self.activation_bits, autocast=False, **settings)
        layer.build(())
        return layer

    def get_config(self) -> dict:
        config = super().get_config()  # type: ignore[misc]
        return {**config, "activation_bits": self.activation_bits, "ranges": self.ranges, "momentum": self.momentum}


def keep_in_float32(variables: Iterable[Any]) -> None:
    """Lets mixed precision leave kernels alone that another layer made, so that rounding sees them as they are."""
    for variable in variables:
        variable._autocast = False


def plain_weights(layer: keras.layers.Layer) -> list[Any]:
    """The weights that a layer has in common with its plain Keras layer, in Keras's order: all but its ranges."""
    inner = {
        id(weight)
        for part in layer._flatten_layers()
        if isinstance(part, FakeQuantize) and part is not layer
        for weight in part.weights
    }
    return [weight for weight in layer.weights if id(weight) not in inner]


def copy_plain_weights(layer: keras.layers.Layer, copy: keras.layers.Layer) -> None:
    """Gives a built twin of a layer, rounded or plain, the weights that both have in common."""
    for target, source in zip(plain_weights(copy), plain_weights(layer), strict=True):
        target.assign(source)
    if isinstance(copy, keras.layers.Normalization):
        copy.finalize_state()  # It computes with constants that it makes of its weights.
