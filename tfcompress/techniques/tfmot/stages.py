"""The recipe stages `tfmot_prune`, `tfmot_cluster` and `tfmot_quantize`.

Invariant: whatever TFMOT or tf_keras cannot do with a stage's model, settings or place among the stages is an error
before the first training. Left out: the work itself, which is in the three functions of the same names; their modules,
and with them tf_keras and TFMOT, are loaded when a stage is checked or run.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.outputs import gives_probabilities
from tfcompress.techniques.base import Context, Technique
from tfcompress.techniques.schedules import Schedule, schedule_from_recipe
from tfcompress.techniques.tfmot.arguments import check_clusters, check_log_dir, check_pattern, check_scheme
from tfcompress.train_settings import TrainSettings

# Settings of `train:` that stay as they are: why TFMOT in tf_keras does not follow them.
NOT_FOLLOWED = {
    "precision": ("float32", "TFMOT's wrappers in tf_keras compute in float32"),
    "strategy": ("default", "tf_keras would need a strategy of its own"),
    "steps_per_execution": (1, "zeros of earlier stages are held between two batches"),
}

# Steps after which a range of TFMOT's is within a twentieth of its start: 0.999 ** 3000 = 0.05.
SETTLED = 3000


class _InTfKeras(Technique):
    """What the three have in common: they train in tf_keras."""

    can_be_taught: ClassVar[bool] = False

    def check_settings(self, settings: TrainSettings) -> None:
        for name, (only, reason) in NOT_FOLLOWED.items():
            if getattr(settings, name) != only:
                raise InvalidArgumentError(f"TrainSettings.{name}", f"{only!r} here: {reason}", getattr(settings, name))

    def check_after(self, earlier: Sequence[Technique]) -> None:
        super().check_after(earlier)
        if any(technique.makes_integers for technique in earlier):
            raise ModelError("It works on float models only; let it come before the stage that quantizes.")


def _trainer(model: keras.Model, context: Context) -> Callable[[Any, Sequence[Any]], Any]:
    """The `fit` of the stage, for the functions of this folder."""
    from tfcompress.techniques.tfmot.training import fit_tf_keras

    trainer = functools.partial(fit_tf_keras, from_logits=not gives_probabilities(model))
    return lambda legacy, callbacks: context.train(legacy, callbacks=lambda _: callbacks, trainer=trainer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfmotPrune(_InTfKeras):
    """The recipe stage `tfmot_prune`: TFMOT's `prune_low_magnitude`.

    Args:
        schedule: `{name: arguments}`, a function of `schedules.py`, such as
            `{"polynomial_decay": {"final_sparsity": 0.8}}`; or `None` with `sparsity_m_by_n`.
        sparsity_m_by_n: `(2, 4)` for 2 zeros among every 4 neighbouring input channels.
        block_size: Height and width of the blocks of a dense kernel that are zero together.
        block_pooling: `"AVG"` or `"MAX"`: what a block is ranked by.
        include: Patterns of layer names to prune; `None` is all that TFMOT can.
        exclude: Patterns of layer names not to prune.
        log_dir: Folder for TFMOT's `PruningSummaries`.
    """

    makes_zeros: ClassVar[bool] = True

    schedule: Mapping[str, Any] | None = None
    sparsity_m_by_n: tuple[int, int] | None = None
    block_size: tuple[int, int] = (1, 1)
    block_pooling: str = "AVG"
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    log_dir: str | None = None

    def __post_init__(self):
        if (self.schedule is None) == (self.sparsity_m_by_n is None):
            raise InvalidArgumentError(
                "tfmot_prune.schedule", "given, or else `sparsity_m_by_n`, and not both", self.schedule
            )
        check_pattern("tfmot_prune", self.sparsity_m_by_n, self.block_size, self.block_pooling)
        check_log_dir("tfmot_prune", self.log_dir)
        # A schedule is known to be right only when it is made; a thousand steps stand for the planned ones.
        self._schedule(1000)

    def _schedule(self, total_steps: int) -> Schedule | None:
        return None if self.schedule is None else schedule_from_recipe(self.schedule, total_steps)

    def check(self, model: keras.Model, total_steps: int) -> None:
        from tfcompress.techniques.tfmot.callbacks import check_schedule
        from tfcompress.techniques.tfmot.prune import choose_prunable
        from tfcompress.techniques.tfmot.selection import carry_over

        schedule = self._schedule(total_steps)
        if schedule is not None:
            check_schedule(schedule, total_steps)
        legacy = carry_over("tfmot_prune", model, None)
        choose_prunable(
            legacy, self.include, self.exclude, sparsity_m_by_n=self.sparsity_m_by_n, block_size=self.block_size
        )

    def apply(self, model: keras.Model, context: Context) -> keras.Model:
        from tfcompress.techniques.tfmot.prune import tfmot_prune

        return tfmot_prune(
            model,
            _trainer(model, context),
            schedule=self._schedule(context.total_steps),
            sparsity_m_by_n=self.sparsity_m_by_n,
            block_size=self.block_size,
            block_pooling=self.block_pooling,
            include=self.include,
            exclude=self.exclude,
            log_dir=self.log_dir,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfmotCluster(_InTfKeras):
    """The recipe stage `tfmot_cluster`: TFMOT's `cluster_weights`.

    Args:
        number_of_clusters: Values that each kernel may have, at least 2, or 3 where zeros are kept.
        centroids: Where they start: `"kmeans_plus_plus"`, `"linear"`, `"density_based"` or `"random"`.
        preserve_sparsity: Whether the zeros of kernels are kept; `None` keeps those that an earlier stage made.
        per_channel: Whether each output channel of a 2-D convolution has values of its own.
        include: Patterns of layer names to cluster; `None` is all that TFMOT can.
        exclude: Patterns of layer names not to cluster.
        log_dir: Folder for TFMOT's `ClusteringSummaries`.
    """

    makes_clusters: ClassVar[bool] = True

    number_of_clusters: int
    centroids: str = "kmeans_plus_plus"
    preserve_sparsity: bool | None = None
    per_channel: bool = False
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    log_dir: str | None = None

    def __post_init__(self):
        check_clusters("tfmot_cluster", self.number_of_clusters, self.centroids, bool(self.preserve_sparsity))
        check_log_dir("tfmot_cluster", self.log_dir)

    @property
    def clusters_channels(self) -> bool:
        return self.per_channel

    def check_after(self, earlier: Sequence[Technique]) -> None:
        super().check_after(earlier)
        if any(technique.makes_zeros for technique in earlier):
            if self.preserve_sparsity is False:
                raise ModelError("It would fill the zeros of an earlier stage. Leave out `preserve_sparsity`.")
            check_clusters("tfmot_cluster", self.number_of_clusters, self.centroids, True)

    def check(self, model: keras.Model, total_steps: int) -> None:
        from tfcompress.techniques.tfmot.cluster import choose_clusterable
        from tfcompress.techniques.tfmot.selection import carry_over

        choose_clusterable(
            carry_over("tfmot_cluster", model, None),
            self.include,
            self.exclude,
            number_of_clusters=self.number_of_clusters,
            per_channel=self.per_channel,
        )

    def apply(self, model: keras.Model, context: Context) -> keras.Model:
        from tfcompress.techniques.tfmot.cluster import tfmot_cluster

        return tfmot_cluster(
            model,
            _trainer(model, context),
            number_of_clusters=self.number_of_clusters,
            centroids=self.centroids,
            preserve_sparsity=context.hold_zeros if self.preserve_sparsity is None else self.preserve_sparsity,
            per_channel=self.per_channel,
            include=self.include,
            exclude=self.exclude,
            log_dir=self.log_dir,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfmotQuantize(_InTfKeras):
    """The recipe stage `tfmot_quantize`: TFMOT's quantization-aware training.

    Args:
        scheme: `"default"`, `"prune"` (PQAT), `"cluster"` (CQAT) or `"prune_cluster"` (PCQAT).
        calibration_samples: Training samples that the first ranges are read from. 0 leaves TFMOT's own start, -6 to 6,
            and wants a training of at least 3,000 steps.
        exclude: Patterns of layer names that stay in float.
        allow_float: Whether layers that TFMOT cannot quantize stay in float, instead of an error.
    """

    makes_integers: ClassVar[bool] = True

    scheme: str = "default"
    calibration_samples: int = 1000
    exclude: tuple[str, ...] = ()
    allow_float: bool = False

    def __post_init__(self):
        check_scheme("tfmot_quantize", self.scheme)
        if self.calibration_samples < 0:
            raise InvalidArgumentError("tfmot_quantize.calibration_samples", "at least 0", self.calibration_samples)

    @property
    def keeps_clusters(self) -> bool:
        return "cluster" in self.scheme

    def check_after(self, earlier: Sequence[Technique]) -> None:
        super().check_after(earlier)
        if self.scheme == "cluster" and any(technique.makes_zeros for technique in earlier):
            raise ModelError("The scheme 'cluster' loses the zeros of an earlier stage. Choose 'prune_cluster'.")

    def check(self, model: keras.Model, total_steps: int) -> None:
        if not self.calibration_samples and total_steps < SETTLED:
            raise InvalidArgumentError(
                "tfmot_quantize.calibration_samples",
                f"above 0 for a training of {total_steps} steps, since ranges that start at -6 to 6 need {SETTLED}",
                self.calibration_samples,
            )
        from tfcompress.techniques.tfmot.quantize import make_aware

        make_aware(model, self.scheme, self.exclude, self.allow_float, None)

    def apply(self, model: keras.Model, context: Context) -> keras.Model:
        from tfcompress.techniques.tfmot.quantize import tfmot_quantize

        samples = self.calibration_samples
        return tfmot_quantize(
            model,
            _trainer(model, context),
            calibration=context.data.batches("train", min(samples, 100), limit=samples) if samples else None,
            scheme=self.scheme,
            exclude=self.exclude,
            allow_float=self.allow_float,
        )
