"""Tucker-2 decomposition: a convolution becomes 1 x 1, a smaller one of its own size, and 1 x 1.

Invariant: the two bases are orthonormal, so that the squared error is the kernel's square less the core's, and what the
iterations after the first estimate find is never worse than it. Left out: factorizing the axes of the kernel's height
and width, which are short (`convolution.py` separates them instead).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import layers

from tfcompress.techniques.factorize.factorization import Factorization, Shape, count, join_groups
from tfcompress.techniques.factorize.svd import left_vectors

# The iteration ends when the core's square grows by less than this share of the kernel's.
TOLERANCE = 1e-6
MAX_ITERATIONS = 20


class TuckerFactorization(Factorization):
    """A convolution from c to n channels as 1 x 1 from c to r, one of its own size from r to s, and 1 x 1 from s to n.

    Reference:
        Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications",
        2016, https://arxiv.org/abs/1511.06530
    """

    method = "tucker"
    purpose = "convolutions with kernels larger than 1"
    suffixes = ("u", "core")

    def __init__(self, layer: Any):
        super().__init__(layer)
        inputs, outputs = self.channels()
        self.ranks = np.stack(np.meshgrid(np.arange(inputs), np.arange(outputs), indexing="ij"), -1).reshape(-1, 2) + 1

    @classmethod
    def fits(cls, layer: Any) -> bool:
        return type(layer) in (layers.Conv1D, layers.Conv2D, layers.Conv3D) and max(layer.kernel_size) > 1

    @functools.cached_property
    def sizes(self) -> Sequence[np.ndarray]:  # type: ignore[override]
        (inputs, outputs), (first, second) = self.channels(), self.ranks.T
        core = int(np.prod(self.kernel_size)) * first * second
        return [self.groups * size for size in (inputs * first, core, second * outputs)]

    @functools.cached_property
    def _bases(self) -> tuple[np.ndarray, np.ndarray]:
        """All singular vectors of the input and of the output channels, each by itself: the higher-order SVD."""
        kernel = self._flat()
        return left_vectors(_rows(kernel, 2))[0], left_vectors(_rows(kernel, 3))[0]

    @functools.cached_property
    def errors(self) -> np.ndarray:
        energy = np.square(_project(self._flat(), *self._bases)).sum((0, 1))
        kept = np.cumsum(np.cumsum(energy, 0), 1)
        return np.maximum(1 - kept / kept[-1, -1], 0.0).ravel()

    def factors(self, rank: Sequence[int]) -> tuple[list[np.ndarray], float]:
        kernel = self._flat()
        first, second, core = orthogonal_iteration(kernel, *self._bases, rank)
        error = max(1 - np.square(core).sum() / np.square(kernel).sum(), 0.0)
        ones = (1,) * len(self.kernel_size)
        core = core.reshape(self.groups, *self.kernel_size, *rank)
        outer = [join_groups(first), join_groups(np.swapaxes(second, 1, 2))]
        outer = [factor.reshape(*ones, *factor.shape) for factor in outer]
        return [outer[0], join_groups(core), outer[1]], float(error)

    def positions(self, given: Shape, made: Shape) -> tuple[int | None, ...]:
        return count(self.spatial(given)), count(self.spatial(made)), count(self.spatial(made))

    def layers(self, rank: Sequence[int], names: Sequence[str]) -> list[Any]:
        ones = (1,) * len(self.kernel_size)
        one = {"kernel_size": ones, "strides": ones, "dilation_rate": ones}
        first, second = (self.groups * size for size in rank)
        return [self.inner(names[0], filters=first, **one), self.inner(names[1], filters=second), self.last(**one)]

    def _flat(self) -> np.ndarray:
        """The kernel as `(groups, positions in the kernel, inputs, outputs of the group)`."""
        return self.kernel().reshape(self.groups, -1, *self.channels())


def orthogonal_iteration(
    kernel: np.ndarray, first: np.ndarray, second: np.ndarray, rank: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Better bases than the leading vectors of each axis: each is fitted in turn to what the other one leaves (HOOI).

    Args:
        kernel: Shape `(groups, positions, inputs, outputs)`.
        first: Basis of the inputs, the leading vectors first, shape `(groups, inputs, inputs)`.
        second: The same of the outputs.
        rank: How many vectors of each to keep.

    Returns:
        The bases, of shapes `(groups, inputs, rank[0])` and `(groups, outputs, rank[1])`, and the core
        `(groups, positions, *rank)`.

    Reference:
        De Lathauwer, De Moor, Vandewalle, "On the Best Rank-1 and Rank-(R1, R2, ..., RN) Approximation of Higher-Order
        Tensors", 2000
    """
    first, second = first[..., : rank[0]], second[..., : rank[1]]
    core = _project(kernel, first, second)
    total, kept = np.square(kernel).sum(), np.square(core).sum()
    for _ in range(MAX_ITERATIONS):
        to_second = _rows(np.einsum("gkio,gos->gkis", kernel, second, optimize=True), 2)
        new_first = left_vectors(to_second)[0][..., : rank[0]]
        to_first = _rows(np.einsum("gkio,gir->gkro", kernel, new_first, optimize=True), 3)
        new_second = left_vectors(to_first)[0][..., : rank[1]]
        new_core = _project(kernel, new_first, new_second)
        gain = np.square(new_core).sum() - kept
        # What rounding alone could have given is no gain, and would break the promise that it is never worse.
        if gain <= 0:
            break
        first, second, core, kept = new_first, new_second, new_core, kept + gain
        if gain < TOLERANCE * total:
            break
    return first, second, core


def _rows(kernel: np.ndarray, axis: int) -> np.ndarray:
    """The kernel as a matrix for each group, with a row for each index of `axis`."""
    moved = np.moveaxis(kernel, axis, 1)
    return moved.reshape(*moved.shape[:2], -1)


def _project(kernel: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.einsum("gkio,gir,gos->gkrs", kernel, first, second, optimize=True)
