"""What each `keras.ops` operation does with the channels that it takes, and how it is called with fewer.

Invariant: an operation that is not known here fixes the channels that it takes and gives. Left out: layers
(`channel_layers.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.graph import channel_tensors as tensors
from tfcompress.graph.channel_labels import Kept, LabelBook, Labelled, Labels
from tfcompress.graph.trace import Call, Ref

# Functions of one number at a time, or of two.
_ELEMENTWISE = frozenset(
    {
        "Abs",
        "Absolute",
        "Add",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Divide",
        "DivideNoNan",
        "Elu",
        "Erf",
        "Exp",
        "Expm1",
        "Floor",
        "Gelu",
        "HardShrink",
        "HardSigmoid",
        "HardSilu",
        "HardTanh",
        "Identity",
        "LeakyRelu",
        "Log",
        "Log1p",
        "LogSigmoid",
        "Maximum",
        "Minimum",
        "Mish",
        "Multiply",
        "Negative",
        "Power",
        "Reciprocal",
        "Relu",
        "Relu6",
        "Round",
        "Rsqrt",
        "Selu",
        "Sigmoid",
        "Sign",
        "Silu",
        "Sin",
        "Softplus",
        "SoftShrink",
        "Softsign",
        "SparsePlus",
        "Sqrt",
        "Square",
        "Squareplus",
        "StopGradient",
        "Subtract",
        "Tanh",
        "TanhShrink",
        "Threshold",
        "TrueDivide",
        "Where",
    }
)
_REDUCING = frozenset({"Amax", "Amin", "Max", "Mean", "Min", "Prod", "Std", "Sum", "Var"})
_RESHAPING = frozenset({"ExpandDims", "Reshape", "Squeeze", "Ravel"})


def connect_operation(
    book: LabelBook, call: Call, inputs: Mapping[Ref, Labelled], outputs: Sequence[tuple]
) -> Sequence[Labels | None]:
    """Notes what a call of an operation does with labels.

    Args:
        book: Where labels are noted.
        call: The call.
        inputs: What it takes, by its `Ref`.
        outputs: The shapes of its results.

    Returns:
        The labels of each result, None where they are fixed.
    """
    operation = call.operation
    kind = type(operation).__name__ if type(operation).__module__.startswith("keras.") else ""
    given = [inputs[ref] for ref in call.sources]
    if any(one.labels is not None for one in given):
        if kind in _ELEMENTWISE and not _has_array(call):
            return [tensors.merge(book, given, outputs[0])]
        if kind in _RESHAPING and _has_batch(given[0], outputs[0]):
            return [tensors.reshape(book, given[0], outputs[0])]
        if kind in _REDUCING:
            return [tensors.reduce(book, given[0], _axes(operation.axis), bool(operation.keepdims))]
        if kind == "Concatenate":
            return [tensors.concatenate(book, given, operation.axis)]
        if kind == "Transpose" and operation.axes is not None and operation.axes[0] % len(given[0].shape) == 0:
            return [tensors.transpose(given[0], operation.axes)]
        if kind == "GetItem":
            return [_got(book, given[0], _key(call))]
        if kind == "Split" and operation.axis % len(given[0].shape):
            return _split(given[0], operation.axis % len(given[0].shape), outputs)
    book.fix(*(one.labels for one in given))
    return [None] * len(outputs)


def call_with_fewer(call: Call, given: Kept | None, made: Kept | None, args: tuple, kwargs: dict) -> Any:
    """Calls an operation on tensors with fewer channels.

    Args:
        call: The call as it was.
        given: What is left of its first input, None if it had no channels to lose.
        made: The same of its first result.
        args: Its new arguments, a tensor for each `Ref`.
        kwargs: Its new keyword arguments.

    Returns:
        Its new result.
    """
    operation, kind = call.operation, type(call.operation).__name__
    if kind == "Reshape" and made is not None:
        return ops.reshape(args[0], shorter_shape(operation.newshape, made))
    if kind == "GetItem" and given is not None:
        return args[0][_shorter_key(_key(call), given, args[0].ndim)]
    if kind == "Split" and given is not None and operation.axis % args[0].ndim == given.axis % args[0].ndim:
        return ops.split(args[0], _shorter_sections(operation.indices_or_sections, given.keep), axis=operation.axis)
    return operation(*args, **kwargs)


def shorter_shape(shape: Sequence[int], made: Kept) -> tuple[int, ...]:
    """The target of a reshaping, with what is left along its axis of channels; -1 stays."""
    shape = list(shape)
    if shape[made.axis] != -1:
        shape[made.axis] = int(made.keep.sum())
    return tuple(shape)


def _has_array(call: Call) -> bool:
    """Whether an argument of a call, or of its operation, is an array of constants, which has channels of its own."""
    leaves = keras.tree.flatten((call.args, dict(call.kwargs)))
    settings = [value for name, value in vars(call.operation).items() if not name.startswith("_")]
    return any(np.ndim(one) for one in (*leaves, *settings) if not isinstance(one, Ref))


def _has_batch(given: Labelled, output: tuple) -> bool:
    return len(output) > 1 and given.shape[0] == output[0]


def _axes(axis: Any) -> Sequence[int] | None:
    return axis if axis is None or isinstance(axis, list | tuple) else (axis,)


def _key(call: Call) -> tuple:
    key = call.args[1] if len(call.args) > 1 else call.kwargs["key"]
    return key if isinstance(key, tuple) else (key,)


def _got(book: LabelBook, given: Labelled, key: tuple) -> Labels | None:
    """Slices keep labels; anything else along the labelled axis fixes them."""
    labels = given.labels
    is_plain = all(isinstance(one, slice | int) or one is Ellipsis for one in key)
    if labels is None or not is_plain or not key or key[0] not in (slice(None), Ellipsis) or None in given.shape:
        book.fix(labels)
        return None
    full = _full_key(key, len(given.shape))
    axis = labels.axis + len(given.shape)
    own = full[axis]
    if not isinstance(own, slice) or own.step not in (None, 1):
        book.fix(labels)
        return None
    behind = sum(isinstance(one, int) for one in full[axis + 1 :])
    return Labels(labels.axis + behind, labels.vector[own])


def _full_key(key: tuple, rank: int) -> list:
    """A key with one entry for each axis."""
    at = next((index for index, one in enumerate(key) if one is Ellipsis), len(key))
    behind = list(key[at + 1 :])
    return [*key[:at], *[slice(None)] * (rank - at - len(behind)), *behind]


def _split(given: Labelled, axis: int, outputs: Sequence[tuple]) -> Sequence[Labels | None]:
    labels = given.labels
    if labels is None or labels.axis + len(given.shape) != axis:
        return [labels] * len(outputs)
    ends = np.cumsum([output[axis] for output in outputs])
    return [Labels(labels.axis, vector) for vector in np.split(labels.vector, ends[:-1])]


def _shorter_key(key: tuple, given: Kept, rank: int) -> tuple:
    before = np.concatenate([[0], np.cumsum(given.keep)])
    full = _full_key(key, rank)
    start, stop, _ = full[given.axis].indices(len(given.keep))
    full[given.axis] = slice(int(before[start]), int(before[max(start, stop)]))
    return tuple(full)


def _shorter_sections(sections: Any, keep: np.ndarray) -> list[int]:
    ends = [len(keep) // sections * at for at in range(1, sections)] if isinstance(sections, int) else list(sections)
    before = np.concatenate([[0], np.cumsum(keep)])
    return [int(before[end]) for end in ends]
