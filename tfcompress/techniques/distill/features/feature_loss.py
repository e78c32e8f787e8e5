"""`FeatureLoss`: what all losses of features are, and what `Features` has to know of each.

Invariant: a loss that says nothing else compares one layer of each side by its outputs, sample by sample, and takes
features of any shapes. Left out: a user's own callable, which need not be one.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfcompress.techniques.distill.arguments import check_not_negative


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureLoss:
    """Base of the losses of features.

    Args:
        weight: Weight of the loss, at least 0.

    Raises:
        InvalidArgumentError: If the weight is out of its range.
    """

    # How many layers of each side it takes.
    layers: ClassVar[int] = 1
    # Whether both sides must have one shape, which a projector then sees to.
    same_shape: ClassVar[bool] = False
    # Whether the value of a sample depends on the others of its batch.
    compares_samples: ClassVar[bool] = False
    # Whether it is for attention, and not for outputs.
    of_attention: ClassVar[bool] = False

    weight: float = 1.0

    def __post_init__(self):
        check_not_negative(f"{type(self).__name__}.weight", self.weight)
