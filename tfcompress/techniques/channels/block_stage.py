"""The recipe stage `remove_blocks`: leaves out residual blocks, then trains what is left.

Invariant: what is trained is a plain Keras model with fewer layers. Left out: several rounds, which are several stages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras

from tfcompress.techniques.base import Context, Technique
from tfcompress.techniques.channels.before_quantization import refuse_after_rounding
from tfcompress.techniques.channels.remove_blocks import check_removal, removable_blocks, remove_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoveBlocks(Technique):
    """Leaves out the residual blocks that matter least, and trains.

    Args:
        count: How many blocks go, at least 1. Give this, `macs` or `params`.
        macs: The most multiply-adds: a share of the model's, in (0, 1), or a number.
        params: The most values of all weights, likewise.
        exclude: Patterns of names of layers whose blocks stay.
        samples: Training samples that blocks are ranked on, at least 1.
    """

    count: int | None = None
    macs: float | int | None = None
    params: float | int | None = None
    exclude: tuple[str, ...] = ()
    samples: int = 128

    def __post_init__(self):
        check_removal("remove_blocks", self.count, self.macs, self.params, self.samples)

    @property
    def keeps_clusters(self) -> bool:
        # What is left of the kernels is as it was, and is held while it trains.
        return True

    def check_after(self, earlier: Sequence[Technique]) -> None:
        super().check_after(earlier)
        refuse_after_rounding(earlier, "Remove blocks")

    def check(self, model: keras.Model, total_steps: int) -> None:
        removable_blocks(model, self.exclude)

    def apply(self, model: keras.Model, context: Context) -> keras.Model:
        small = remove_blocks(model, **dataclasses.asdict(self), data=context.data)
        return context.train(small).model
