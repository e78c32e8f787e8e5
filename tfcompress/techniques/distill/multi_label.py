"""`MultiLabelTargets`: soft targets for outputs of independent labels, with a sigmoid each.

Invariant: both sides are logits, before the sigmoid. Left out: relations between labels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from keras import ops

from tfcompress.techniques.distill.arguments import check_temperature, check_weight
from tfcompress.techniques.distill.outputs import comparable, mean_over_positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLabelTargets:
    """Kullback-Leibler divergence of each label, present or absent, at a temperature, times its square.

    The mean over the labels is taken, as binary cross-entropy has it, so that `weight` does not depend on how many
    there are. A network with one sigmoid unit, for two classes, is the case of one label. It is 0 where both agree.

    Args:
        temperature: Softening of both sides, in (0, inf): logits are divided by it before the sigmoid.
        weight: Share of this loss beside the student's own, in [0, 1].

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> loss = MultiLabelTargets(temperature=2.0)
        >>> float(loss(ops.array([[2.0, -1.0, 0.5]]), ops.array([[2.0, -1.0, 0.5]]))[0])
        0.0

    Reference:
        Yang et al., "Multi-Label Knowledge Distillation", 2023, https://arxiv.org/abs/2308.06453
    """

    temperature: float = 1.0
    weight: float = 0.5

    def __post_init__(self):
        check_temperature("MultiLabelTargets", self.temperature)
        check_weight("MultiLabelTargets", self.weight)

    def __call__(self, teacher_logits: Any, student_logits: Any) -> Any:
        """Returns the loss of each sample, shape `(batch,)`, from two logit tensors `(batch, ..., labels)`."""
        teacher, student = comparable("MultiLabelTargets", teacher_logits, student_logits)
        teacher, student = teacher / self.temperature, student / self.temperature
        divergence = 0.0
        for sign in (1.0, -1.0):  # Present, then absent.
            difference = ops.log_sigmoid(sign * teacher) - ops.log_sigmoid(sign * student)
            divergence = divergence + ops.sigmoid(sign * teacher) * difference
        return self.temperature**2 * mean_over_positions(ops.mean(divergence, axis=-1))
