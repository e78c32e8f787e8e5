"""Random flips, shifts and crops of image batches, for training only.

Invariant: what happens to a sample is a pure function of (seed, epoch, index of the sample in its split), or with views
of (seed of the views, epoch modulo their number, index); neither the batch it lands in, nor the order of the epoch, nor
TensorFlow's global seed changes it, so a resumed run sees what the uninterrupted one saw. Left out: colour changes,
mixing of samples, and anything that interpolates pixels.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tfcompress.errors import InvalidArgumentError

# Folded into the seed, so that each random decision has a stream of its own (0 is the order of an epoch).
_FLIP, _SHIFT_DOWN, _SHIFT_RIGHT, _CROP_TOP, _CROP_LEFT = range(1, 6)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Which random changes each training image goes through: flip, then shift, then crop.

    Args:
        flip: Mirror left and right with probability one half.
        shift: Move by up to this many pixels down or up and right or left, each distance equally likely. What comes
            into view is the darkest value (the low end of the input range). In [0, inf); 0 is off.
        crop: Pad each border by this many pixels, mirroring the image at its edge (the edge pixel is not repeated),
            then cut out a random window of the original size. In [0, inf); 0 is off.
        views: How many changed pictures there are of each image: epoch after epoch goes through them in turn, the same
            in every training, so that what a teacher says about them can be stored. None makes new ones in each epoch.
        seed: Seed of the views. Without `views`, the seed of the training counts.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Reference:
        Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", 2021,
        https://arxiv.org/abs/2106.05237

    Example:
        >>> augmentation = Augmentation(flip=True, shift=2)
        >>> images = tf.zeros((3, 8, 8, 1), tf.uint8)
        >>> draws = augmentation.draw(seed=0, epoch=0, size=3)
        >>> augmentation.apply(images, draws).shape
        TensorShape([3, 8, 8, 1])
    """

    flip: bool = False
    shift: int = 0
    crop: int = 0
    views: int | None = None
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.flip, bool):
            raise InvalidArgumentError("Augmentation.flip", "True or False", self.flip)
        for name in ("shift", "crop"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InvalidArgumentError(f"Augmentation.{name}", "a whole number of pixels, at least 0", value)
        views = self.views
        if views is not None and (isinstance(views, bool) or not isinstance(views, int) or views < 1):
            raise InvalidArgumentError("Augmentation.views", "None or a whole number, at least 1", views)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not -(2**63) <= self.seed < 2**63:
            raise InvalidArgumentError("Augmentation.seed", "a whole number of 64 bits", self.seed)

    @property
    def changes_images(self) -> bool:
        """Whether any picture is changed at all."""
        return bool(self.flip or self.shift or self.crop)

    def check_fits(self, input_shape: tuple[int, ...]) -> None:
        """Raises `InvalidArgumentError` unless samples of `input_shape` are images large enough for these changes."""
        if len(input_shape) != 3:
            raise InvalidArgumentError(
                "augmentation",
                f"None for samples of shape {input_shape}; only images (height, width, channels) can be augmented",
                self,
            )
        smallest = min(input_shape[:2])
        for name in ("shift", "crop"):
            if getattr(self, name) >= smallest:
                raise InvalidArgumentError(
                    f"Augmentation.{name}", f"less than {smallest} pixels for images {input_shape}", getattr(self, name)
                )

    def draw(self, *, seed: int | tf.Tensor, epoch: int | tf.Tensor, size: int) -> tf.Tensor:
        """Draws the random decisions of one epoch for a whole split.

        One table for the epoch, indexed by sample, is what makes per-sample randomness cheap: drawing inside the
        pipeline would need one stateless call for each sample. It takes 20 bytes a sample.

        Args:
            seed: Seed of the run, which does not matter for views.
            epoch: Number of the epoch, from 0.
            size: Number of samples in the split.

        Returns:
            int32 of shape `(size, 5)`: flip (0 or 1), shift down, shift right (pixels, signed), and the crop
            window's top and left (pixels, from 0 to twice `crop`).
        """
        if self.views is not None:
            seed, epoch = self.seed, epoch % self.views
        columns = [
            (_FLIP, 0, 1 if self.flip else 0),
            (_SHIFT_DOWN, -self.shift, self.shift),
            (_SHIFT_RIGHT, -self.shift, self.shift),
            (_CROP_TOP, 0, 2 * self.crop),
            (_CROP_LEFT, 0, 2 * self.crop),
        ]

        def drawn(purpose: int, low: int, high: int) -> tf.Tensor:
            if low == high:  # Nothing to draw, and nothing to trace.
                return tf.fill([size], low)
            seeds = stream_seed(seed, epoch, purpose)
            return tf.random.stateless_uniform([size], seeds, low, high + 1, dtype=tf.int32, alg="philox")

        return tf.stack([drawn(*column) for column in columns], axis=1)

    def apply(self, images: tf.Tensor, draws: tf.Tensor, *, fill: float = 0.0) -> tf.Tensor:
        """Flips, shifts and crops a batch.

        Args:
            images: Shape `(batch, height, width, channels)`, any numeric type.
            draws: The rows of `draw` that belong to these images, int32, shape `(batch, 5)`.
            fill: Value of the pixels that a shift brings into view.

        Returns:
            The changed images, of the same shape and type.
        """
        if not self.changes_images:
            return images
        flip, down, right, top, left = (draws[:, column : column + 1] for column in range(5))
        height, width = images.shape[1], images.shape[2]
        rows = self._sources(height, down, top)
        columns = self._sources(width, right, left)
        if self.flip:
            mirrored = tf.where(columns == width, width, width - 1 - columns)
            columns = tf.where(flip == 1, mirrored, columns)
        if self.shift:
            # One more row and column to copy from stands for everything outside of the image.
            border = [[0, 0], [0, 1], [0, 1], [0, 0]]
            images = tf.pad(images, border, constant_values=tf.cast(fill, images.dtype))
        if self.shift or self.crop:
            images = tf.gather(images, rows, axis=1, batch_dims=1)
        return tf.gather(images, columns, axis=2, batch_dims=1)

    def _sources(self, length: int, moved: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
        """Where each output position along an axis is copied from, `(batch, length)`; `length` means the fill."""
        position = tf.range(length)[None, :]
        if self.crop:
            last = length - 1
            position = last - tf.abs(last - tf.abs(position + window - self.crop))
        position = position - moved
        return tf.where((position >= 0) & (position < length), position, length)


def stream_seed(seed: int | tf.Tensor, epoch: int | tf.Tensor, purpose: int) -> tf.Tensor:
    """The seed, int64 of shape `(2,)`, of one random decision (`purpose`, from 0) in one epoch of one run."""
    pair = tf.stack([tf.cast(seed, tf.int64), tf.cast(epoch, tf.int64)])
    return tf.random.fold_in(pair, purpose, alg="philox")
