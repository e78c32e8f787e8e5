"""The recipe stage `prune_channels`: removes channels, then trains what is left.

Invariant: what is trained is a plain, smaller Keras model within its budget. Left out: several rounds, which are
several stages with falling budgets.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import keras

from tfcompress.techniques.base import Context, Technique
from tfcompress.techniques.channels.before_quantization import refuse_after_rounding
from tfcompress.techniques.channels.budget import ChannelBudget
from tfcompress.techniques.channels.prune_channels import check_arguments, prunable_graph, prune_channels


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneChannels(Technique):
    """Removes channels down to a budget, and trains.

    Args:
        macs: The most multiply-adds: a share of the model's, in (0, 1), or a number. Give one of the four budgets.
        params: The most values of all weights, likewise.
        tflite_kb: The most kilobytes (1 kB is 1000 B) of the exported int8 file, at least 1, or a share likewise.
        latency_ms: The most milliseconds of one inference of that file in LiteRT on this machine, likewise: a median,
            and yet it depends on what else the machine does.
        criterion: A name of `CRITERIA`, such as `"l2"` or `"taylor"`.
        ranking: `"layer"`, `"global"` or `"isomorphic"`.
        round_to: A group that loses channels keeps a multiple of it, at least 1; a group that has fewer stays whole.
        exclude: Patterns of names of layers that keep all channels that they make or carry.
        samples: Training samples that statistics and criteria are measured on, at least 1.
        reconstruct: Whether kernels are fitted to what the whole model computes on them, before training.
    """

    macs: float | int | None = None
    params: float | int | None = None
    tflite_kb: float | int | None = None
    latency_ms: float | int | None = None
    criterion: str = "l2"
    ranking: str = "isomorphic"
    round_to: int = 1
    exclude: tuple[str, ...] = ()
    samples: int = 1000
    reconstruct: bool = False

    def __post_init__(self):
        self._budget()
        check_arguments("prune_channels", self.criterion, self.ranking, self.round_to, self.samples)

    def _budget(self) -> ChannelBudget:
        return ChannelBudget(macs=self.macs, params=self.params, tflite_kb=self.tflite_kb, latency_ms=self.latency_ms)

    @property
    def keeps_clusters(self) -> bool:
        # What is left of a kernel holds no new value, and is held while it trains.
        return True

    def check_after(self, earlier: Sequence[Technique]) -> None:
        super().check_after(earlier)
        refuse_after_rounding(earlier, "Prune channels")

    def check(self, model: keras.Model, total_steps: int) -> None:
        prunable_graph(model, self.exclude)

    def apply(self, model: keras.Model, context: Context) -> keras.Model:
        budget = self._budget()
        small = prune_channels(
            model,
            macs=self.macs,
            params=self.params,
            tflite_kb=self.tflite_kb,
            latency_ms=self.latency_ms,
            criterion=self.criterion,
            ranking=self.ranking,
            round_to=self.round_to,
            exclude=self.exclude,
            data=context.data,
            samples=self.samples,
            reconstruct=self.reconstruct,
            seed=context.seed,
            measure=functools.partial(context.measure_file, figure=budget.name) if budget.is_measured else None,
        )
        return context.train(small).model
