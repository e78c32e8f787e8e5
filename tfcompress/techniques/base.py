"""What a technique is, and what it is given to work with.

Invariant: a technique takes a Keras model and returns a new, plain one; the model it was given is not changed.
Left out: the order of techniques, their caching and their measurement (`pipeline.py`).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import keras

from tfcompress.data import Dataset
from tfcompress.errors import ModelError
from tfcompress.teach_settings import TeachSettings
from tfcompress.train_settings import TrainSettings
from tfcompress.training.fit import TrainResult


class Trainer(Protocol):
    """What trains in the place of `tfcompress.training.fit`, for models that are not of Keras 3."""

    def __call__(
        self,
        model: Any,
        data: Dataset,
        settings: TrainSettings,
        *,
        batch_size: int,
        seed: int,
        hold_zeros: bool,
        callbacks: Callable[[Any], Sequence[Any]] | None,
        checkpoint: Path | None,
        key: str,
        label: str | None,
    ) -> TrainResult: ...


class TrainModel(Protocol):
    """Trains a copy of a model the way the running stage says: data, settings, teacher, held masks, resume.

    A `trainer` does the training in the place of `fit`; it has no teacher.
    """

    def __call__(
        self,
        model: Any,
        *,
        callbacks: Callable[[Any], Sequence[Any]] | None = None,
        trainer: Trainer | None = None,
    ) -> TrainResult: ...


class MeasureFile(Protocol):
    """Exports a model to int8 and gives a figure of the file: `"tflite_kb"` (1 kB is 1000 B) or `"latency_ms"`.

    A stage that was interrupted is given the figures that it was given before, so that it does the same again.
    """

    def __call__(self, model: keras.Model, figure: str) -> float: ...


@dataclasses.dataclass(frozen=True)
class Context:
    """What a stage runs in.

    Args:
        data: The data set; techniques use its train split, and validation to choose.
        settings: How the stage trains.
        batch_size: Samples in a training batch.
        seed: Seed of everything random.
        train: Trains a model; a technique calls it at most once.
        measure_file: Measures the exported file of a model, which takes seconds.
        hold_zeros: Whether the zeros that the model's kernels have must still be there after the stage.
        taught: Whether a teacher teaches, and `train` sees samples without labels too, as `data.taught`.
    """

    data: Dataset
    settings: TrainSettings
    batch_size: int
    seed: int
    train: TrainModel
    measure_file: MeasureFile
    hold_zeros: bool = False
    taught: bool = False

    @property
    def total_steps(self) -> int:
        """Training steps of the stage."""
        data = self.data.taught if self.taught else self.data
        return self.settings.epochs * data.steps_per_epoch(self.batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Technique(abc.ABC):
    """Base of every technique: a frozen dataclass whose fields are the keys of its recipe stage."""

    # Whether the stage makes sense without a teacher.
    needs_teacher: ClassVar[bool] = False
    # Whether it can train under one.
    can_be_taught: ClassVar[bool] = True
    # Whether it trains, and so needs the recipe's `train`.
    trains: ClassVar[bool] = True
    # What it promises of the kernels, which later stages must keep: zeros, few values, rounding to integers.
    makes_zeros: ClassVar[bool] = False
    makes_clusters: ClassVar[bool] = False
    makes_integers: ClassVar[bool] = False

    @abc.abstractmethod
    def apply(self, model: keras.Model, context: Context) -> keras.Model:
        """Returns a new model; `model` is not changed.

        Args:
            model: A built functional or Sequential model.
            context: Data, settings and the training of the running stage.
        """

    def check(self, model: keras.Model, total_steps: int) -> None:
        """Raises what can be known to be wrong before anything is trained; by default nothing.

        Args:
            model: A model of the structure that `apply` will be given, with any weights.
            total_steps: Training steps of the stage.

        Raises:
            TFCompressError: If the technique cannot do its work on this model in these steps.
        """
        return None

    def check_settings(self, settings: TrainSettings) -> None:
        """Raises an `InvalidArgumentError` for training settings that the technique cannot follow; by default none."""
        return None

    @property
    def keeps_clusters(self) -> bool:
        """Whether kernels that hold few values hold as few after this technique, its training aside; by default not.

        Where a stage trains by `tfcompress.training.fit`, the pipeline keeps them few while it does (`HoldClusters`).
        """
        return False

    @property
    def clusters_channels(self) -> bool:
        """Whether it is each channel that holds few values, and not the kernel, which no later stage can keep."""
        return False

    def check_after(self, earlier: Sequence[Technique]) -> None:
        """Raises a `ModelError` if the technique cannot come after those of earlier stages."""
        clustered = [technique for technique in earlier if technique.makes_clusters]
        if clustered and (not self.keeps_clusters or any(technique.clusters_channels for technique in clustered)):
            raise ModelError(
                f"It changes each weight by itself, and the few values that {type(clustered[-1]).__name__} left "
                "would be lost. Let it come before, or go on with `quantize` or `tfmot_quantize: {scheme: cluster}`."
            )

    def teaching(self) -> TeachSettings | None:
        """How the technique itself asks to be taught, or `None`."""
        return None
