"""`VariationalInformation`: how well the teacher's features can be told from the student's.

Invariant: each channel's variance stays above a fixed number, so that the loss is finite and bounded from below. Left
out: variances that depend on the student's features, which the paper found unstable.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
from keras import ops

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.features.tensors import features, of_one_size
from tfcompress.techniques.distill.features.trained_along import TrainedAlong, channels_of, dense
from tfcompress.techniques.distill.outputs import mean_over_positions

# Both are those of the authors' code.
_FIRST_VARIANCE = 5.0
_LEAST_VARIANCE = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariationalInformation(TrainedAlong):
    """Variational information distillation (VID): `mean(((t - m(s))² / v + log v) / 2)`.

    It is the negative log likelihood of the teacher's features, up to a constant, under normal distributions that the
    student's features give: `m` are three 1x1 convolutions with ReLU in between, `v = softplus(r) + 1e-5` is a variance
    for each channel of the teacher, and both are trained along. Where maps have different sizes, the larger is averaged
    over areas down to the smaller. It may fall below 0; it is least where `m(s)` meets the teacher and `v` its error.

    The loss is computed by the layer that `trained_along` makes; to call this itself is an error.

    Args:
        weight: Weight of this loss, at least 0. 1, the default, is that of comparisons on CIFAR.

    Raises:
        InvalidArgumentError: If the weight is out of its range.

    Example:
        >>> layer = VariationalInformation().trained_along((4, 4, 8), (4, 4, 2))
        >>> layer(ops.ones((5, 4, 4, 8)), ops.ones((5, 4, 4, 2))).shape
        TensorShape([5])

    Reference:
        Ahn et al., "Variational Information Distillation for Knowledge Transfer", 2019,
        https://arxiv.org/abs/1904.05835
    """

    def trained_along(self, teacher_shape: tuple, student_shape: tuple) -> keras.Layer:
        """The layer `layer(teacher_features, student_features) -> (batch,)`, with its weights.

        Args:
            teacher_shape: Shape of the teacher's features without the batch, `(..., channels)`.
            student_shape: Shape of the student's, with as many axes.

        Raises:
            InvalidArgumentError: If the shapes are not as above.
        """
        teacher = channels_of("VariationalInformation.teacher_shape", teacher_shape)
        student = channels_of("VariationalInformation.student_shape", student_shape)
        if len(teacher_shape) != len(student_shape):
            expected = f"of as many axes as the teacher's, {teacher_shape}"
            raise InvalidArgumentError("VariationalInformation.student_shape", expected, student_shape)
        return Likelihood(teacher, student)


class Likelihood(keras.Layer):
    """The loss with its means and variances."""

    def __init__(self, teacher_channels: int, student_channels: int):
        super().__init__(dtype="float32")
        self.means = [
            dense(student_channels, teacher_channels, activation="relu", use_bias=False),
            dense(teacher_channels, teacher_channels, activation="relu", use_bias=False),
            dense(teacher_channels, teacher_channels, use_bias=False),
        ]
        # The inverse of the softplus in `call`.
        first = math.log(math.expm1(_FIRST_VARIANCE - _LEAST_VARIANCE))
        self.raw_variance = self.add_weight(
            shape=(teacher_channels,), initializer=keras.initializers.Constant(first), name="raw_variance"
        )

    def call(self, teacher_features: Any, student_features: Any) -> Any:
        teacher, mean = features("VariationalInformation", teacher_features, student_features)
        teacher, mean = of_one_size(teacher, mean)
        for layer in self.means:
            mean = layer(mean)
        variance = ops.softplus(self.raw_variance) + _LEAST_VARIANCE
        return mean_over_positions(0.5 * (ops.square(teacher - mean) / variance + ops.log(variance)))
