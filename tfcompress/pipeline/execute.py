"""`run` and `compress`: a recipe from its first training to its last file.

Invariant: every stage starts from what the stage before left, trains under the masks of all stages before, and is
measured in the same way; a run that was interrupted and run again gives what an uninterrupted one gives. Left out: what
a stage does (`techniques/`), reports (`report/`), and choosing a recipe (`search`).
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from tfcompress import files
from tfcompress.data import Dataset
from tfcompress.errors import InvalidArgumentError
from tfcompress.export import ExportResult, export_tflite
from tfcompress.measure.environment import describe_environment
from tfcompress.measure.metrics import Metrics
from tfcompress.measure.size import layer_sparsity
from tfcompress.models import build
from tfcompress.pipeline.inputs import data_key, load_data, model_key, plain
from tfcompress.pipeline.rows import export_row, file_row, keras_row
from tfcompress.pipeline.stage_store import StageStore
from tfcompress.recipe import ModelSpec, Recipe, StageSpec, build_technique, load_recipe
from tfcompress.techniques.base import Context, Technique
from tfcompress.techniques.distill import Distiller, SoftTargets, Teacher
from tfcompress.techniques.masks import HoldMasks
from tfcompress.techniques.quantize.rewrite import remove_fake_quantization
from tfcompress.train_settings import TrainSettings
from tfcompress.training.fit import TrainResult, fit

# Part of every key: a change that alters results makes earlier ones stale.
RESULT_VERSION = 1


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
        self._teacher: Teacher | None = None
        self._teacher_key = ""
        self._rows: list[Metrics] = []
        self._histories: dict[str, dict[str, list[float]]] = {}
        self._sparsity: dict[str, dict[str, float]] = {}
        self._exports: dict[str, dict[str, Any]] = {}
        self._holds_masks = False
        self._key = files.content_key(RESULT_VERSION, recipe.seed, recipe.data.batch_size, data_key(recipe.data, data))

    def run(self) -> RunResult:
        # Everything that can be known to be wrong is found before the first training.
        techniques = [build_technique(self._recipe, index) for index in range(len(self._recipe.stages))]
        self._out.mkdir(parents=True, exist_ok=True)
        self._make_teacher()
        model = self._make_student()
        self._check_teaching()
        for index, (spec, technique) in enumerate(zip(self._recipe.stages, techniques, strict=True), start=1):
            model = self._run_stage(index, spec, technique, model)
        exports = self._export(model)
        self._write()
        return RunResult(self._out, model, tuple(self._rows), exports)

    def _make_teacher(self) -> None:
        spec = self._recipe.teacher
        if self._given is not None:
            self._teacher = Teacher(self._given)
            self._teacher_key = model_key(self._given)
            self._stage("teacher", self._teacher_key, lambda store: (self._given, {}))
        elif spec is not None and spec.file is not None:
            file = Path(spec.file)
            self._teacher = Teacher(file, input_range=spec.input_range, data_range=self._data.input_range)
            self._teacher_key = files.content_key(files.file_key(file), list(spec.input_range or ()))
            if spec.train is not None:
                raise self._recipe.source.error(("teacher", "train"), "must be left out: a teacher file is trained.")
            self._file_teacher_row(file, spec)
        elif spec is not None:
            model = self._family_model("teacher", spec, self._train_required("teacher", spec))
            self._teacher = Teacher(model)

    def _file_teacher_row(self, file: Path, spec: ModelSpec) -> None:
        """Measures a teacher file as it is; one with a pixel range of its own is measured through its adapter."""
        source = self._teacher.source if self._teacher is not None else None
        started = time.perf_counter()
        key = self._teacher_key
        store = self._store("teacher", key)
        record = store.load()
        if record is None:
            data = dataclasses.replace(self._data, input_range=spec.input_range) if spec.input_range else self._data
            if isinstance(source, keras.Model):
                row = keras_row("teacher", source, data, time.perf_counter() - started)
            else:
                row = file_row("teacher", file, data, time.perf_counter() - started)
            record = {"row": row.to_dict(), "history": {}, "sparsity": {}}
            store.save(record)
        self._note("teacher", record)

    def _make_student(self) -> keras.Model:
        spec = self._recipe.student
        if spec is None:
            if self._given is not None:
                return self._given
            assert self._teacher is not None, "a complete recipe has a student or a teacher"
            if not isinstance(self._teacher.source, keras.Model):
                raise self._recipe.source.error(
                    ("student",), "is missing; a .tflite teacher can teach, but only a Keras model can be compressed."
                )
            return self._teacher.source
        if spec.file is not None and spec.train is None:
            model = Teacher(Path(spec.file)).source
            if not isinstance(model, keras.Model):
                raise self._recipe.source.error(("student", "file"), f"must be a Keras model. Received: {spec.file!r}.")
            self._key = files.content_key(self._key, files.file_key(Path(spec.file)))
            return self._stage("student", self._key, lambda store: (model, {}))
        if spec.train is not None:
            return self._family_model("student", spec, spec.train)
        self._key = files.content_key(self._key, "student", spec.model, dict(spec.arguments))
        return self._build("student", spec)

    def _family_model(self, name: str, spec: ModelSpec, settings: TrainSettings) -> keras.Model:
        """Builds and trains a model on the labels alone."""
        described = [name, spec.model, spec.file, dict(spec.arguments), dataclasses.asdict(settings)]
        key = files.content_key(self._key, described)
        if name == "teacher":
            self._teacher_key = key
        else:
            self._key = key

        def make(store: StageStore) -> tuple[keras.Model, dict]:
            model = self._build(name, spec) if spec.file is None else Teacher(Path(spec.file)).source
            result = self._fit(name, store, model, settings, seed=self._seed(0), teaching=None, callbacks=None)
            return result.model, result.history

        return self._stage(name, key, make)

    def _build(self, name: str, spec: ModelSpec) -> keras.Model:
        keras.utils.set_random_seed(self._recipe.seed)
        try:
            return build(
                str(spec.model),
                input_shape=self._data.input_shape,
                num_classes=self._data.num_classes,
                **spec.arguments,
            )
        except InvalidArgumentError as error:
            raise self._recipe.source.error((name,), f"does not describe a model: {error}") from error

    def _train_required(self, name: str, spec: ModelSpec) -> TrainSettings:
        if spec.train is None:
            raise self._recipe.source.error((name, "train"), f"is missing; a {name} from a family must be trained.")
        return spec.train

    def _check_teaching(self) -> None:
        for index, stage in enumerate(self._recipe.stages):
            if self._teacher is None and (stage.technique == "distill" or stage.teach is not None):
                path = ("stages", index, stage.technique)
                raise self._recipe.source.error(path, "learns from a teacher, and the recipe has none.")

    def _run_stage(self, index: int, spec: StageSpec, technique: Technique, model: keras.Model) -> keras.Model:
        name = f"{index:02d}-{spec.technique}"
        teaching = technique.teaching()
        if spec.teach is not None:
            teaching = SoftTargets(temperature=spec.teach.temperature, weight=spec.teach.weight)
        settings = spec.train
        if settings is None:
            path = ("stages", index - 1, spec.technique, "train")
            raise self._recipe.source.error(path, "is missing; give at least `train: {epochs: 5}`.")
        self._key = files.content_key(
            self._key,
            [name, plain(dataclasses.asdict(technique)), dataclasses.asdict(settings)],
            [repr(teaching), self._teacher_key if teaching is not None else ""],
        )

        def make(store: StageStore) -> tuple[keras.Model, dict]:
            history: dict[str, list[float]] = {}

            def train(model: keras.Model, *, callbacks: Any = None) -> TrainResult:
                result = self._fit(
                    name, store, model, settings, seed=context.seed, teaching=teaching, callbacks=callbacks
                )
                history.update(result.history)
                return result

            context = Context(
                data=self._data,
                settings=settings,
                batch_size=self._recipe.data.batch_size,
                seed=self._seed(index),
                train=train,
            )
            keras.utils.set_random_seed(context.seed)
            return technique.apply(model, context), history

        made = self._stage(name, self._key, make)
        self._holds_masks = self._holds_masks or spec.technique == "prune"
        return made

    def _fit(
        self,
        name: str,
        store: StageStore,
        model: keras.Model,
        settings: TrainSettings,
        *,
        seed: int,
        teaching: Callable[[Any, Any], Any] | None,
        callbacks: Callable[[keras.Model], Sequence[keras.callbacks.Callback]] | None,
    ) -> TrainResult:
        def all_callbacks(replica: keras.Model) -> list[keras.callbacks.Callback]:
            held = [HoldMasks(replica)] if self._holds_masks else []
            return held + (list(callbacks(replica)) if callbacks is not None else [])

        return fit(
            model,
            self._data,
            settings,
            batch_size=self._recipe.data.batch_size,
            seed=seed,
            wrap=None if teaching is None else lambda replica: Distiller(replica, self._teacher, [teaching]),
            callbacks=all_callbacks,
            checkpoint=store.checkpoint,
            key=store.key,
            label=name if self._progress else None,
        )

    def _seed(self, index: int) -> int:
        """The seed of stage `index`; teacher and student have 0. Stages of one run never share an order of samples."""
        return self._recipe.seed * 1000 + index

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
            record = {
                "row": row.to_dict(),
                "history": history,
                "sparsity": layer_sparsity(remove_fake_quantization(model)),
            }
            store.save(record)
        else:
            model = store.load_model()
        self._note(name, record)
        return model

    def _store(self, name: str, key: str) -> StageStore:
        number = "" if name[0].isdigit() else "00-"
        store = StageStore(self._out / "stages" / f"{number}{name}", key)
        store.open(self._overwrite)
        return store

    def _note(self, name: str, record: dict[str, Any]) -> None:
        self._rows.append(Metrics.from_dict(record["row"]))
        if record["history"]:
            self._histories[name] = record["history"]
        if record["sparsity"]:
            self._sparsity[name] = record["sparsity"]

    def _export(self, model: keras.Model) -> dict[str, Path]:
        paths: dict[str, Path] = {}
        for spec in self._recipe.export:
            started = time.perf_counter()
            path = self._out / "export" / f"model_{spec.mode}.tflite"
            exported: ExportResult = export_tflite(
                remove_fake_quantization(model) if spec.mode == "float32" else model,
                path,
                mode=spec.mode,
                io=spec.io if spec.mode == "int8" else "float32",
                calibration=self._data,
                class_names=self._data.class_names,
            )
            row = export_row(f"export-{spec.mode}", exported, model, self._data, time.perf_counter() - started)
            self._rows.append(row)
            described = exported.to_dict()
            self._exports[spec.mode] = {**described, "path": str(path.relative_to(self._out))}
            paths[spec.mode] = path
        return paths

    def _write(self) -> None:
        files.write_text(self._out / "recipe.yaml", self._recipe.to_yaml())
        files.write_json(
            self._out / "metrics.json",
            {
                "recipe": self._recipe.name,
                "rows": [row.to_dict() for row in self._rows],
                "export": self._exports,
                "histories": self._histories,
                "sparsity": self._sparsity,
                "environment": describe_environment(),
            },
        )
