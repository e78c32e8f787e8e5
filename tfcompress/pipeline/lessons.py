"""`Lessons`: what the teacher of a run says to the stages that it teaches, and about which samples.

Invariant: where the pictures of an epoch are known before and outputs alone are learned, the teacher is asked once for
all stages, and what it said is stored; otherwise it runs in each step. Left out: what is learned
(`techniques/distill/`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras

from tfcompress.data import Dataset
from tfcompress.teach_settings import TeachSettings
from tfcompress.techniques.distill import Distiller, Ensemble, StoredOutputs, Teacher, cache_teacher
from tfcompress.techniques.distill.by_name import teaching


class Lesson(NamedTuple):
    """What `tfcompress.training.fit` needs to train under a teacher.

    Args:
        data: The data to train on: samples without labels are there where somebody teaches.
        wrap: Gives the model to fit around a student; None where nobody teaches.
        teacher_outputs: What a stored teacher said, which goes along with each batch; None where it runs itself.
    """

    data: Dataset
    wrap: Callable[[keras.Model], keras.Model] | None = None
    teacher_outputs: Callable[..., Any] | None = None


class Lessons:
    """The lessons of a teacher.

    Args:
        teacher: The teacher, or several as one; None if nobody teaches.
        data: The data that stages train on.
        folder: Where what it says is stored.
        progress: Whether the storing shows how far it is.
    """

    def __init__(self, teacher: Teacher | Ensemble | None, data: Dataset, folder: Path, *, progress: bool):
        self._teacher, self._data, self._folder, self._progress = teacher, data, folder, progress
        self._stored: StoredOutputs | None = None

    def lesson(self, taught: TeachSettings | None, seed: int) -> Lesson:
        """The lesson of a stage, by its settings and seed."""
        if taught is None:
            return Lesson(self._data)
        plan = teaching(taught, seed)
        stored = self._store() if self._data.views is not None and not plan.pairs else None
        return Lesson(
            self._data.taught,
            lambda student: Distiller(student, stored or self._teacher, plan.losses, mix=plan.mix),
            None if stored is None else stored.lookup,
        )

    def _store(self) -> StoredOutputs:
        if self._stored is None:
            self._stored = cache_teacher(self._teacher, self._data.taught, self._folder, progress=self._progress)
        return self._stored
