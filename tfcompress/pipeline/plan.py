"""What a run starts from, checked: its techniques, and teacher and student as they are before the first training.

Invariant: whatever can be known to be wrong with a recipe, its model files and its data without training is an error
here, which names the recipe's key. Left out: training (`execute.py`), and what a recipe alone tells (`recipe/`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from tfcompress.bridge.load import load
from tfcompress.data import Dataset
from tfcompress.errors import InvalidArgumentError, ModelError, TFCompressError
from tfcompress.measure.tflite_runner import TFLiteRunner
from tfcompress.models import FAMILIES
from tfcompress.recipe import EnsembleSpec, ModelSpec, Recipe, build_technique, check_arguments
from tfcompress.recipe.source import KeyPath
from tfcompress.recipe.specs import AssistantSpec, StageSpec, stage_path
from tfcompress.teach_settings import TeachSettings
from tfcompress.techniques.base import Technique
from tfcompress.techniques.distill import Ensemble, Teacher
from tfcompress.techniques.distill.by_name import teaching
from tfcompress.techniques.distill.features.comparison import Comparison, tap_teacher
from tfcompress.techniques.distill.saved_model import SavedModel
from tfcompress.train_settings import TrainSettings
from tfcompress.training.fit import check_batch_size, check_steps_per_execution


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run starts from.

    Args:
        techniques: The technique of each stage.
        teacher: The teacher, or several, not trained yet where the recipe trains them; `None` if there is none.
        assistants: The networks between teacher and student, not trained yet.
        student: The student, not trained yet where the recipe trains it; `None` if the teacher is what is compressed.
    """

    techniques: tuple[Technique, ...]
    teacher: Teacher | Ensemble | None
    assistants: tuple[keras.Model, ...]
    student: keras.Model | None


def plan_run(recipe: Recipe, data: Dataset, given: keras.Model | None = None) -> Plan:
    """Builds and reads all that a run starts from.

    Args:
        recipe: The recipe.
        data: Its data, or the caller's.
        given: The caller's model, which takes the place of the recipe's teacher.

    Raises:
        RecipeError: If a key is missing, unknown or out of range, or does not fit the models or the data.
        ModelError: If the caller's model has no graph, or does not fit the data.
        InvalidArgumentError: If the caller's model is no Keras model.
    """
    techniques = tuple(build_technique(recipe, index) for index in range(len(recipe.stages)))
    teacher = _teacher(recipe, data) if given is None else _given_teacher(given, data)
    student = _student(recipe, data)
    assistants = _assistants(recipe, data, teacher, student)
    if student is not None:
        compressed = student
    elif isinstance(teacher, Teacher) and isinstance(teacher.source, keras.Model):
        compressed = teacher.source
    else:
        kind = "a .tflite teacher"
        if isinstance(teacher, Ensemble):
            kind = "an ensemble"
        elif teacher is not None and isinstance(teacher.source, SavedModel):
            kind = "a SavedModel without layers"
        raise recipe.source.error(
            ("student",), f"is missing; {kind} can teach, but only a Keras model can be compressed."
        )
    if student is None and given is None:
        _check_takes_data(recipe, data)
    quantized = [index for index, technique in enumerate(techniques) if technique.makes_integers]
    if len(quantized) > 1:
        path = stage_path(recipe, quantized[1])
        raise recipe.source.error(path, "must be the only stage of its kind; the model is quantization-aware already.")
    last = Teacher(assistants[-1]) if assistants else teacher
    if data.unlabelled is not None and not (assistants or any(map(stage_teaching, recipe.stages, techniques))):
        raise recipe.source.error(
            ("stages",),
            "learn from no teacher, and nothing else sees samples without labels. Give a stage `teach: {}`, or leave "
            "out `data.unlabelled`.",
        )
    for index in range(len(techniques)):
        _check_stage(recipe, index, techniques[: index + 1], last, compressed, data)
    return Plan(techniques, teacher, assistants, student)


def stage_settings(stage: StageSpec, technique: Technique) -> TrainSettings | None:
    """How a stage trains; one whose technique doesn't is the same under all settings."""
    return stage.train if technique.trains else TrainSettings(epochs=1)


def stage_teaching(stage: StageSpec, technique: Technique) -> TeachSettings | None:
    """How a stage is taught; `None` if it trains on labels alone."""
    return technique.teaching() if stage.teach is None else stage.teach


def _given_teacher(model: keras.Model, data: Dataset) -> Teacher:
    if not isinstance(model, keras.Model):
        raise InvalidArgumentError("model", "a Keras model", model)
    if not getattr(model, "inputs", None):
        raise ModelError(
            f"Model {model.name!r} has no graph. Pass a functional model, or a Sequential one that starts with "
            "`keras.Input`."
        )
    misfit = _misfit(model, data)
    if misfit is not None:
        raise ModelError(f"Model {model.name!r} must be {misfit}")
    return Teacher(model)


def _check_takes_data(recipe: Recipe, data: Dataset) -> None:
    """Raises a `RecipeError` if the teacher, which is what is compressed, does not see the data as it is."""
    spec = recipe.teacher if isinstance(recipe.teacher, ModelSpec) else None
    for name, instead in (("input_range", "set `data.input_range`"), ("resize", "set `data.image_size`")):
        own = None if spec is None else getattr(spec, name)
        of_data = data.input_range if name == "input_range" else data.input_shape[:2]
        if own not in (None, of_data):
            raise recipe.source.error(
                ("teacher", name), f"must be left out where the teacher itself is compressed; {instead} to it instead."
            )
    if spec is not None and spec.class_map is not None:
        raise recipe.source.error(("teacher", "class_map"), "must be left out where the teacher itself is compressed.")


def _teacher(recipe: Recipe, data: Dataset) -> Teacher | Ensemble | None:
    spec = recipe.teacher
    if spec is None:
        return None
    if isinstance(spec, ModelSpec):
        return _one_teacher(("teacher",), spec, recipe, data)
    members = [
        _one_teacher(("teacher", "teachers", number), member, recipe, data, number)
        for number, member in enumerate(spec.teachers)
    ]
    return together(spec, members)


def together(spec: EnsembleSpec, members: Sequence[Teacher | Ensemble]) -> Ensemble:
    """The teachers of an ensemble, as one."""
    return Ensemble(list(members), weights=spec.weights and list(spec.weights), combine=spec.combine)


def _one_teacher(path: KeyPath, spec: ModelSpec, recipe: Recipe, data: Dataset, number: int = 0) -> Teacher:
    if spec.file is None:
        if spec.train is None:
            raise recipe.source.error((*path, "train"), "is missing; a teacher from a family must be trained.")
        return Teacher(_build(path, spec, recipe, data, number))
    if spec.train is not None:
        raise recipe.source.error((*path, "train"), "must be left out: a teacher file is trained.")
    try:
        teacher = Teacher(
            Path(spec.file),
            input_range=spec.input_range,
            data_range=None if spec.input_range is None else data.input_range,
            resize=spec.resize,
            class_map=spec.class_map,
        )
    except ModelError as error:
        raise recipe.source.error((*path, "file"), f"cannot be read. {error}") from error
    except InvalidArgumentError as error:
        raise recipe.source.error(
            (*path, error.name), f"must be {error.expected}. Received: {error.received!r}."
        ) from error
    _check_teacher_file(path, recipe, spec, teacher, data)
    return teacher


def _assistants(
    recipe: Recipe, data: Dataset, teacher: Teacher | Ensemble | None, student: keras.Model | None
) -> tuple[keras.Model, ...]:
    if not recipe.assistants:
        return ()
    if teacher is None:
        raise recipe.source.error(("assistants",), "learn from a teacher, and the recipe has none.")
    if student is None:
        raise recipe.source.error(("student",), "is missing; assistants teach a smaller one, `student: {model: cnn}`.")
    models: list[keras.Model] = []
    for index, spec in enumerate(recipe.assistants):
        path = ("assistants", index)
        if spec.train is None:
            raise recipe.source.error((*path, "train"), "is missing; an assistant must be trained.")
        model = _build(path, spec, recipe, data)
        try:
            _check_teaching(spec.teach, Teacher(models[-1]) if models else teacher, model, data)
        except TFCompressError as error:
            raise recipe.source.error((*path, "teach"), f"cannot be applied. {error}") from error
        models.append(model)
    return tuple(models)


def _check_teacher_file(path: KeyPath, recipe: Recipe, spec: ModelSpec, teacher: Teacher, data: Dataset) -> None:
    if spec.resize is not None and len(data.input_shape) != 3:
        raise recipe.source.error(
            (*path, "resize"), f"must be left out: samples of shape {data.input_shape} are no images."
        )
    if spec.class_map is not None and len(spec.class_map) != data.num_classes:
        raise recipe.source.error(
            (*path, "class_map"),
            f"must be a list of {data.num_classes} indices, one for each class of the data. Received: "
            f"{len(spec.class_map)}.",
        )
    _check_file(path, recipe, spec, teacher.source, data)


def _student(recipe: Recipe, data: Dataset) -> keras.Model | None:
    spec = recipe.student
    if spec is None:
        return None
    if spec.file is None:
        return _build(("student",), spec, recipe, data)
    if spec.input_range is not None:
        raise recipe.source.error(
            ("student", "input_range"), "must be left out: a student has the range of the data, `data.input_range`."
        )
    for name in ("resize", "class_map"):
        if getattr(spec, name) is not None:
            raise recipe.source.error(("student", name), "must be left out: a student sees the data as it is.")
    path = Path(spec.file)
    if path.suffix == ".tflite":
        raise recipe.source.error(("student", "file"), f"must be a Keras model file. Received: {spec.file!r}.")
    try:
        model = load(path)
    except ModelError as error:
        raise recipe.source.error(("student", "file"), f"cannot be read. {error}") from error
    _check_file(("student",), recipe, spec, model, data)
    return model


def _build(
    role: KeyPath, spec: ModelSpec | AssistantSpec, recipe: Recipe, data: Dataset, number: int = 0
) -> keras.Model:
    """A network of a family; those with another number have other weights."""
    source = recipe.source
    if spec.model is None or spec.model not in FAMILIES:
        raise source.error((*role, "model"), f"must be one of {', '.join(FAMILIES)}. Received: {spec.model!r}.")
    family = FAMILIES[spec.model]
    shapes = {"input_shape": data.input_shape, "num_classes": data.num_classes}
    arguments = check_arguments(family, spec.arguments, role, source, given=shapes)
    # Alone decides the first weights: they don't depend on what was built before.
    keras.utils.set_random_seed(recipe.seed + number)
    try:
        return family(**arguments)
    except InvalidArgumentError as error:
        name = error.name.rpartition(".")[2]
        path = (*role, name) if name in spec.arguments else role
        raise source.error(path, f"does not describe a model: {error}") from error


def _check_file(
    path: KeyPath, recipe: Recipe, spec: ModelSpec, source: keras.Model | TFLiteRunner | SavedModel, data: Dataset
) -> None:
    """Raises a `RecipeError` if a model file does not fit the data, as the keys beside it change it."""
    misfit = _misfit(source, data, spec)
    if misfit is not None:
        raise recipe.source.error((*path, "file"), f"must be {misfit}")


def _misfit(
    source: keras.Model | TFLiteRunner | SavedModel, data: Dataset, spec: ModelSpec | None = None
) -> str | None:
    """What a model must be to fit the data, and what it is instead; `None` if it fits."""
    inputs, outputs = _shapes(source)
    resize, class_map = (None, None) if spec is None else (spec.resize, spec.class_map)
    sample = data.input_shape if resize is None else (*resize, *data.input_shape[2:])
    # Which of more classes are chosen, the teacher has checked.
    classes = data.num_classes if class_map is None else None
    found = (*inputs[0][1:], *outputs[0][1:]) if len(inputs) == len(outputs) == 1 else ()
    wanted = (*sample, classes)
    if len(found) == len(wanted) and all(
        None in pair or pair[0] == pair[1] for pair in zip(found, wanted, strict=True)
    ):
        return None
    hint = ""
    if spec is not None and resize is None and len(inputs) == 1 and len(inputs[0]) == len(sample) + 1 == 4:
        hint = " A teacher that takes images of another size has `resize: [height, width]` beside it."
    return (
        f"a model from one input {(None, *sample)} to one output {(None, classes)}, as the data has "
        f"them. Received: a model from {inputs} to {outputs}.{hint}"
    )


def _shapes(source: keras.Model | TFLiteRunner | SavedModel) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The shapes of inputs and outputs, with the batch."""
    if isinstance(source, TFLiteRunner):
        return (
            [tuple(map(int, tensor["shape"])) for tensor in source.inputs],
            [tuple(map(int, tensor["shape"])) for tensor in source.outputs],
        )
    if isinstance(source, SavedModel):
        return [tuple(spec.shape) for spec in source.inputs.values()], [tuple(source.output.shape)]
    return [tuple(t.shape) for t in source.inputs or ()], [tuple(t.shape) for t in source.outputs or ()]


def _check_stage(
    recipe: Recipe,
    index: int,
    techniques: tuple[Technique, ...],
    teacher: Teacher | Ensemble | None,
    model: keras.Model,
    data: Dataset,
) -> None:
    """Checks stage `index`, the last one of `techniques`."""
    stage, technique = recipe.stages[index], techniques[-1]
    path = ("stages", index, stage.technique)
    train = stage_settings(stage, technique)
    if train is None:
        raise recipe.source.error((*path, "train"), "is missing; give at least `train: {epochs: 5}`.")
    if teacher is None and (technique.needs_teacher or stage.teach is not None):
        raise recipe.source.error(path, "learns from a teacher, and the recipe has none.")
    if stage.teach is not None and not technique.can_be_taught:
        in_tf_keras = "TFMOT trains in tf_keras, where our teachers, of Keras 3, don't teach."
        reason = in_tf_keras if technique.trains else "there is no training that a teacher could help."
        raise recipe.source.error((*path, "teach"), f"must be left out: {reason}")
    if stage.teach is not None and technique.teaching() is not None:
        raise recipe.source.error(
            (*path, "teach"), f"must be left out: `{stage.technique}` teaches by itself. Write its keys beside `train`."
        )
    try:
        technique.check_after(techniques[:-1])
        technique.check_settings(train)
        taught = stage_teaching(stage, technique)
        lessons, batch_size = data if taught is None else data.taught, recipe.data.batch_size
        steps = lessons.steps_per_epoch(batch_size)
        check_steps_per_execution(train, steps)
        check_batch_size(train, lessons.sizes["train"], batch_size)
        technique.check(model, train.epochs * steps)
        if taught is not None and teacher is not None:
            _check_teaching(taught, teacher, model if index == 0 else None, data)
    except TFCompressError as error:
        raise recipe.source.error(path, f"cannot be applied. {error}") from error


def _check_teaching(
    taught: TeachSettings, teacher: Teacher | Ensemble, student: keras.Model | None, data: Dataset
) -> None:
    """Raises what is wrong with layers or pictures; the student's layers are known before the first stage only."""
    if taught.cutmix is not None and len(data.input_shape) != 3:
        raise InvalidArgumentError("cutmix", "left out, for samples are no images", data.input_shape)
    pairs = teaching(taught, seed=0).pairs
    network = getattr(teacher, "source", teacher)
    if student is not None:
        Comparison(pairs, student, network).build_from_graphs()
    elif pairs:
        tap_teacher(pairs, network)
