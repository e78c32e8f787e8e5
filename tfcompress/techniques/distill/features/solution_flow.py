"""`SolutionFlow`: how features change from one layer to a later one.

Invariant: one value per sample, 0 where both sides' matrices agree, finite for features that float32 can raise to the
fourth power; sizes of maps do not matter, numbers of channels must be the same. Left out: the choice of the two layers,
and the paper's first stage without labels, which is a schedule.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from keras import ops

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.features.feature_loss import FeatureLoss
from tfcompress.techniques.distill.features.tensors import check_as_many_axes, check_axes, check_samples, of_one_size
from tfcompress.techniques.distill.outputs import precise


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolutionFlow(FeatureLoss):
    """Flow of the solution procedure (FSP): `mean((g(t) - g(s))²)`, `g(f) = mean(first ⊗ last)`.

    `g` is the mean over positions of the products of each channel of a first layer with each of a last one; where
    their maps have different sizes, the larger is averaged over areas down to the smaller. The paper sums over the
    pairs of channels; the mean does not grow with their number. It is 0 where the matrices of both sides agree.

    Args:
        weight: Weight of this loss, at least 0. It depends on the fourth power of the scale of the features: the paper
            trains on it alone first, comparisons on CIFAR take 50.

    Raises:
        InvalidArgumentError: If the weight is out of its range, a side is no pair of features, or the numbers of
            channels differ.

    Example:
        >>> loss = SolutionFlow()
        >>> first, last = ops.ones((1, 4, 4, 2)), ops.ones((1, 2, 2, 3))
        >>> float(loss((first, last), (first, 3.0 * last))[0])
        4.0

    Reference:
        Yim et al., "A Gift from Knowledge Distillation", 2017,
        https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html
    """

    layers: ClassVar[int] = 2
    same_shape: ClassVar[bool] = True

    def __call__(self, teacher_features: Any, student_features: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two pairs of tensors `(batch, ..., channels)`."""
        teacher = _flow("SolutionFlow.teacher_features", teacher_features)
        student = _flow("SolutionFlow.student_features", student_features)
        check_samples("SolutionFlow.student_features", student, teacher)
        if teacher.shape[1:] != student.shape[1:]:
            channels, received = tuple(teacher.shape[1:]), tuple(student.shape[1:])
            expected = f"of {channels} channels in the first and the last layer, as the teacher's are"
            raise InvalidArgumentError("SolutionFlow.student_features", expected, received)
        return ops.mean(ops.square(teacher - student), axis=(1, 2))


def _flow(name: str, pair: Any) -> Any:
    """Mean products of the channels of two layers, shape `(batch, first channels, last channels)`."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        received = f"{len(pair)} of them" if isinstance(pair, tuple | list) else pair
        raise InvalidArgumentError(name, "a pair (first, last) of features of two layers", received)
    first, last = (precise(features) for features in pair)
    for features in (first, last):
        check_axes(name, features)
    check_as_many_axes(name, last, first, "first layer's")
    first, last = of_one_size(first, last)
    first, last = (ops.reshape(side, (ops.shape(side)[0], -1, side.shape[-1])) for side in (first, last))
    return ops.matmul(ops.transpose(first, (0, 2, 1)), last) / ops.cast(ops.shape(first)[1], first.dtype)
