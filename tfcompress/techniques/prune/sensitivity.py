"""A budget from what each kernel's zeros do to the outputs of the network.

Invariant: at any sparsity, every kernel is pruned until its zeros alone change the outputs by the same amount. Left
out: what the zeros of several kernels do together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.prune.budgets import uniform
from tfcompress.techniques.prune.kernels import prunable_kernels
from tfcompress.techniques.prune.ranking import choose_masks

LEVELS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)


@dataclasses.dataclass(frozen=True)
class SensitivityBudget:
    """Shares a sparsity out by the change of the outputs that each kernel's zeros alone make.

    Args:
        shapes: Shapes of the kernels.
        levels: Sparsities that were tried, rising, the last one 1.
        changes: Squared change of the outputs over their variance, shape `(kernels, levels)`.

    Example:
        >>> budget = SensitivityBudget([(8,), (8,)], (0.5, 1.0), np.array([[0.1, 0.2], [0.2, 0.4]]))
        >>> [round(share, 2) for share in budget([(8,), (8,)], 0.5)]
        [0.67, 0.33]

    Reference:
        Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015,
        https://arxiv.org/abs/1506.02626 (its section on sensitivity)
    """

    shapes: Sequence[tuple[int, ...]]
    levels: tuple[float, ...]
    changes: np.ndarray

    @classmethod
    def measure(
        cls,
        model: keras.Model,
        inputs: Any,
        *,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        levels: Sequence[float] = LEVELS,
    ) -> SensitivityBudget:
        """Tries each level of magnitude pruning on each kernel alone; the model's weights are put back.

        Args:
            model: A built Keras model.
            inputs: A batch of inputs as the model takes them.
            include: As for `prunable_kernels`.
            exclude: As for `prunable_kernels`.
            levels: Sparsities to try, rising, in (0, 1], the last one 1.

        Raises:
            InvalidArgumentError: If the levels are not such.
        """
        levels = tuple(levels)
        if list(levels) != sorted(set(levels)) or not levels or levels[0] <= 0 or levels[-1] != 1:
            raise InvalidArgumentError("levels", "sparsities in (0, 1], rising, the last one 1", levels)
        kernels = prunable_kernels(model, include, exclude)
        expected = _outputs(model, inputs)
        spread = np.var(expected) or 1.0
        changes = np.zeros((len(kernels), len(levels)))
        for row, kernel in enumerate(kernels):
            weights = keras.ops.convert_to_numpy(kernel.variable)
            try:
                for column, level in enumerate(levels):
                    (keep,) = choose_masks([np.abs(weights)], level, budget=uniform)
                    kernel.variable.assign(weights * keep)
                    changes[row, column] = np.mean((_outputs(model, inputs) - expected) ** 2) / spread
            finally:
                kernel.variable.assign(weights)
        # More zeros are never taken for better, where the few samples would say so.
        changes = np.maximum.accumulate(changes, axis=1)
        return cls([tuple(kernel.variable.shape) for kernel in kernels], levels, changes)

    def __call__(self, shapes: Sequence[tuple[int, ...]], sparsity: float) -> list[float]:
        if [tuple(shape) for shape in shapes] != [tuple(shape) for shape in self.shapes]:
            raise InvalidArgumentError("budget", f"measured on the kernels that are pruned, {self.shapes}", shapes)
        sizes = np.array([np.prod(shape) for shape in self.shapes], float)
        # Below no change at all, nothing is pruned.
        low, high = -1.0, float(self.changes.max())
        # The amount of change at which the shares add up.
        for _ in range(60):
            middle = (low + high) / 2
            too_sparse = self._shares(middle) @ sizes > sparsity * sizes.sum()
            low, high = (low, middle) if too_sparse else (middle, high)
        below, above = self._shares(low), self._shares(high)
        # Where the curve is steeper than numbers can be near, between both sides of the step.
        gap = (above - below) @ sizes
        part = (sparsity * sizes.sum() - below @ sizes) / gap if gap > 0 else 0.0
        return [float(share) for share in np.clip(below + np.clip(part, 0, 1) * (above - below), 0, 1)]

    def _shares(self, change: float) -> np.ndarray:
        """The sparsity at which each kernel alone makes that change."""
        return np.array([_inverse(change, [0.0, *curve], [0.0, *self.levels]) for curve in self.changes])


def _inverse(change: float, curve: Sequence[float], levels: Sequence[float]) -> float:
    """The highest level whose value on the curve is at most `change`, between levels along a line."""
    at = int(np.searchsorted(curve, change, side="right")) - 1
    if at < 0:
        return 0.0
    if at == len(curve) - 1:
        return levels[-1]
    return levels[at] + (levels[at + 1] - levels[at]) * (change - curve[at]) / (curve[at + 1] - curve[at])


def _outputs(model: keras.Model, inputs: Any) -> np.ndarray:
    outputs = keras.tree.flatten(model(inputs, training=False))
    return np.concatenate([np.asarray(keras.ops.convert_to_numpy(output), float).ravel() for output in outputs])
