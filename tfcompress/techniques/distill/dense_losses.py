"""`ChannelWiseTargets`: which positions of a dense output each channel looks at.

The losses of class logits take dense outputs too, position by position; this is the one that compares across positions.

Invariant: one value per sample, 0 where both agree. Left out: pairs of positions, and the features inside a network.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from keras import ops

from tfcompress.techniques.distill.arguments import check_temperature, check_weight
from tfcompress.techniques.distill.outputs import comparable


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelWiseTargets:
    """Kullback-Leibler divergence between distributions over the positions, one for each channel.

    The softmax goes over all positions of a channel at once, so that the places where a class is most itself count, and
    not the many where it is absent. It is 0 where each channel agrees up to a constant.

    Args:
        temperature: Softening of both distributions, in (0, inf).
        weight: Share of this loss beside the student's own, in [0, 1].

    Raises:
        InvalidArgumentError: If an argument is out of its range, or the outputs have no positions.

    Example:
        >>> loss = ChannelWiseTargets(temperature=1.0)
        >>> maps = ops.array([[[1.0, 0.0], [0.0, 2.0]]])
        >>> float(loss(maps, maps)[0]), loss(maps, maps * 2.0).shape
        (0.0, TensorShape([1]))

    Reference:
        Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", 2021, https://arxiv.org/abs/2011.13256
    """

    temperature: float = 4.0
    weight: float = 0.5

    def __post_init__(self):
        check_temperature("ChannelWiseTargets", self.temperature)
        check_weight("ChannelWiseTargets", self.weight)

    def __call__(self, teacher_outputs: Any, student_outputs: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two tensors `(batch, positions..., channels)`."""
        teacher, student = comparable("ChannelWiseTargets", teacher_outputs, student_outputs, positions=True)
        teacher, student = (self._log_distributions(outputs) for outputs in (teacher, student))
        divergence = ops.sum(ops.exp(teacher) * (teacher - student), axis=1)
        return self.temperature**2 * ops.mean(divergence, axis=-1)

    def _log_distributions(self, outputs: Any) -> Any:
        """Logarithms of the distributions over positions, shape `(batch, positions, channels)`."""
        flat = ops.reshape(outputs, (ops.shape(outputs)[0], -1, outputs.shape[-1]))
        return ops.log_softmax(flat / self.temperature, axis=1)
