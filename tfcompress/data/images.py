"""The size that images are brought to.

Invariant: an image stays uint8, so that it takes one byte a value wherever it waits. Left out: keeping the aspect
ratio; crop your images first where that matters.
"""

from __future__ import annotations

import tensorflow as tf

from tfcompress.errors import InvalidArgumentError


def check_image_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """The (height, width) that `image_size` stands for; one number means a square.

    Raises:
        InvalidArgumentError: If it isn't one or two whole numbers of at least 1.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if (
        not isinstance(size, (tuple, list))
        or len(size) != 2
        or any(isinstance(length, bool) or not isinstance(length, int) or length < 1 for length in size)
    ):
        raise InvalidArgumentError("image_size", "a number of pixels or a pair (height, width), at least 1", image_size)
    return (size[0], size[1])


def resize(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Resizes one image, bilinear and without aliasing.

    Args:
        image: uint8, shape `(height, width, channels)`; height and width may be unknown.
        size: The new (height, width) in pixels.

    Returns:
        uint8 of shape `(*size, channels)`, rounded.
    """
    resized = tf.image.resize(image, size, method="bilinear", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
