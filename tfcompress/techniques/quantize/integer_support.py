"""What the integer runtime makes of each Keras layer and operation: which tensors it stores, and what it cannot do.

A table, read by `rewrite.py`. What stands here was tried: each kind of layer is converted and run by
tests/test_quantize_layers.py.

Invariant: what has no reason in `unsupported_reason` becomes integer operations only. Left out: how many bits, and the
ranges.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import activations, layers

from tfcompress.graph.trace import Trace
from tfcompress.layers import COMPOSED, QUANTIZED_LAYERS, SIGMOID_RANGE, TANH_RANGE
from tfcompress.techniques.quantize.time_distributed import time_distributed_reason

# Their results have the scale of what came in.
HANDED_ON = (
    layers.MaxPooling1D, layers.MaxPooling2D, layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D,
    layers.Flatten, layers.Reshape, layers.Permute, layers.RepeatVector,
    layers.ZeroPadding1D, layers.ZeroPadding2D, layers.Cropping1D, layers.Cropping2D, layers.UpSampling1D,
)  # fmt: skip
# Their results have that scale too, and are rounded to it.
AVERAGED = (layers.AveragePooling1D, layers.AveragePooling2D)
# They do nothing when a model is used, so they stand between no two tensors.
ABSENT = (
    layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.GaussianNoise, layers.GaussianDropout,
    layers.AlphaDropout, layers.ActivityRegularization, layers.Identity,
)  # fmt: skip
# Their results are new numbers, with a scale of their own.
COMPUTED = (
    layers.Add, layers.Subtract, layers.Multiply, layers.Maximum, layers.Minimum, layers.Concatenate,
    layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.PReLU,
)  # fmt: skip
# Their inputs have the scale of their result: what goes to no other operation is rounded to that one at once.
ONE_SCALE = (layers.Concatenate, layers.Maximum, layers.Minimum)
RECURRENT = (layers.LSTM, layers.GRU, layers.SimpleRNN, layers.Bidirectional)
# They round their results themselves.
ROUNDED_INSIDE = (*RECURRENT, layers.Embedding)
# One sum of products, with an activation in the layer.
SUMS = (
    layers.Conv1D, layers.Conv2D, layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Dense, layers.EinsumDense,
    layers.DepthwiseConv1D, layers.DepthwiseConv2D, layers.SeparableConv1D, layers.SeparableConv2D,
)  # fmt: skip
# Sums whose scales, one for each channel, absorb a BatchNormalization.
ABSORBING = (
    layers.Conv1D, layers.Conv2D, layers.Dense,
    layers.DepthwiseConv1D, layers.DepthwiseConv2D, layers.SeparableConv1D, layers.SeparableConv2D,
)  # fmt: skip

# Layers that compute something else where a mask comes along.
MASKED = (
    layers.MultiHeadAttention, *RECURRENT, layers.GlobalAveragePooling1D, layers.Softmax, layers.TimeDistributed,
    layers.Attention, layers.AdditiveAttention,
)  # fmt: skip
# Layers whose kernels of 4 bits the converter (TensorFlow 2.21) refuses.
EIGHT_BITS_ONLY = (
    layers.Embedding, layers.Conv1DTranspose, layers.Conv2DTranspose, *RECURRENT,
)  # fmt: skip

# Activations that are one integer operation, with the range that the runtime gives its result, if that is fixed.
SINGLE_ACTIVATIONS: dict[str, tuple[float, float] | None] = {
    "linear": None,
    "relu": None,
    "relu6": None,
    "leaky_relu": None,
    "gelu": None,
    "hard_silu": None,
    "hard_swish": None,
    "exponential": None,
    "sigmoid": SIGMOID_RANGE,
    "softmax": SIGMOID_RANGE,
    "tanh": TANH_RANGE,
}
FIXED_RANGES = {**{name: fixed for name, fixed in SINGLE_ACTIVATIONS.items() if fixed}, "hard_sigmoid": (0.0, 1.0)}
# In the same operation as the sum before them.
FUSED_ACTIVATIONS = ("linear", "relu", "relu6")

# `keras.ops` operations by their class. These hand on what came in ...
HANDED_ON_OPERATIONS = frozenset(
    {"Reshape", "Transpose", "Squeeze", "ExpandDims", "GetItem", "Flip", "Pad", "Split", "Max", "Min", "Ravel",
     "Repeat", "Swapaxes", "Moveaxis", "Tile", "Identity"}
)  # fmt: skip
# ... and these compute.
COMPUTED_OPERATIONS = frozenset(
    {"Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum", "Mean", "Sum", "Matmul",
     "Concatenate", "Stack", "Exp", "Log", "Sqrt", "Rsqrt", "Absolute", "Abs", "Roll"}
)  # fmt: skip
ONE_SCALE_OPERATIONS = frozenset({"Concatenate", "Maximum", "Minimum", "Stack"})
# Written with others: `-x` as `0 - x`.
REWRITTEN_OPERATIONS = frozenset({"Negative", "Square"})
# Activations as operations, by class, and their names as functions.
ACTIVATION_OPERATIONS = {
    "Relu": "relu", "Relu6": "relu6", "LeakyRelu": "leaky_relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Gelu": "gelu",
    "Softmax": "softmax", "HardSilu": "hard_silu", "HardSigmoid": "hard_sigmoid", "Silu": "silu", "Elu": "elu",
    "Selu": "selu", "Softplus": "softplus",
}  # fmt: skip


def is_layer(operation: Any) -> bool:
    return isinstance(operation, layers.Layer)


def activation_name(operation: Any) -> str | None:
    """The activation that a layer or operation is, or that a sum has inside; None for anything else.

    Example:
        >>> activation_name(layers.ReLU()), activation_name(layers.Conv2D(2, 3, activation="gelu"))
        ('relu', 'gelu')
    """
    if isinstance(operation, layers.Activation) or type(operation) in SUMS:
        name = activations.serialize(operation.activation)
        return name if isinstance(name, str) else getattr(operation.activation, "__name__", "a function")
    for kind, name in (
        (layers.ReLU, "relu"), (layers.LeakyReLU, "leaky_relu"), (layers.Softmax, "softmax"), (layers.ELU, "elu"),
    ):  # fmt: skip
        if isinstance(operation, kind):
            return "relu6" if isinstance(operation, layers.ReLU) and operation.max_value == 6 else name
    if not is_layer(operation):
        return ACTIVATION_OPERATIONS.get(type(operation).__name__)
    return None


def is_clipping(operation: Any) -> bool:
    """Whether an activation is a clipping that TFLite fuses into the operation before: ReLU or ReLU6."""
    if isinstance(operation, layers.ReLU):
        return operation.max_value in (None, 6) and not operation.negative_slope and not operation.threshold
    return type(operation) not in SUMS and activation_name(operation) in ("relu", "relu6")


def is_sum(operation: Any) -> bool:
    """Whether the operation is a convolution or dense layer with nothing after its sum."""
    return type(operation) in SUMS and activation_name(operation) == "linear"


def unfused_activation(operation: Any) -> str | None:
    """The activation inside a convolution or dense layer that TFLite computes as an operation of its own."""
    if type(operation) not in SUMS:
        return None
    name = activation_name(operation)
    return None if name in FUSED_ACTIVATIONS else name


def fixed_range(operation: Any) -> tuple[float, float] | None:
    """The range that the runtime gives the result of an operation, whatever came in."""
    return FIXED_RANGES.get(activation_name(operation) or "")


def averages_all(operation: Any) -> bool:
    """Whether a pooling takes the mean of its whole input."""
    return (
        isinstance(operation, layers.AveragePooling2D)
        and operation.data_format == "channels_last"
        and operation.padding == "valid"
        and tuple(operation.pool_size) == tuple(operation.input.shape[1:3])
    )


def hands_on(operation: Any) -> bool:
    """Whether the result has the scale of what came in."""
    if isinstance(operation, layers.UpSampling2D | layers.Resizing):
        return operation.interpolation == "nearest"
    return isinstance(operation, HANDED_ON) or (
        not is_layer(operation) and type(operation).__name__ in HANDED_ON_OPERATIONS
    )


def takes_one_scale(operation: Any) -> bool:
    """Whether the inputs have the scale of the result."""
    return isinstance(operation, ONE_SCALE) or (
        not is_layer(operation) and type(operation).__name__ in ONE_SCALE_OPERATIONS
    )


def only_follower(traced: Trace, index: int) -> Any | None:
    """The operation that alone takes the result of call `index`, looking through what is absent in use."""
    outputs = {ref.call for ref in keras.tree.flatten(traced.outputs)}
    while index not in outputs:
        consumers = traced.consumers(index)
        if len(consumers) != 1:
            return None
        (index,) = consumers
        if not isinstance(traced.calls[index].operation, ABSENT):
            return traced.calls[index].operation
    return None


def is_absorbed(traced: Trace, index: int) -> bool:
    """Whether call `index` is a BatchNormalization that the convolution before it takes into its scales."""
    operation = traced.calls[index].operation
    if type(operation) is not layers.BatchNormalization:
        return False
    before = traced.calls[index].sources[0].call
    while isinstance(traced.calls[before].operation, ABSENT):
        before = traced.calls[before].sources[0].call
    source = traced.calls[before].operation
    return type(source) in ABSORBING and is_sum(source) and only_follower(traced, before) is operation


def unsupported_reason(traced: Trace, index: int, weight_bits: int = 8) -> str | None:
    """Why call `index` cannot be computed in integers, with kernels of `weight_bits`, or None."""
    call = traced.calls[index]
    operation = call.operation
    if not is_layer(operation):
        return _operation_reason(call)
    if not type(operation).__module__.startswith("keras."):
        return f"{type(operation).__name__} is no layer of Keras, and may compute anything"
    if weight_bits == 4 and isinstance(operation, EIGHT_BITS_ONLY):
        return f"the converter takes no kernel of 4 bits for it; use weight_bits={{'{operation.name}': 8, '*': 4}}"
    if weight_bits == 4 and _is_shared_by_channel(traced, index):
        return (
            "the converter keeps 8 bits of a kernel with scales by channel that is used at several places; use "
            f"weight_bits={{'{operation.name}': 8, '*': 4}}"
        )
    if isinstance(operation, layers.Embedding):
        return _embedding_reason(traced, index)
    if getattr(operation, "data_format", "channels_last") == "channels_first":
        return "data_format 'channels_first' has no integer kernel"
    name = activation_name(operation)
    if name is not None:
        return _activation_reason(operation, name)
    if isinstance(operation, layers.BatchNormalization | layers.Rescaling | layers.Normalization):
        return _affine_reason(operation)
    if isinstance(operation, RECURRENT):
        return _recurrent_reason(call)
    if isinstance(operation, layers.TimeDistributed):
        return time_distributed_reason(call)
    if isinstance(operation, layers.MultiHeadAttention):
        return _attention_reason(call)
    if isinstance(operation, layers.LayerNormalization):
        axis = operation.axis if isinstance(operation.axis, list | tuple) else [operation.axis]
        last = len(operation.input.shape) - 1
        return None if [a % (last + 1) for a in axis] == [last] else "it normalizes other axes than the last one"
    if isinstance(operation, layers.UpSampling2D) and operation.interpolation not in ("nearest", "bilinear"):
        return f"interpolation {operation.interpolation!r} has no integer kernel"
    if isinstance(operation, layers.Resizing) and operation.interpolation not in ("nearest", "bilinear"):
        return f"interpolation {operation.interpolation!r} has no integer kernel"
    known = (
        *HANDED_ON,
        *AVERAGED,
        *ABSENT,
        *COMPUTED,
        *ROUNDED_INSIDE,
        layers.UpSampling2D,
        layers.Resizing,
        layers.InputLayer,
    )
    if isinstance(operation, known) or type(operation) in QUANTIZED_LAYERS:
        return None
    return f"{type(operation).__name__} has no rounded twin"


def _is_shared_by_channel(traced: Trace, index: int) -> bool:
    """Whether the layer of call `index` is used more than once and its kernel is rounded channel by channel."""
    operation = traced.calls[index].operation
    uses = [at for at, call in enumerate(traced.calls) if call.operation is operation]
    if len(uses) < 2 or type(operation) not in SUMS:
        return False
    if type(operation) is layers.Dense:
        return any(type(only_follower(traced, at)) is layers.BatchNormalization for at in uses)
    return QUANTIZED_LAYERS[type(operation)].per_channel


def _activation_reason(operation: Any, name: str) -> str | None:
    if isinstance(operation, layers.Softmax) and operation.axis not in (-1, len(operation.input.shape) - 1):
        return "a softmax over another axis than the last one has no integer kernel"
    if isinstance(operation, layers.ReLU) and (operation.threshold or operation.negative_slope):
        return "a ReLU with a threshold or slope; use LeakyReLU for a slope"
    if isinstance(operation, layers.ELU) and operation.alpha != 1:
        return "an ELU with another alpha than 1"
    if name in SINGLE_ACTIVATIONS or name in COMPOSED:
        return None
    return f"activation {name!r} has no integer form"


def _affine_reason(operation: Any) -> str | None:
    axis = getattr(operation, "axis", -1)
    rank, channels = len(operation.input.shape), operation.input.shape[-1]
    if "float" not in str(operation.input.dtype):
        return f"its input is {operation.input.dtype}; give the model a float32 input"
    if isinstance(operation, layers.Rescaling):
        for value in (operation.scale, operation.offset):
            if np.size(value) not in (1, channels) or np.ndim(value) > 1:
                return f"a scale or offset of shape {np.shape(value)}, which is not that of {channels} channels"
    axes = () if axis is None else tuple(a % rank for a in (axis if isinstance(axis, list | tuple) else [axis]))
    if axes not in ((), (rank - 1,)):
        return f"it scales other axes than the last one: {axis}"
    if rank > 4 and None in operation.input.shape[1:]:
        return f"its input has unknown sizes: {operation.input.shape}"
    return None


def _recurrent_reason(call: Any) -> str | None:
    layer = call.operation
    if len(call.sources) != 1:
        return "an initial state or a mask that comes from the network"
    if call.args[0] is not None and layer.input.shape[1] is None:
        return "its number of steps is not known; give the input a fixed length"
    is_wrapper = isinstance(layer, layers.Bidirectional)
    directions = (layer.forward_layer, layer.backward_layer) if is_wrapper else (layer,)
    return next((reason for one in directions if (reason := _direction_reason(one)) is not None), None)


def _direction_reason(layer: Any) -> str | None:
    if type(layer) not in (layers.LSTM, layers.GRU, layers.SimpleRNN):
        return f"{type(layer).__name__} within it has no rounded twin"
    if layer.stateful or layer.cell.recurrent_dropout:
        return "stateful, or recurrent dropout"
    if isinstance(layer, layers.GRU) and not layer.reset_after:
        return "a GRU with reset_after=False"
    functions = [activations.serialize(layer.cell.activation)]
    if not isinstance(layer, layers.SimpleRNN):
        functions.append(activations.serialize(layer.cell.recurrent_activation))
    for name in functions:
        if name not in ("tanh", "sigmoid", "relu"):
            return f"activation {name!r} inside of a recurrent layer has no integer form"
    return None


def _attention_reason(call: Any) -> str | None:
    layer = call.operation
    kwargs = dict(call.kwargs)
    masks = ("query_mask", "value_mask", "key_mask", "attention_mask")
    if any(kwargs.get(name) is not None for name in masks) or kwargs.get("use_causal_mask") or len(call.args) > 3:
        return "attention masks have no integer form"
    if kwargs.get("return_attention_scores"):
        return "returned attention scores"
    if any(len(tensor.shape) != 3 for tensor in keras.tree.flatten(layer.input)) or getattr(layer, "_use_gate", False):
        return "attention over more than one axis, or with a gate"
    if len(layer._output_dense.kernel.shape) != 3:
        return "an output_shape of more than one axis"
    return None


def _pads_with_zeros(call: Any) -> bool:
    values = [value for value in (*call.args[1:], call.kwargs.get("constant_values")) if value is not None]
    return not any(np.any(np.asarray(value) != 0) for value in values)


def _embedding_reason(traced: Trace, index: int) -> str | None:
    layer = traced.calls[index].operation
    if "float" in str(layer.input.dtype):
        return "its indices come as floats; give the model an input of dtype 'int32'"
    if not layer.mask_zero:
        return None
    # Keras hands a mask on with the tensors, and no integer operation has one.
    reached: set[int] = set()
    due = [index]
    while due:
        for at in traced.consumers(due.pop()):
            if at not in reached:
                reached.add(at)
                due.append(at)
    users = [
        traced.calls[at].operation.name for at in sorted(reached) if isinstance(traced.calls[at].operation, MASKED)
    ]
    return f"its mask changes what {users[0]!r} computes; use mask_zero=False" if users else None


def _operation_reason(call: Any) -> str | None:
    operation = call.operation
    name = type(operation).__name__
    if not type(operation).__module__.startswith("keras.src.ops."):
        return f"operation {name} has no integer form"
    results = keras.tree.flatten(operation.output)
    if not any("float" in str(result.dtype) for result in results):
        # Whole numbers, such as positions, are no matter of rounding.
        return None
    if name == "Elu" and getattr(operation, "alpha", 1.0) != 1:
        return "an ELU with another alpha than 1"
    if name == "Pad" and (operation.mode != "constant" or not _pads_with_zeros(call)):
        return "padding with something else than zeros"
    if name == "Softmax" and getattr(operation, "axis", -1) not in (-1, len(results[0].shape) - 1):
        return "a softmax over another axis than the last one has no integer kernel"
    if name in HANDED_ON_OPERATIONS | COMPUTED_OPERATIONS | REWRITTEN_OPERATIONS or name in ACTIVATION_OPERATIONS:
        return None
    return f"operation {name} has no integer form"
