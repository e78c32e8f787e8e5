"""One layer as a chain of smaller ones: what each way of factorizing says of itself.

Invariant: at full rank the chain computes what the layer does; the last layer of the chain has the layer's own name,
bias, activation and output, so that whoever knows the layer by its name still finds its result. Left out: the ways
themselves (`svd.py`, `convolution.py`, `tucker.py`), and which rank to take (`ranks.py`).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np

from tfcompress.graph.copy_layer import copy_of_other_size

Shape = Sequence[int | None]


class Factorization(abc.ABC):
    """A layer's kernel as a product, at every rank at once.

    Args:
        layer: A built layer that `fits` accepts.

    Attributes:
        ranks: All ranks there are, shape `(choices, ranks of one choice)`.
        sizes: For each layer of the chain, its kernel's number of values at each rank, shape `(choices,)`.
        errors: Squared Frobenius error of the kernel at each rank, relative to the kernel's own square, shape
            `(choices,)`. Computed when it is first asked for; the rest follows from shapes alone.
    """

    method: ClassVar[str]
    # What the way is for, as the rest of the sentence "is for ...".
    purpose: ClassVar[str]
    # What is added to the layer's name for each layer of the chain but the last.
    suffixes: ClassVar[tuple[str, ...]] = ("u",)

    def __init__(self, layer: Any):
        self.layer = layer
        self.groups = getattr(layer, "groups", 1)
        self.kernel_size = tuple(getattr(layer, "kernel_size", ()))

    @classmethod
    @abc.abstractmethod
    def fits(cls, layer: Any) -> bool:
        """Whether the way is for this layer."""

    ranks: np.ndarray
    sizes: Sequence[np.ndarray]

    @property
    @abc.abstractmethod
    def errors(self) -> np.ndarray: ...

    @abc.abstractmethod
    def factors(self, rank: Sequence[int]) -> tuple[list[np.ndarray], float]:
        """The kernels of the chain at one of `ranks`, and their squared relative error, at most that of `errors`."""

    @abc.abstractmethod
    def positions(self, given: Shape, made: Shape) -> tuple[int | None, ...]:
        """How often each kernel of the chain is used for one sample, for inputs and outputs of these shapes."""

    @abc.abstractmethod
    def layers(self, rank: Sequence[int], names: Sequence[str]) -> list[Any]:
        """The layers of the chain, not built, with `names` for all but the last, which has the layer's own name."""

    def macs(self, calls: Sequence[tuple[Shape, Shape]]) -> np.ndarray | None:
        """Multiply-adds at each rank, over all calls of the layer; `None` where a size is unknown."""
        total: np.ndarray | int = 0
        for given, made in calls:
            for size, positions in zip(self.sizes, self.positions(given, made), strict=True):
                if positions is None:
                    return None
                total = total + size * positions
        return np.asarray(total)

    def kernel(self) -> np.ndarray:
        """The kernel in double precision, group by group: `(groups, *kernel size, inputs, outputs of the group)`."""
        kernel = np.asarray(keras.ops.convert_to_numpy(self.layer.kernel), np.float64)
        return np.moveaxis(kernel.reshape(*kernel.shape[:-1], self.groups, -1), -2, 0)

    def channels(self) -> tuple[int, int]:
        """Input and output channels of one group."""
        *_, inputs, outputs = self.layer.kernel.shape
        return int(inputs), int(outputs) // self.groups

    def inner(self, name: str, **changes: Any) -> Any:
        """A layer of the chain before the last: like the factorized one, but linear and without bias."""
        plain = {"use_bias": False, "activation": "linear", "activity_regularizer": None}
        # A bias of their own would have been a part of the sum that the last layer's bias is added to.
        no_bias = {"bias_regularizer": None, "bias_constraint": None}
        return copy_of_other_size(self.layer, name=name, **{**plain, **no_bias, **changes})

    def last(self, **changes: Any) -> Any:
        """The last layer of the chain: the factorized one with a kernel of another shape."""
        return copy_of_other_size(self.layer, **changes)

    def spatial(self, shape: Shape) -> Shape:
        """The sizes of a feature map without batch and channels."""
        return shape[1:-1] if self.layer.data_format == "channels_last" else shape[2:]


def join_groups(stack: np.ndarray) -> np.ndarray:
    """Kernels of groups, `(groups, ..., outputs of the group)`, as one kernel `(..., outputs)`."""
    joined = np.moveaxis(stack, 0, -2)
    return joined.reshape(*joined.shape[:-2], -1)


def count(sizes: Shape) -> int | None:
    """Product of sizes, or `None` where one is unknown."""
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def describe(ranks: Sequence[int]) -> str:
    """One rank, or two as `4 x 8`."""
    return " x ".join(map(str, ranks))
