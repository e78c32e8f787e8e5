"""Mixed pictures: two samples in one, of which the teacher says what it is.

The teacher sees the very mixture that the student sees, so that it may find something else in it than the two labels. A
stored teacher has not seen it: then the mixture of what it said of both stands for that.

Invariant: what is mixed with what, and how much, is a function of (seed, step, replica). Left out: mixing of features.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError

_SHARES = 4096


class Mixed(NamedTuple):
    """A batch that is mixed.

    Args:
        inputs: The mixture, in the shape of the batch.
        partners: For each sample the number of the one in it, int32 of shape `(batch,)`.
        share: How much of each is the sample itself, in [0, 1], shape `()`.
    """

    inputs: Any
    partners: Any
    share: Any

    def of(self, values: Any) -> Any:
        """What the partners have: of labels or sample weights `(batch, ...)`."""
        return tf.gather(values, self.partners)

    def blend(self, own: Any, of_partners: Any) -> Any:
        """What a mixture has, of what its samples and their partners have."""
        return self.share * own + (1 - self.share) * of_partners


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Mixing:
    alpha: float
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.alpha < float("inf"):
            raise InvalidArgumentError(f"{type(self).__name__}.alpha", "a number above 0", self.alpha)

    def _check_floats(self, inputs: Any) -> None:
        if not hasattr(inputs, "dtype") or not tf.as_dtype(inputs.dtype).is_floating:
            received = getattr(inputs, "dtype", type(inputs).__name__)
            raise InvalidArgumentError(
                f"{type(self).__name__}.inputs", "one tensor of floats; cast pictures in the data's pipeline", received
            )

    def _draw(self, size: Any, step: Any) -> tuple[Any, Any, Any]:
        """Partners, the share, and a seed for what else is drawn."""
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context is not None else 0
        seed = tf.random.fold_in(tf.random.fold_in(tf.constant([self.seed, 0]), tf.cast(step, tf.int32)), replica)
        seeds = tf.random.split(seed, 3)
        # Neither a shuffle nor a gamma distribution is among what XLA compiles.
        partners = tf.argsort(tf.random.stateless_uniform((size,), seeds[0]))
        drawn = tf.random.stateless_uniform((), seeds[1], maxval=_SHARES, dtype=tf.int32)
        return partners, tf.gather(tf.constant(self._shares, tf.float32), drawn), seeds[2]

    @functools.cached_property
    def _shares(self) -> np.ndarray:
        """The shares that a step draws one of."""
        return np.random.default_rng(self.seed).beta(self.alpha, self.alpha, size=_SHARES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixup(_Mixing):
    """Blends each sample with another of its batch: `share * x + (1 - share) * partner`.

    Args:
        alpha: The share is drawn from Beta(alpha, alpha) in each step; 0.2 mixes little, 1 evenly.
        seed: What the drawing is a function of, beside the step.

    Raises:
        InvalidArgumentError: If `alpha` is not above 0, or inputs are no floats.

    Example:
        >>> mixed = Mixup(alpha=1.0)(tf.constant([[0.0], [1.0]]), step=3)
        >>> bool(tf.reduce_all((mixed.inputs >= 0) & (mixed.inputs <= 1)))
        True

    Reference:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2017, https://arxiv.org/abs/1710.09412; under a
        teacher: Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", 2021,
        https://arxiv.org/abs/2106.05237
    """

    alpha: float = 0.2

    def __call__(self, inputs: Any, step: Any) -> Mixed:
        """Mixes a batch `(batch, ...)` of floats at a step."""
        self._check_floats(inputs)
        partners, share, _ = self._draw(tf.shape(inputs)[0], step)
        blend = tf.cast(share, inputs.dtype)
        return Mixed(blend * inputs + (1 - blend) * tf.gather(inputs, partners), partners, share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutMix(_Mixing):
    """Puts a rectangle of another picture of the batch into each: all at one place, of an area of `1 - share`.

    Args:
        alpha: The share is drawn from Beta(alpha, alpha) in each step, and then that of whole pixels is taken.
        seed: What the drawing is a function of, beside the step.

    Raises:
        InvalidArgumentError: If `alpha` is not above 0, inputs are no images, or labels are of positions within them.

    Example:
        >>> mixed = CutMix(alpha=1.0)(tf.reshape(tf.constant([0.0, 1.0]), (2, 1, 1, 1)) * tf.ones((2, 4, 4, 1)), step=0)
        >>> bool(tf.reduce_all((mixed.inputs == 0) | (mixed.inputs == 1)))
        True

    Reference:
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", 2019,
        https://arxiv.org/abs/1905.04899
    """

    alpha: float = 1.0

    def __call__(self, inputs: Any, step: Any) -> Mixed:
        """Mixes a batch of images `(batch, height, width, channels)` at a step."""
        if len(inputs.shape) != 4:
            raise InvalidArgumentError("CutMix.inputs", "images (batch, height, width, channels)", tuple(inputs.shape))
        partners, share, seed = self._draw(tf.shape(inputs)[0], step)
        size = tf.shape(inputs)[1:3]
        centre = tf.random.stateless_uniform((2,), seed) * tf.cast(size, tf.float32)
        half = tf.sqrt(1 - share) * tf.cast(size, tf.float32) / 2
        low = tf.clip_by_value(tf.cast(tf.round(centre - half), tf.int32), 0, size)
        high = tf.clip_by_value(tf.cast(tf.round(centre + half), tf.int32), 0, size)
        rows, columns = ((tf.range(size[axis]) >= low[axis]) & (tf.range(size[axis]) < high[axis]) for axis in range(2))
        inside = (rows[:, None] & columns[None, :])[None, :, :, None]
        # Cut off at the edges, the rectangle is smaller than was drawn.
        share = 1 - tf.cast(tf.reduce_prod(high - low), tf.float32) / tf.cast(tf.reduce_prod(size), tf.float32)
        return Mixed(tf.where(inside, tf.gather(inputs, partners), inputs), partners, share)
