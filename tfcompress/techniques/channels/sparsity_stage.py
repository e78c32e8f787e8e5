"""The recipe stage `learn_channel_sparsity`: trains with `ChannelSparsity`, before a stage that removes channels.

Invariant: the model that goes out has the layers and the sizes of the one that came in. Left out: the removal, which
is the next stage, `prune_channels`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras

from tfcompress.techniques.base import Context, Technique
from tfcompress.techniques.channels.before_quantization import refuse_after_rounding
from tfcompress.techniques.channels.sparsity import ChannelSparsity, check_sparsity, penalized_weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnChannelSparsity(Technique):
    """Trains with a penalty that makes whole channels small.

    Args:
        kind: `"group_lasso"`, `"batch_norm_l1"` or `"growing_l2"`; see `ChannelSparsity`.
        strength: Weight of the penalty beside the loss, above 0.
        rise: Share of the training in which it grows from 0, in [0, 1].
        exclude: Patterns of names of layers of which all channels that they make or carry are left alone.
        macs: For `"growing_l2"`, the most multiply-adds that are to be left: a share in (0, 1), or a number.
        params: For `"growing_l2"`, the most values of all weights, likewise.
    """

    strength: float
    kind: str = "group_lasso"
    rise: float = 0.5
    exclude: tuple[str, ...] = ()
    macs: float | int | None = None
    params: float | int | None = None

    def __post_init__(self):
        check_sparsity("learn_channel_sparsity", self.kind, self.strength, self.rise, self.macs, self.params)

    def check_after(self, earlier: Sequence[Technique]) -> None:
        super().check_after(earlier)
        refuse_after_rounding(earlier, "Learn which channels can go")

    def check(self, model: keras.Model, total_steps: int) -> None:
        penalized_weights(model, self.kind, self.exclude, self.macs, self.params)

    def apply(self, model: keras.Model, context: Context) -> keras.Model:
        arguments = dataclasses.asdict(self)

        def callbacks(replica: keras.Model) -> list[keras.callbacks.Callback]:
            return [ChannelSparsity(replica, **arguments)]

        return context.train(model, callbacks=callbacks).model
