"""Truncated singular value decomposition: a dense layer or a 1 x 1 convolution becomes two.

Invariant: among all products of that rank the one taken has the least Frobenius error (Eckart, Young, 1936), which is
the root of the sum of the squares of the singular values that are left out. Left out: larger kernels, which
`convolution.py` writes as matrices.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import layers

from tfcompress.techniques.factorize.factorization import Factorization, Shape, count, join_groups

POINTWISE = (layers.Conv1D, layers.Conv2D, layers.Conv3D)


class MatrixFactorization(Factorization):
    """A kernel written as a stack of matrices, all cut at the same rank."""

    def __init__(self, layer: Any):
        super().__init__(layer)
        self._largest = min(self.matrix_shape())
        self.ranks = np.arange(1, self._largest + 1)[:, None]

    @abc.abstractmethod
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of one matrix of the stack."""

    @abc.abstractmethod
    def matrices(self) -> np.ndarray:
        """The stack, shape `(matrices, rows, columns)`."""

    @functools.cached_property
    def _decomposed(self) -> tuple[np.ndarray, np.ndarray]:
        return left_vectors(self._wide())

    def _wide(self) -> np.ndarray:
        """The matrices, lying on their longer side."""
        matrices = self.matrices()
        return matrices if matrices.shape[1] <= matrices.shape[2] else np.swapaxes(matrices, 1, 2)

    @functools.cached_property
    def errors(self) -> np.ndarray:
        squares = self._decomposed[1].sum(0)
        return np.append(np.cumsum(squares[::-1])[-2::-1], 0.0) / squares.sum()

    def split(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """The two factors of each matrix, `(matrices, rows, rank)` and `(matrices, rank, columns)`, equally large."""
        vectors, squares = self._decomposed
        # The root of each singular value on either side: both factors then learn at the same pace.
        roots = np.where(squares > 0, squares, 1.0)[:, :rank] ** 0.25
        short = vectors[..., :rank] * roots[:, None]
        long = np.swapaxes(vectors[..., :rank], 1, 2) @ self._wide() / roots[..., None]
        rows, columns = self.matrix_shape()
        return (short, long) if rows <= columns else (np.swapaxes(long, 1, 2), np.swapaxes(short, 1, 2))


class PointwiseSVD(MatrixFactorization):
    """A dense layer or 1 x 1 convolution, from c to n channels, as c to r to n.

    Reference:
        Denton et al., "Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation", 2014,
        https://arxiv.org/abs/1404.0736
    """

    method = "svd"
    purpose = "dense layers and convolutions with kernels of size 1"

    @classmethod
    def fits(cls, layer: Any) -> bool:
        return type(layer) is layers.Dense or (type(layer) in POINTWISE and set(layer.kernel_size) == {1})

    @functools.cached_property
    def sizes(self) -> Sequence[np.ndarray]:  # type: ignore[override]
        inputs, outputs = self.channels()
        return [self.groups * channels * self.ranks[:, 0] for channels in (inputs, outputs)]

    def matrix_shape(self) -> tuple[int, int]:
        return self.channels()

    def matrices(self) -> np.ndarray:
        kernel = self.kernel()
        return kernel.reshape(len(kernel), *kernel.shape[-2:])

    def factors(self, rank: Sequence[int]) -> tuple[list[np.ndarray], float]:
        ones = (1,) * len(self.kernel_size)
        kernels = [join_groups(factor) for factor in self.split(rank[0])]
        return [kernel.reshape(*ones, *kernel.shape) for kernel in kernels], float(self.errors[rank[0] - 1])

    def positions(self, given: Shape, made: Shape) -> tuple[int | None, ...]:
        # The first of two convolutions has the strides, so that the second has no more to do than it must.
        used = count(made[1:-1] if type(self.layer) is layers.Dense else self.spatial(made))
        return used, used

    def layers(self, rank: Sequence[int], names: Sequence[str]) -> list[Any]:
        if type(self.layer) is layers.Dense:
            return [self.inner(names[0], units=rank[0]), self.last()]
        once = (1,) * len(self.kernel_size)
        return [self.inner(names[0], filters=self.groups * rank[0]), self.last(strides=once)]


def left_vectors(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The left singular vectors of each matrix, and the squares of the singular values, largest first.

    Args:
        matrices: Shape `(matrices, rows, columns)`, double precision.

    Returns:
        Vectors of shape `(matrices, rows, rows)`, a vector in each column, and squares of shape `(matrices, rows)`.

    Example:
        >>> vectors, squares = left_vectors(np.array([[[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]]))
        >>> squares.round(6).tolist()
        [[16.0, 9.0]]
    """
    # The eigenvectors of the small square matrix are many times cheaper than an SVD of a long one. Its squares lose
    # half of the digits, of which double precision has twice those of the kernel.
    squares, vectors = np.linalg.eigh(matrices @ np.swapaxes(matrices, 1, 2))
    return vectors[..., ::-1], np.maximum(squares[:, ::-1], 0.0)
