"""The TensorFlow functions that a tf_keras graph may call, as operations of Keras 3.

Invariant: each entry takes what TensorFlow's function takes, under the same names, and computes the same; an argument
it cannot honour is an error by its signature. Left out: functions without an equal in `keras.ops`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfcompress.errors import ModelError


def run_tf_function(layer: Any, args: tuple, kwargs: Mapping[str, Any], name: str) -> Any:
    """Computes with Keras 3 what a `TFOpLambda` or `SlicingOpLambda` layer of tf_keras computes.

    Args:
        layer: The layer.
        args: The arguments of its call, with Keras 3 tensors.
        kwargs: Its keyword arguments.
        name: What the layer is called, for errors.

    Raises:
        ModelError: If the function, or an argument of it, has no equal in Keras 3.
    """
    symbol = layer.get_config()["function"]
    if symbol == "__operators__.getitem":
        return args[0][_index(args[1])]
    if symbol not in FUNCTIONS:
        raise ModelError(
            f"Layer {name!r} calls tf.{symbol}, for which the bridge knows no operation of Keras 3. Put it in a layer "
            "of your own and pass `layers={your class: function that makes the Keras 3 layer}`."
        )
    given = dict(inspect.signature(layer.function).bind(*args, **kwargs).arguments)
    given.pop("name", None)
    given = {key: _plain(value) for key, value in given.items() if value is not None}
    try:
        return FUNCTIONS[symbol](**given)
    except TypeError as error:
        raise ModelError(f"Layer {name!r} calls tf.{symbol} in a way that Keras 3 cannot: {error}") from error


def _index(spec: Any) -> Any:
    """A slice as tf_keras writes it down, as Python has it."""

    def part(one: Any) -> Any:
        return slice(one["start"], one["stop"], one["step"]) if isinstance(one, Mapping) else one

    return tuple(part(one) for one in spec) if isinstance(spec, list | tuple) else (part(spec),)


def _plain(value: Any) -> Any:
    # Sizes and axes; as an array, a tensor of values would have no gradient.
    if isinstance(value, tf.Tensor) and not value.dtype.is_floating:
        return value.numpy()
    return value.name if isinstance(value, tf.DType) else value


def _binary(function: Callable[[Any, Any], Any], first: str = "x", second: str = "y") -> Callable:
    def compute(**given: Any) -> Any:
        x, y = given.pop(first), given.pop(second)
        # Operations take a list for several tensors; TensorFlow, for one of the other's type.
        x, y = (
            np.asarray(one, dtype=keras.backend.standardize_dtype(other.dtype)) if isinstance(one, list) else one
            for one, other in ((x, y), (y, x))
        )
        return function(x, y, **given)

    return compute


def _unary(function: Callable[[Any], Any], argument: str = "x") -> Callable:
    return lambda **given: function(given.pop(argument), **given)


def _reduction(function: Callable) -> Callable:
    return lambda input_tensor, axis=None, keepdims=False: function(input_tensor, axis=axis, keepdims=keepdims)


def _position_of(function: Callable) -> Callable:
    # TensorFlow's first axis is the default, Keras's is all of them; and TensorFlow counts in int64.
    return lambda input, axis=0, output_type="int64": ops.cast(function(input, axis=axis), output_type)


def _matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    a, b = (ops.swapaxes(one, -1, -2) if flip else one for one, flip in ((a, transpose_a), (b, transpose_b)))
    return ops.matmul(a, b)


def _split(value: Any, num_or_size_splits: Any, axis: int = 0) -> Any:
    if isinstance(num_or_size_splits, int):
        return ops.split(value, num_or_size_splits, axis=axis)
    return ops.split(value, np.cumsum(num_or_size_splits)[:-1].tolist(), axis=axis)


def _resize(images: Any, size: Any, method: str = "bilinear", antialias: bool = False) -> Any:
    return ops.image.resize(images, tuple(int(one) for one in size), interpolation=method, antialias=antialias)


def _pad(tensor: Any, paddings: Any, mode: str = "CONSTANT", constant_values: Any = 0) -> Any:
    width = [tuple(int(one) for one in pair) for pair in paddings]
    if mode.upper() == "CONSTANT":
        return ops.pad(tensor, width, mode="constant", constant_values=constant_values)
    return ops.pad(tensor, width, mode=mode.lower())


def _cumsum(x: Any, axis: int, exclusive: bool, reverse: bool) -> Any:
    if exclusive or reverse:
        raise TypeError(f"exclusive={exclusive}, reverse={reverse}")
    return ops.cumsum(x, axis=axis)


def _top_k(input: Any, k: int = 1, sorted: bool = True, index_type: str = "int32") -> Any:
    return ops.top_k(input, k, sorted=sorted)


def _softmax(logits: Any, axis: int = -1) -> Any:
    return ops.softmax(logits, axis=axis)


def _clip(t: Any, clip_value_min: Any, clip_value_max: Any) -> Any:
    return ops.clip(t, clip_value_min, clip_value_max)


def _normalize(x: Any, axis: Any = None, epsilon: float = 1e-12) -> Any:
    return x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis=axis, keepdims=True), epsilon))


def _gather(params: Any, indices: Any, axis: int = 0, batch_dims: int = 0) -> Any:
    if batch_dims:
        raise TypeError(f"batch_dims={batch_dims} is not 0")
    return ops.take(params, indices, axis=axis)


def _transpose(a: Any, perm: Any = None, conjugate: bool = False) -> Any:
    if conjugate:
        raise TypeError("conjugate=True")
    return ops.transpose(a, None if perm is None else [int(at) for at in perm])


def _slice(input_: Any, begin: Any, size: Any) -> Any:
    ends = [None if length == -1 else start + length for start, length in zip(begin, size, strict=True)]
    return input_[tuple(slice(int(start), end) for start, end in zip(begin, ends, strict=True))]


def _add_n(inputs: Any) -> Any:
    return functools.reduce(ops.add, inputs)


def _norm(tensor: Any, ord: Any = "euclidean", axis: Any = None, keepdims: Any = None, keep_dims: Any = None) -> Any:
    if ord != "euclidean":
        raise TypeError(f"ord={ord!r} is not 'euclidean'")
    return ops.sqrt(ops.sum(ops.square(tensor), axis=axis, keepdims=bool(keepdims or keep_dims)))


def _space_to_depth(input: Any, block_size: int, data_format: str = "NHWC") -> Any:
    if data_format != "NHWC":
        raise TypeError(f"data_format={data_format!r} is not 'NHWC'")
    _, height, width, channels = input.shape
    x = ops.reshape(input, (-1, height // block_size, block_size, width // block_size, block_size, channels))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, height // block_size, width // block_size, block_size**2 * channels))


def _depth_to_space(input: Any, block_size: int, data_format: str = "NHWC") -> Any:
    if data_format != "NHWC":
        raise TypeError(f"data_format={data_format!r} is not 'NHWC'")
    _, height, width, channels = input.shape
    x = ops.reshape(input, (-1, height, width, block_size, block_size, channels // block_size**2))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, height * block_size, width * block_size, channels // block_size**2))


def _one_hot(indices: Any, depth: int, axis: int = -1, dtype: str = "float32") -> Any:
    return ops.one_hot(indices, depth, axis=axis, dtype=dtype)


_ARITHMETIC = {
    "add": ops.add, "subtract": ops.subtract, "multiply": ops.multiply, "divide": ops.divide,
    "truediv": ops.true_divide, "floordiv": ops.floor_divide, "mod": ops.mod, "floormod": ops.mod, "pow": ops.power,
    "maximum": ops.maximum, "minimum": ops.minimum, "greater": ops.greater, "greater_equal": ops.greater_equal,
    "less": ops.less, "less_equal": ops.less_equal, "equal": ops.equal, "not_equal": ops.not_equal,
    "logical_and": ops.logical_and, "logical_or": ops.logical_or,
    "squared_difference": lambda x, y: ops.square(ops.subtract(x, y)),
}  # fmt: skip
_ELEMENTWISE = {
    "abs": ops.abs, "negative": ops.negative, "square": ops.square, "sqrt": ops.sqrt, "rsqrt": ops.rsqrt,
    "exp": ops.exp, "log": ops.log, "log1p": ops.log1p, "sin": ops.sin, "cos": ops.cos, "tanh": ops.tanh,
    "sigmoid": ops.sigmoid, "sign": ops.sign, "floor": ops.floor, "ceil": ops.ceil, "round": ops.round,
    "erf": ops.erf, "reciprocal": ops.reciprocal, "logical_not": ops.logical_not,
}  # fmt: skip
_REDUCTIONS = {
    "reduce_mean": ops.mean, "reduce_sum": ops.sum, "reduce_max": ops.max, "reduce_min": ops.min,
    "reduce_std": ops.std, "reduce_variance": ops.var, "reduce_prod": ops.prod, "reduce_any": ops.any,
    "reduce_all": ops.all, "reduce_logsumexp": ops.logsumexp,
}  # fmt: skip
# How operators of Python are called there.
_OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "pow", "floordiv": "floordiv",
    "mod": "mod", "gt": "greater", "ge": "greater_equal", "lt": "less", "le": "less_equal", "eq": "equal",
    "ne": "not_equal", "and": "logical_and", "or": "logical_or",
}  # fmt: skip

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"math.{name}": _binary(function) for name, function in _ARITHMETIC.items()},
    **{f"__operators__.{name}": _binary(_ARITHMETIC[there]) for name, there in _OPERATORS.items()},
    **{
        f"__operators__.r{name}": (lambda function: lambda x, y: function(y, x))(_ARITHMETIC[there])
        for name, there in _OPERATORS.items()
    },
    "__operators__.neg": _unary(ops.negative),
    "__operators__.abs": _unary(ops.abs),
    "__operators__.invert": _unary(ops.logical_not),
    **{f"math.{name}": _unary(function) for name, function in _ELEMENTWISE.items()},
    **{f"math.{name}": _reduction(function) for name, function in _REDUCTIONS.items()},
    "__operators__.eq": _binary(ops.equal, "self", "other"),
    "__operators__.ne": _binary(ops.not_equal, "self", "other"),
    "math.argmax": _position_of(ops.argmax),
    "math.argmin": _position_of(ops.argmin),
    "argmax": _position_of(ops.argmax),
    "argmin": _position_of(ops.argmin),
    "math.l2_normalize": _normalize,
    "linalg.l2_normalize": _normalize,
    "linalg.matmul": _matmul,
    "matmul": _matmul,
    "nn.relu": _unary(ops.relu, "features"),
    "nn.relu6": _unary(ops.relu6, "features"),
    "nn.leaky_relu": lambda features, alpha=0.2: ops.leaky_relu(features, negative_slope=alpha),
    "nn.elu": _unary(ops.elu, "features"),
    "nn.selu": _unary(ops.selu, "features"),
    "nn.gelu": lambda features, approximate=False: ops.gelu(features, approximate=approximate),
    "nn.silu": lambda features, beta=1.0: features * ops.sigmoid(beta * features),
    "nn.softplus": _unary(ops.softplus, "features"),
    "nn.softmax": _softmax,
    "nn.log_softmax": lambda logits, axis=-1: ops.log_softmax(logits, axis=axis),
    "nn.sigmoid": _unary(ops.sigmoid),
    "nn.tanh": _unary(ops.tanh),
    "reshape": lambda tensor, shape: ops.reshape(tensor, tuple(int(size) for size in shape)),
    "transpose": _transpose,
    "compat.v1.transpose": _transpose,
    "slice": _slice,
    "math.add_n": _add_n,
    "math.cumsum": lambda x, axis=0, exclusive=False, reverse=False: _cumsum(x, axis, exclusive, reverse),
    "math.divide_no_nan": _binary(ops.divide_no_nan),
    "math.softplus": _unary(ops.softplus, "features"),
    "math.top_k": _top_k,
    "nn.bias_add": lambda value, bias: ops.add(value, bias),
    "nn.depth_to_space": _depth_to_space,
    "nn.space_to_depth": _space_to_depth,
    "compat.v1.norm": _norm,
    "norm": _norm,
    "keras.backend.batch_flatten": lambda x: ops.reshape(x, (-1, int(np.prod(x.shape[1:])))),
    "expand_dims": lambda input, axis: ops.expand_dims(input, int(axis)),
    "squeeze": lambda input, axis=None: ops.squeeze(input, axis=axis),
    "compat.v1.squeeze": lambda input, axis=None, squeeze_dims=None: ops.squeeze(
        input, axis=squeeze_dims if axis is None else axis
    ),
    "compat.v1.floor_div": _binary(ops.floor_divide),
    "concat": lambda values, axis: ops.concatenate(values, axis=int(axis)),
    "stack": lambda values, axis=0: ops.stack(values, axis=axis),
    "unstack": lambda value, num=None, axis=0: ops.unstack(value, num=num, axis=axis),
    "split": _split,
    "tile": lambda input, multiples: ops.tile(input, [int(one) for one in multiples]),
    "repeat": lambda input, repeats, axis=None: ops.repeat(input, repeats, axis=axis),
    "reverse": lambda tensor, axis: ops.flip(tensor, axis=[int(one) for one in np.ravel(axis)]),
    "cast": lambda x, dtype: ops.cast(x, dtype),
    "identity": lambda input: keras.layers.Identity()(input),
    "stop_gradient": lambda input: ops.stop_gradient(input),
    "where": lambda condition, x, y: ops.where(condition, x, y),
    "clip_by_value": _clip,
    "ones_like": lambda input, dtype=None: ops.ones_like(input, dtype=dtype),
    "zeros_like": lambda input, dtype=None: ops.zeros_like(input, dtype=dtype),
    "gather": _gather,
    "compat.v1.gather": _gather,
    "one_hot": _one_hot,
    "einsum": lambda equation, inputs: ops.einsum(equation, *inputs),
    "pad": _pad,
    "compat.v1.pad": _pad,
    "image.resize": _resize,
    "broadcast_to": lambda input, shape: ops.broadcast_to(input, tuple(int(size) for size in shape)),
    "nn.avg_pool2d": lambda input, ksize, strides, padding: ops.average_pool(
        input, ksize, strides, padding=padding.lower()
    ),
    "nn.max_pool2d": lambda input, ksize, strides, padding: ops.max_pool(
        input, ksize, strides, padding=padding.lower()
    ),
}
