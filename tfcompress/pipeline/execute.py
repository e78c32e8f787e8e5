"""`run` and `compress`: a recipe from its first training to its last file.

Invariant: every stage starts from what the stage before left, trains under the masks and clusters of all stages before,
and is measured in the same way; a run that was interrupted and run again gives what an uninterrupted one gives. Left
out: what a stage does (`techniques/`), reports (`report/`), and choosing a recipe (`search`).
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import keras

from tfcompress import files
from tfcompress.data import Dataset
from tfcompress.errors import InvalidArgumentError
from tfcompress.measure.environment import describe_environment
from tfcompress.measure.metrics import Metrics
from tfcompress.pipeline.exports import export_file
from tfcompress.pipeline.file_figures import RecordedFigures
from tfcompress.pipeline.inputs import data_key, load_data, model_file_key, model_key, plain, teacher_file_key
from tfcompress.pipeline.lessons import Lessons
from tfcompress.pipeline.plan import plan_run, stage_settings, stage_teaching, together
from tfcompress.pipeline.rows import keras_row, layer_figures, teacher_row
from tfcompress.pipeline.stage_store import StageStore, refuse_other_stages, stage_path
from tfcompress.recipe import EnsembleSpec, ModelSpec, Recipe, load_recipe
from tfcompress.teach_settings import TeachSettings
from tfcompress.techniques.base import Context, Technique, Trainer
from tfcompress.techniques.distill import Ensemble, Teacher
from tfcompress.techniques.masks import HoldMasks
from tfcompress.techniques.quantize import round_biases
from tfcompress.techniques.shared_values import HoldClusters
from tfcompress.train_settings import TrainSettings
from tfcompress.training.fit import TrainResult, fit

# Part of every key: a change that alters results makes earlier ones stale.
RESULT_VERSION = 3
# What is measured of a stage besides its row: in `stage.json`, and by stage in `metrics.json`.
_DETAILS = {"history": "histories", "sparsity": "sparsity", "layers": "layers"}


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run leaves.

    Args:
        out: The folder with everything in it.
        model: The Keras model of the last stage.
        rows: A row for each stage and each exported file.
        exports: The exported files by mode.
    """

    out: Path
    model: keras.Model
    rows: tuple[Metrics, ...]
    exports: Mapping[str, Path]

    @property
    def metrics_path(self) -> Path:
        return self.out / "metrics.json"


def run(recipe: Recipe, out: str | os.PathLike, *, overwrite: bool = False, progress: bool = True) -> RunResult:
    """Runs a recipe, or what is left of it in `out`.

    Args:
        recipe: A complete recipe.
        out: Folder for the results; see `docs/results.md`. Stages that are finished there are not run again.
        overwrite: Whether results of another recipe may be replaced.
        progress: Whether to show progress bars.

    Returns:
        The rows, files and the last model. `write_report(result.out)` makes pages and pictures of them.

    Raises:
        RecipeError: If the recipe is not complete, does not fit its model, or `out` holds another recipe's results.
        DataError: If the data is missing or unusable.
        TrainingError: If a training fails.
        ExportError: If a file does not pass the gate.
    """
    recipe.require_complete()
    data = load_data(recipe.data)
    return _Run(recipe, data, Path(out), overwrite, progress).run()


def compress(
    model: keras.Model,
    data: Dataset,
    recipe: Recipe | str | os.PathLike,
    out: str | os.PathLike | None = None,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> RunResult:
    """Runs a recipe on a model and data that the caller has.

    The model takes the place of the recipe's teacher, already trained. What is compressed is the recipe's student, or
    the model itself where the recipe has none; then its original teaches it. The recipe's `data` gives only the batch
    size.

    Args:
        model: A trained functional or Sequential classifier. It is not changed.
        data: The data.
        recipe: A recipe, or the path of one.
        out: Folder for the results; by default `runs/<recipe name>`.
        overwrite: Whether results of another recipe may be replaced.
        progress: Whether to show progress bars.

    Returns:
        As `run`.

    Raises:
        As `run`.

    Example:
        >>> result = compress(model, data, "configs/digits.yaml", out="runs/mine")  # doctest: +SKIP
        >>> result.exports["int8"]  # doctest: +SKIP
        PosixPath('runs/mine/export/model_int8.tflite')
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    if not isinstance(data, Dataset):
        raise InvalidArgumentError("data", "a tfcompress Dataset (see `from_arrays` and `load_dataset`)", type(data))
    out = Path("runs") / recipe.name if out is None else Path(out)
    return _Run(recipe, data, out, overwrite, progress, model).run()


class _Run:
    """One run: the state that goes from stage to stage."""

    def __init__(
        self,
        recipe: Recipe,
        data: Dataset,
        out: Path,
        overwrite: bool,
        progress: bool,
        given: keras.Model | None = None,
    ):
        self._recipe = recipe
        self._data = data
        self._out = out
        self._overwrite = overwrite
        self._progress = progress
        self._given = given
        self._teacher: Teacher | Ensemble | None = None
        self._teacher_key = ""
        self._lessons = Lessons(None, data, out, progress=progress)
        self._rows: list[Metrics] = []
        self._details: dict[str, dict[str, Any]] = {name: {} for name in _DETAILS.values()}
        self._exports: dict[str, dict[str, Any]] = {}
        self._holds_masks = False
        self._holds_clusters = False
        self._holds_integers = False
        self._data_key = data_key(recipe.data, data)
        self._key = files.content_key(RESULT_VERSION, recipe.seed, recipe.data.batch_size, self._data_key)

    def run(self) -> RunResult:
        # Everything that can be known to be wrong is found before the first training.
        plan = plan_run(self._recipe, self._data, self._given)
        names = [self._stage_name(index) for index in range(len(plan.techniques))]
        refuse_other_stages(
            self._out / "stages",
            ["teacher", *self._member_names(), *self._assistant_names(), "student", *names],
            self._overwrite,
        )
        self._make_teacher(plan.teacher)
        self._make_assistants(plan.assistants)
        model = self._make_student(plan.student)
        for index, technique in enumerate(plan.techniques):
            model = self._run_stage(index, technique, model)
        exports = self._export(model)
        self._write()
        return RunResult(self._out, model, tuple(self._rows), exports)

    def _make_teacher(self, planned: Teacher | Ensemble | None) -> None:
        spec = self._recipe.teacher
        if self._given is not None:
            self._take_teacher(planned, model_key(self._given))
            self._stage("teacher", files.content_key(self._key, self._teacher_key), lambda store: (self._given, {}))
        elif isinstance(spec, EnsembleSpec):
            members = cast(Ensemble, planned).teachers
            of_each = enumerate(zip(self._member_names(), spec.teachers, members, strict=True))
            made = [self._make_one(name, each, cast(Teacher, one), number) for number, (name, each, one) in of_each]
            key = files.content_key("ensemble", plain(spec.weights), spec.combine, [key for _, key in made])
            self._take_teacher(together(spec, [teacher for teacher, _ in made]), key)
            self._measure_teacher("teacher", self._teacher, key, None)
        elif spec is not None:
            self._take_teacher(*self._make_one("teacher", spec, cast(Teacher, planned)))

    def _make_one(self, name: str, spec: ModelSpec, planned: Teacher, number: int = 0) -> tuple[Teacher, str]:
        """A teacher as it teaches, and its key; several of one family differ by their number."""
        if spec.file is not None:
            file = Path(spec.file)
            key = teacher_file_key(file, spec)
            self._measure_teacher(name, planned, key, file)
            return planned, key
        settings = cast(TrainSettings, spec.train)  # The plan has checked that it has some.
        described = ["teacher", spec.model, dict(spec.arguments), dataclasses.asdict(settings)]
        key = files.content_key(self._key, plain(described), *([number] if number else []))
        # No stage counts so far.
        seed = 1000 - number if number else 0
        return Teacher(self._train_first(name, key, planned.source, settings, seed=seed)), key

    def _member_names(self) -> list[str]:
        spec = self._recipe.teacher
        count = len(spec.teachers) if isinstance(spec, EnsembleSpec) and self._given is None else 0
        return [f"teacher-{number}" for number in range(1, count + 1)]

    def _make_assistants(self, planned: Sequence[keras.Model]) -> None:
        """Trains one after the other under the one before; the last is the teacher of all that follows."""
        for name, spec, model in zip(self._assistant_names(), self._recipe.assistants, planned, strict=True):
            settings = cast(TrainSettings, spec.train)  # The plan has checked that it has some.
            described = [spec.model, dict(spec.arguments), dataclasses.asdict(settings), repr(spec.teach)]
            key = files.content_key(self._teacher_key, self._key, plain(described))
            self._take_teacher(Teacher(self._train_first(name, key, model, settings, spec.teach)), key)

    def _assistant_names(self) -> list[str]:
        return [f"assistant-{number}" for number in range(1, len(self._recipe.assistants) + 1)]

    def _take_teacher(self, teacher: Teacher | Ensemble | None, key: str) -> None:
        self._teacher, self._teacher_key = teacher, key
        folder = self._out / "teacher" / files.content_key(key, self._data_key)
        self._lessons = Lessons(teacher, self._data, folder, progress=self._progress)

    def _measure_teacher(self, name: str, teacher: Any, key: str, file: Path | None) -> None:
        """Measures a teacher that is not trained here, unless that is done."""
        started = time.perf_counter()
        store = self._store(name, files.content_key(self._key, key))
        record = store.load()
        if record is None:
            row = teacher_row(name, teacher, file, self._data, time.perf_counter() - started)
            record = {"row": row.to_dict()}
            store.save(record)
        self._note(name, record)

    def _make_student(self, planned: keras.Model | None) -> keras.Model:
        spec = self._recipe.student
        if spec is None or planned is None:
            self._key = files.content_key(self._key, "teacher", self._teacher_key)
            return cast(Teacher, self._teacher).source  # The plan has checked that it is a Keras model.
        origin = [spec.model, dict(spec.arguments)] if spec.file is None else model_file_key(Path(spec.file))
        settings = None if spec.train is None else dataclasses.asdict(spec.train)
        self._key = files.content_key(self._key, "student", plain([origin, settings]))
        if spec.train is not None:
            return self._train_first("student", self._key, planned, spec.train)
        if spec.file is not None:
            return self._stage("student", self._key, lambda store: (planned, {}))
        self._details["layers"]["student"] = layer_figures(planned)["layers"]
        return planned

    def _train_first(
        self,
        name: str,
        key: str,
        model: keras.Model,
        settings: TrainSettings,
        taught: TeachSettings | None = None,
        seed: int = 0,
    ) -> keras.Model:
        """Trains a teacher or student on the labels alone, or an assistant under its teacher."""

        def make(store: StageStore) -> tuple[keras.Model, dict]:
            result = self._fit(name, store, model, settings, seed=self._seed(seed), taught=taught, callbacks=None)
            return result.model, result.history

        return self._stage(name, key, make)

    def _stage_name(self, index: int) -> str:
        return f"{index + 1:02d}-{self._recipe.stages[index].technique}"

    def _run_stage(self, index: int, technique: Technique, model: keras.Model) -> keras.Model:
        name, spec = self._stage_name(index), self._recipe.stages[index]
        taught = stage_teaching(spec, technique)
        settings = stage_settings(spec, technique)
        if settings is None:
            raise self._recipe.source.error(("stages", index, spec.technique, "train"), "is missing.")
        self._key = files.content_key(
            self._key,
            [name, plain(dataclasses.asdict(technique)), dataclasses.asdict(settings)],
            [repr(taught), self._teacher_key if taught is not None else ""],
        )

        def make(store: StageStore) -> tuple[keras.Model, dict]:
            history: dict[str, list[float]] = {}

            def train(model: Any, *, callbacks: Any = None, trainer: Trainer | None = None) -> TrainResult:
                result = self._fit(
                    name,
                    store,
                    model,
                    settings,
                    seed=context.seed,
                    taught=taught,
                    callbacks=callbacks,
                    trainer=trainer,
                )
                history.update(result.history)
                return result

            context = Context(
                data=self._data,
                taught=taught is not None,
                settings=settings,
                batch_size=self._recipe.data.batch_size,
                seed=self._seed(index + 1),
                train=train,
                measure_file=RecordedFigures(self._data, store.path / "measured.json"),
                hold_zeros=self._holds_masks,
            )
            keras.utils.set_random_seed(context.seed)
            made = technique.apply(model, context)
            if self._holds_integers or technique.makes_integers:
                # Whatever trained last moved biases off the grid of the integer file.
                round_biases(made)
            return made, history

        made = self._stage(name, self._key, make)
        self._holds_masks = self._holds_masks or technique.makes_zeros
        self._holds_clusters = self._holds_clusters or technique.makes_clusters
        self._holds_integers = self._holds_integers or technique.makes_integers
        return made

    def _fit(
        self,
        name: str,
        store: StageStore,
        model: Any,
        settings: TrainSettings,
        *,
        seed: int,
        taught: TeachSettings | None,
        callbacks: Callable[[Any], Sequence[Any]] | None,
        trainer: Trainer | None = None,
    ) -> TrainResult:
        common: dict[str, Any] = {
            "batch_size": self._recipe.data.batch_size,
            "seed": seed,
            "checkpoint": store.checkpoint,
            "key": store.key,
            "label": name if self._progress else None,
        }
        if trainer is not None:
            assert taught is None  # The plan has refused it.
            return trainer(model, self._data, settings, hold_zeros=self._holds_masks, callbacks=callbacks, **common)

        def all_callbacks(replica: keras.Model) -> list[keras.callbacks.Callback]:
            held: list[keras.callbacks.Callback] = [HoldMasks(replica)] if self._holds_masks else []
            held += [HoldClusters(replica)] if self._holds_clusters else []
            return held + (list(callbacks(replica)) if callbacks is not None else [])

        lesson = self._lessons.lesson(taught, seed)
        return fit(model, settings=settings, callbacks=all_callbacks, **lesson._asdict(), **common)

    def _seed(self, number: int) -> int:
        """The seed of a stage by its number; teacher and student have 0. No two stages share an order of samples."""
        return self._recipe.seed * 1000 + number

    def _stage(
        self, name: str, key: str, make: Callable[[StageStore], tuple[keras.Model, dict[str, list[float]]]]
    ) -> keras.Model:
        """Makes and measures a model, or loads it where an earlier run left it finished."""
        store = self._store(name, key)
        record = store.load()
        if record is None:
            started = time.perf_counter()
            model, history = make(store)
            seconds = time.perf_counter() - started
            store.save_model(model)
            row = keras_row(name, model, self._data, seconds)
            record = {"row": row.to_dict(), "history": history, **layer_figures(model)}
            store.save(record)
        else:
            model = store.load_model()
        self._note(name, record)
        return model

    def _store(self, name: str, key: str) -> StageStore:
        store = StageStore(stage_path(self._out / "stages", name), key)
        store.open(self._overwrite)
        return store

    def _note(self, name: str, record: dict[str, Any]) -> None:
        self._rows.append(Metrics.from_dict(record["row"]))
        for key, detail in _DETAILS.items():
            if record.get(key):
                self._details[detail][name] = record[key]

    def _export(self, model: keras.Model) -> dict[str, Path]:
        paths: dict[str, Path] = {}
        for spec in self._recipe.export:
            exported = export_file(spec, model, self._data, self._out)
            self._rows.append(exported.row)
            self._exports[spec.mode], paths[spec.mode] = exported.described, exported.path
        return paths

    def _write(self) -> None:
        files.write_text(self._out / "recipe.yaml", self._recipe.to_yaml())
        files.write_json(
            self._out / "metrics.json",
            {
                "recipe": self._recipe.name,
                "rows": [row.to_dict() for row in self._rows],
                "export": self._exports,
                **self._details,
                "environment": describe_environment(),
            },
        )
