"""How much each weight matters: the criteria by which weights are pruned.

Invariant: a score is a sum over weights, so that the score of a block is that of its weights added up; the lowest
scores are pruned first. Left out: how many weights go, and in which groups (`ranking.py`, `budgets.py`, `patterns.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError


@dataclasses.dataclass(frozen=True)
class Criterion:
    """What a weight is worth.

    Args:
        score: Called with the kernel, what was observed of it (or None) and a random generator, `(weights, observed,
            rng)`; gives an array of the kernel's shape, the least for what is to go first.
        observe: Called at each training step with a kernel and the gradient of the loss in it, as tensors; what it
            gives is summed over the steps. None where no gradients are needed.
        since_beginning: Whether the sum goes over the whole training; otherwise over the steps since the last pruning.
    """

    score: Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]
    observe: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None
    since_beginning: bool = False


CRITERIA: dict[str, Criterion] = {
    # Magnitude: Han et al., "Learning both Weights and Connections", 2015, https://arxiv.org/abs/1506.02626.
    "l1": Criterion(lambda weights, observed, rng: np.abs(weights)),
    # The same order of single weights; blocks are ranked by their Euclidean norm.
    "l2": Criterion(lambda weights, observed, rng: np.square(weights)),
    # Gradient x weight: Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019,
    # https://arxiv.org/abs/1906.10771; on a network without training, SNIP (https://arxiv.org/abs/1810.02340).
    "taylor": Criterion(
        lambda weights, observed, rng: observed, observe=lambda weights, gradient: tf.abs(weights * gradient)
    ),
    # First-order movement: Sanh et al., "Movement Pruning", 2020, https://arxiv.org/abs/2005.07683.
    "movement": Criterion(
        lambda weights, observed, rng: observed,
        observe=lambda weights, gradient: -weights * gradient,
        since_beginning=True,
    ),
    # Optimal Brain Damage (LeCun et al., 1989), with squared gradients of batches, the diagonal of the empirical
    # Fisher information, in the place of the Hessian's: Theis et al., 2018, https://arxiv.org/abs/1801.05787.
    "hessian": Criterion(
        lambda weights, observed, rng: np.square(weights) * observed, observe=lambda weights, gradient: gradient**2
    ),
    # What any other must beat.
    "random": Criterion(lambda weights, observed, rng: rng.uniform(size=weights.shape)),
}


def as_criterion(owner: str, criterion: Any) -> Criterion:
    """A criterion from its name, from a callable `weights -> scores`, or as it is.

    Args:
        owner: Whose argument it is, for the error.
        criterion: What its user gave.

    Raises:
        InvalidArgumentError: If it is none of these.

    Example:
        >>> as_criterion("here", np.abs).score(np.array([-2.0, 1.0]), None, None).tolist()
        [2.0, 1.0]
    """
    if isinstance(criterion, Criterion):
        return criterion
    if isinstance(criterion, str) and criterion in CRITERIA:
        return CRITERIA[criterion]
    if callable(criterion):
        return Criterion(lambda weights, observed, rng: np.asarray(criterion(weights)))
    allowed = f"one of {', '.join(CRITERIA)}, a callable `weights -> scores`, or a Criterion"
    raise InvalidArgumentError(f"{owner}.criterion", allowed, criterion)


def check_scores(name: str, scores: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Scores as an array of floats.

    Raises:
        InvalidArgumentError: If they are not finite numbers of the kernel's shape.
    """
    scores = np.asarray(scores, float)
    if scores.shape != tuple(shape) or not np.isfinite(scores).all():
        received = "NaN or infinity" if scores.shape == tuple(shape) else f"shape {scores.shape}"
        expected = f"finite scores of the shape {tuple(shape)} of kernel {name!r}"
        raise InvalidArgumentError("criterion", expected, received)
    return scores
