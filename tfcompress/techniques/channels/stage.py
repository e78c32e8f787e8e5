"""The recipe stage `prune_channels`: removes channels, then trains what is left.

Invariant: what is trained is a plain, smaller Keras model within its budget. Left out: several rounds, which are
several stages with falling budgets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras

from tfcompress.errors import ModelError
from tfcompress.techniques.base import Context, Technique
from tfcompress.techniques.channels.prune_channels import (
    ChannelBudget,
    check_arguments,
    prunable_graph,
    prune_channels,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneChannels(Technique):
    """Removes channels down to a budget, and trains.

    Args:
        macs: The most multiply-adds: a share of the model's, in (0, 1), or a number. Give this or `params`.
        params: The most values of all weights, likewise.
        criterion: A name of `CRITERIA`, such as `"l2"` or `"taylor"`.
        ranking: `"layer"`, `"global"` or `"isomorphic"`.
        round_to: What is left of a group of channels is a multiple of it, at least 1.
        exclude: Patterns of names of layers that keep all their channels.
        samples: Training samples that statistics and criteria are measured on, at least 1.
    """

    macs: float | int | None = None
    params: float | int | None = None
    criterion: str = "l2"
    ranking: str = "isomorphic"
    round_to: int = 1
    exclude: tuple[str, ...] = ()
    samples: int = 1000

    def __post_init__(self):
        ChannelBudget(macs=self.macs, params=self.params)
        check_arguments("prune_channels", self.criterion, self.ranking, self.round_to, self.samples)

    @property
    def keeps_clusters(self) -> bool:
        # What is left of a kernel holds no new value, and is held while it trains.
        return True

    def check_after(self, earlier: Sequence[Technique]) -> None:
        super().check_after(earlier)
        rounding = [technique for technique in earlier if technique.makes_integers]
        if rounding:
            raise ModelError(
                f"The ranges that {type(rounding[-1]).__name__} left belong to the channels that the model has. Prune "
                "channels first, quantize afterwards."
            )

    def check(self, model: keras.Model, total_steps: int) -> None:
        prunable_graph(model, self.exclude)

    def apply(self, model: keras.Model, context: Context) -> keras.Model:
        small = prune_channels(
            model,
            macs=self.macs,
            params=self.params,
            criterion=self.criterion,
            ranking=self.ranking,
            round_to=self.round_to,
            exclude=self.exclude,
            data=context.data,
            samples=self.samples,
            seed=context.seed,
        )
        return context.train(small).model
