"""Patterns of zeros that sparse kernels compute with: N of M, and blocks, along the input axis.

A pattern divides each kernel into units that get zeros together. Without one, each weight is a unit. With `2:4`, each
four weights in a row of inputs are a unit, which loses its two lowest; with `1x4`, each four weights in such a row are
a unit that is lost as a whole. That is how TFLite (fully connected, blocks `1x4` and `1x16`) and accelerators (2:4)
read a row of weights: its layout has the inputs last.

Invariant: `keep` gives exactly `zeros_per_unit` zeros to each unit that is dropped, and none to any other. Left out:
which units (`ranking.py`).
"""

from __future__ import annotations

import dataclasses
import re

import keras
import numpy as np

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.techniques.kernels import Kernel

_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Which weights get zeros together.

    Args:
        width: Weights in a unit, in a row of inputs.
        zeros_per_unit: How many of them become zero.

    Example:
        >>> Pattern.parse("2:4").keep(np.array([[3.0, 1.0, 2.0, 4.0]]), np.array([True])).tolist()
        [[True, False, False, True]]
    """

    width: int = 1
    zeros_per_unit: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Pattern:
        """A pattern from `"N:M"` (N weights of each M stay), `"1xB"` (blocks of B), or None.

        Raises:
            InvalidArgumentError: If it is neither.
        """
        if text is None:
            return cls()
        match = re.fullmatch(r"(\d+)(:|x)(\d+)", text) if isinstance(text, str) else None
        if match:
            first, second = int(match[1]), int(match[3])
            if match[2] == ":" and 0 < first < second:
                return cls(second, second - first)
            if match[2] == "x" and first == 1 < second:
                return cls(second, second)
        raise InvalidArgumentError("pattern", "`N:M` such as 2:4 or 4:8, `1xB` such as 1x4 or 1x16, or null", text)

    @property
    def most_sparsity(self) -> float:
        """The sparsity of a kernel all of whose units are dropped."""
        return self.zeros_per_unit / self.width

    def costs(self, rows: np.ndarray) -> np.ndarray:
        """What each unit loses by its zeros; `-inf` where it has as many already.

        Args:
            rows: Scores of at least 0, or `-inf` for what is zero already, shape `(outputs, inputs)`; `inputs` is a
                multiple of `width`.

        Returns:
            Shape `(outputs * inputs / width,)`.
        """
        units = rows.reshape(-1, self.width)
        gone = np.isneginf(units)
        if self.zeros_per_unit < self.width:
            units = np.partition(units, self.zeros_per_unit - 1, axis=1)[:, : self.zeros_per_unit]
        costs = np.where(np.isneginf(units), 0.0, units).sum(axis=1)
        return np.where(gone.sum(axis=1) >= self.zeros_per_unit, -np.inf, costs)

    def keep(self, rows: np.ndarray, dropped: np.ndarray) -> np.ndarray:
        """Which weights stay when the units `dropped` get their zeros.

        Args:
            rows: Scores, shape `(outputs, inputs)`.
            dropped: Boolean, shape `(outputs * inputs / width,)`.

        Returns:
            Boolean, shape `(outputs, inputs)`.
        """
        units = rows.reshape(-1, self.width)
        keep = np.ones(units.shape, bool)
        # A stable order, so that equal scores go by their index.
        lowest = np.argsort(units, axis=1, kind="stable")[:, : self.zeros_per_unit]
        keep[np.flatnonzero(dropped)[:, None], lowest[dropped]] = False
        return keep.reshape(rows.shape)


class RowLayout:
    """How a kernel's array is turned into rows of inputs, shape `(outputs and positions, inputs)`, and back.

    Args:
        shape: The array's shape.
        input_axes: The axes that each output sums over, positions of a convolution's window left out.
    """

    def __init__(self, shape: tuple[int, ...], input_axes: tuple[int, ...]):
        others = [axis for axis in range(len(shape)) if axis not in input_axes]
        self._order = [*others, *input_axes]
        self._moved = [shape[axis] for axis in self._order]
        self.inputs = int(np.prod([shape[axis] for axis in input_axes], dtype=int))

    @classmethod
    def of(cls, kernel: Kernel) -> RowLayout:
        """The layout of a layer's kernel."""
        shape = tuple(kernel.variable.shape)
        if isinstance(kernel.owner, keras.layers.EinsumDense):
            operands, result = kernel.owner.equation.replace(" ", "").split("->")
            letters = operands.split(",")[1]
            return cls(shape, tuple(axis for axis, letter in enumerate(letters) if letter not in result))
        if isinstance(kernel.owner, _TRANSPOSED):
            return cls(shape, (len(shape) - 1,))
        return cls(shape, (max(len(shape) - 2, 0),))

    def rows(self, array: np.ndarray) -> np.ndarray:
        """The array as rows of inputs."""
        return array.transpose(self._order).reshape(-1, self.inputs)

    def array(self, rows: np.ndarray) -> np.ndarray:
        """Rows of inputs as the array."""
        return rows.reshape(self._moved).transpose(np.argsort(self._order))


def check_pattern(pattern: Pattern, kernels: list[Kernel]) -> None:
    """Raises a `ModelError` that names the layers whose kernels the pattern does not fit."""
    if pattern.width == 1:
        return
    unfit = [
        f"{kernel.name} (depthwise)" if kernel.is_depthwise else f"{kernel.name} ({RowLayout.of(kernel).inputs})"
        for kernel in kernels
        if kernel.is_depthwise or RowLayout.of(kernel).inputs % pattern.width
    ]
    if unfit:
        raise ModelError(
            f"The pattern needs kernels with a multiple of {pattern.width} inputs. Name these layers in `exclude`. "
            f"Received: {', '.join(unfit)}."
        )
