"""Teacher and student networks by name: `build("resnet", input_shape=(32, 32, 3), num_classes=10, depth=8)`.

Invariant: every family gives a functional model of plain Keras layers, channels last, whose output `logits` has shape
`(batch, num_classes)` and no activation. Left out: weights (all start from scratch) and preprocessing (the data's).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from tfcompress.errors import InvalidArgumentError
from tfcompress.models.arguments import is_whole
from tfcompress.models.cnn import cnn
from tfcompress.models.ds_cnn import ds_cnn
from tfcompress.models.lenet import lenet
from tfcompress.models.mlp import mlp
from tfcompress.models.mobilenet import mobilenet
from tfcompress.models.mobilenet_v2 import mobilenet_v2
from tfcompress.models.resnet import resnet
from tfcompress.models.vgg import vgg

__all__ = ["FAMILIES", "build"]

FAMILIES: Mapping[str, Callable[..., keras.Model]] = {
    "mlp": mlp,
    "lenet": lenet,
    "cnn": cnn,
    "resnet": resnet,
    "mobilenet": mobilenet,
    "mobilenet_v2": mobilenet_v2,
    "vgg": vgg,
    "ds_cnn": ds_cnn,
}


def build(family: str, *, input_shape: Sequence[int], num_classes: int, **arguments: Any) -> keras.Model:
    """Builds an untrained network of a family.

    Args:
        family: A name of `FAMILIES`.
        input_shape: Shape of one sample; `(height, width, channels)`, or any shape for `mlp`.
        num_classes: Number of logits, at least 2.
        **arguments: What else the family's function takes, such as `width` and `depth`.

    Returns:
        A functional Keras model from `(batch, *input_shape)` to logits `(batch, num_classes)`.

    Raises:
        InvalidArgumentError: If the family or an argument is unknown or out of range, or the input is too small for it.

    Example:
        >>> build("lenet", input_shape=(28, 28, 1), num_classes=10).count_params()
        431080
    """
    if family not in FAMILIES:
        raise InvalidArgumentError("family", f"one of {', '.join(FAMILIES)}", family)
    function = FAMILIES[family]
    known = [name for name in inspect.signature(function).parameters if name not in ("input_shape", "num_classes")]
    for name in arguments:
        if name not in known:
            raise InvalidArgumentError(f"arguments of {family}", f"among {', '.join(known)}", name)
    if not isinstance(input_shape, Sequence) or isinstance(input_shape, str) or not input_shape:
        raise InvalidArgumentError("input_shape", "the sizes of one sample, such as (32, 32, 3)", input_shape)
    if not all(is_whole(size, 1) for size in input_shape):
        raise InvalidArgumentError("input_shape", "whole numbers above 0", input_shape)
    if not is_whole(num_classes, 2):
        raise InvalidArgumentError("num_classes", "a whole number, at least 2", num_classes)
    return function(tuple(input_shape), num_classes, **arguments)
