"""What a technique is, and what it is given to work with.

Invariant: a technique takes a Keras model and returns a new, plain one; the model it was given is not changed.
Left out: the order of techniques, their caching and their measurement (`pipeline.py`).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import keras

from tfcompress.data import Dataset
from tfcompress.train_settings import TrainSettings
from tfcompress.training.fit import TrainResult


class TrainModel(Protocol):
    """Trains a copy of a model the way the running stage says: data, settings, teacher, held masks, resume."""

    def __call__(
        self,
        model: keras.Model,
        *,
        callbacks: Callable[[keras.Model], Sequence[keras.callbacks.Callback]] | None = None,
    ) -> TrainResult: ...


@dataclasses.dataclass(frozen=True)
class Context:
    """What a stage runs in.

    Args:
        data: The data set; techniques use its train split, and validation to choose.
        settings: How the stage trains.
        batch_size: Samples in a training batch.
        seed: Seed of everything random.
        train: Trains a model; a technique calls it at most once.
    """

    data: Dataset
    settings: TrainSettings
    batch_size: int
    seed: int
    train: TrainModel

    @property
    def total_steps(self) -> int:
        """Training steps of the stage."""
        return self.settings.epochs * self.data.steps_per_epoch(self.batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Technique(abc.ABC):
    """Base of every technique: a frozen dataclass whose fields are the keys of its recipe stage."""

    # Whether the stage makes sense without a teacher.
    needs_teacher: ClassVar[bool] = False

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

    def teaching(self) -> Any | None:
        """The losses under a teacher that the technique itself asks for, or `None`."""
        return None
