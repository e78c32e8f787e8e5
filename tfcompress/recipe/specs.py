"""What a recipe says, as frozen dataclasses: data, teacher, student, stages and exports.

Invariant: a `Recipe` is valid in everything that can be known without TensorFlow. What a technique or a model family
takes is checked by `build_technique` and `check_arguments`, with the same errors, once their modules are imported.
Left out: reading and writing YAML.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from tfcompress.errors import InvalidArgumentError
from tfcompress.recipe.source import KeyPath, Source
from tfcompress.recipe.typed import check_arguments, named
from tfcompress.teach_settings import TeachSettings
from tfcompress.train_settings import TrainSettings

# What can stand in `stages:`, as "module:class"; the module is imported only when a recipe is run.
TECHNIQUES: Mapping[str, str] = {
    "cluster": "tfcompress.techniques.cluster.stage:Cluster",
    "distill": "tfcompress.techniques.distill.stage:Distill",
    "factorize": "tfcompress.techniques.factorize.stage:Factorize",
    "learn_channel_sparsity": "tfcompress.techniques.channels.sparsity_stage:LearnChannelSparsity",
    "prune": "tfcompress.techniques.prune:Prune",
    "prune_channels": "tfcompress.techniques.channels.stage:PruneChannels",
    "quantize": "tfcompress.techniques.quantize.stage:Quantize",
    "quantize_post_training": "tfcompress.techniques.quantize.post_training:QuantizePostTraining",
    "remove_blocks": "tfcompress.techniques.channels.block_stage:RemoveBlocks",
    "tfmot_cluster": "tfcompress.techniques.tfmot.stages:TfmotCluster",
    "tfmot_prune": "tfcompress.techniques.tfmot.stages:TfmotPrune",
    "tfmot_quantize": "tfcompress.techniques.tfmot.stages:TfmotQuantize",
}

EXPORT_FORMATS = ("tflite",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """Augmentation of the training images.

    Args:
        flip: Whether to mirror images left to right at random.
        shift: Largest random shift in pixels, at least 0.
        crop: Pixels of padding on each side before a random crop back to the image's size, at least 0.
        views: How many changed pictures there are of each image, at least 1; None makes new ones in each epoch.
        seed: Seed of the views.
    """

    flip: bool = False
    shift: int = 0
    crop: int = 0
    views: int | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("shift", "crop"):
            if getattr(self, name) < 0:
                raise InvalidArgumentError(f"AugmentSpec.{name}", "at least 0 pixels", getattr(self, name))
        if self.views is not None and self.views < 1:
            raise InvalidArgumentError("AugmentSpec.views", "at least 1, or null", self.views)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The data that a recipe trains and measures on.

    Args:
        name: `digits`, `folder`, or any image classification set of TFDS. None only in a recipe for `compress`, which
            gets its data from its caller.
        data_dir: Folder of prepared TFDS data; None is TFDS's own default.
        download: Whether a set that is not there may be fetched from the network.
        batch_size: Samples in a training batch, over all devices, at least 1.
        input_range: Lowest and highest pixel value that the model sees.
        augment: Augmentation of the training images, or None.
        validation_fraction: Share of the training samples kept for validation where the set has no such split, in
            (0, 1).
        limit_train: Use only the first so many training samples, at least 1; None uses all.
        folder: For `name: folder`, the folder with one folder of images for each class.
        image_size: Height and width in pixels that images are resized to; None leaves them, which a folder's may not.
        unlabelled: Training samples without labels, which only a student under a teacher sees: the share of the
            training samples whose labels are left out, in (0, 1); a split of a TFDS set by its name; for `name:
            folder`, a folder of images. None has none.
    """

    name: str | None = None
    data_dir: str | None = None
    download: bool = True
    batch_size: int = 64
    input_range: tuple[float, float] = (0.0, 1.0)
    augment: AugmentSpec | None = None
    validation_fraction: float = 0.1
    limit_train: int | None = None
    folder: str | None = None
    image_size: tuple[int, int] | None = None
    unlabelled: float | str | None = None

    def __post_init__(self):
        if self.batch_size < 1:
            raise InvalidArgumentError("DataSpec.batch_size", "at least 1", self.batch_size)
        _require_range("DataSpec.input_range", self.input_range)
        if not 0 < self.validation_fraction < 1:
            raise InvalidArgumentError("DataSpec.validation_fraction", "in (0, 1)", self.validation_fraction)
        if self.limit_train is not None and self.limit_train < 1:
            raise InvalidArgumentError("DataSpec.limit_train", "at least 1, or null", self.limit_train)
        if self.image_size is not None and min(self.image_size) < 1:
            raise InvalidArgumentError("DataSpec.image_size", "a height and a width of at least 1", self.image_size)
        if isinstance(self.unlabelled, str) and self.name == "digits":
            raise InvalidArgumentError("DataSpec.unlabelled", "a number in (0, 1) for `name: digits`", self.unlabelled)
        if self.unlabelled is not None and not isinstance(self.unlabelled, str) and not 0 < self.unlabelled < 1:
            raise InvalidArgumentError(
                "DataSpec.unlabelled", "a number in (0, 1), a name of a split or a folder, or null", self.unlabelled
            )
        if self.name == "folder":
            for name in ("folder", "image_size"):
                if getattr(self, name) is None:
                    raise InvalidArgumentError(f"DataSpec.{name}", "set where `name: folder`", None)
        elif self.folder is not None:
            raise InvalidArgumentError("DataSpec.folder", "left out unless `name: folder`", self.folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A teacher or a student: a family by name with its arguments, or a model file.

    Args:
        model: Name of a family of `tfcompress.models`, such as `cnn`.
        file: Path of a `.keras`, `.h5` or `.tflite` file, or of the folder of a SavedModel, instead of `model`.
        input_range: For a file, the pixel range that it was trained on; None is the range of the data.
        resize: For a teacher file, the height and width in pixels that it takes; None is the size of the data.
        class_map: For a teacher file, the index of its output for each class of the data; None is their own order.
        train: How to train it before the stages, or None: as it comes.
        arguments: The family's own arguments, such as `width`.
    """

    model: str | None = None
    file: str | None = None
    input_range: tuple[float, float] | None = None
    resize: tuple[int, int] | None = None
    class_map: tuple[int, ...] | None = None
    train: TrainSettings | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict, metadata={"rest": True})

    def __post_init__(self):
        if (self.model is None) == (self.file is None):
            both = {"model": self.model, "file": self.file}
            raise InvalidArgumentError("ModelSpec", "either `model: <family>` or `file: <path>`", both)
        if self.file is not None and self.arguments:
            name = next(iter(self.arguments))
            raise InvalidArgumentError(f"ModelSpec.{name}", "left out for `file: <path>`", self.arguments[name])
        for name in ("input_range", "resize", "class_map"):
            if getattr(self, name) is not None and self.file is None:
                raise InvalidArgumentError(f"ModelSpec.{name}", "left out unless `file: <path>`", getattr(self, name))
        if self.input_range is not None:
            _require_range("ModelSpec.input_range", self.input_range)
        if self.resize is not None and min(self.resize) < 1:
            raise InvalidArgumentError("ModelSpec.resize", "a height and a width of at least 1", self.resize)
        if self.class_map is not None and (
            not self.class_map or min(self.class_map) < 0 or len(set(self.class_map)) < len(self.class_map)
        ):
            raise InvalidArgumentError(
                "ModelSpec.class_map", "a list of different indices, each at least 0", self.class_map
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleSpec:
    """Several teachers that speak as one, under `teacher:`.

    Args:
        teachers: The teachers, at least two.
        weights: How much each counts, above 0; what matters is their ratio. None for all alike.
        combine: What is averaged: `probabilities`, `logits`, or for each sample the probabilities of those whose first
            choice is the label, `correct`.
    """

    teachers: tuple[ModelSpec, ...]
    weights: tuple[float, ...] | None = None
    combine: Literal["probabilities", "logits", "correct"] = "probabilities"

    def __post_init__(self):
        if len(self.teachers) < 2:
            raise InvalidArgumentError("EnsembleSpec.teachers", "a list of at least two", len(self.teachers))
        if self.weights is not None and (
            len(self.weights) != len(self.teachers) or not all(0 < weight < math.inf for weight in self.weights)
        ):
            raise InvalidArgumentError(
                "EnsembleSpec.weights", "null, or a number above 0 for each of `teachers`", self.weights
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AssistantSpec:
    """One entry of `assistants:`, a network between teacher and student that learns from the one before it.

    Args:
        model: Name of a family of `tfcompress.models`, such as `cnn`.
        train: How it trains, or None: as the recipe's `train` says.
        teach: How the one before teaches it.
        arguments: The family's own arguments, such as `width`.
    """

    model: str
    train: TrainSettings | None = None
    teach: TeachSettings = dataclasses.field(default_factory=TeachSettings)
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict, metadata={"rest": True})


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One entry of `stages:`.

    Args:
        technique: A key of `TECHNIQUES`.
        train: How the stage trains, or None: it doesn't.
        teach: How the teacher teaches while the stage trains, or None: it doesn't.
        arguments: The technique's own keys, for `build_technique`.
    """

    technique: str
    train: TrainSettings | None = None
    teach: TeachSettings | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict, metadata={"rest": True})

    @classmethod
    def from_recipe(cls, value: Any, path: KeyPath, source: Source) -> StageSpec:
        """Builds the stage from `{technique: {keys}}`, or from the technique's name alone."""
        name, keys = named(value, TECHNIQUES, path, source)
        return check_arguments(cls, keys, (*path, name), source, given={"technique": name})

    def __post_init__(self):
        if self.technique not in TECHNIQUES:
            raise InvalidArgumentError("StageSpec.technique", f"one of {', '.join(TECHNIQUES)}", self.technique)
        if self.teach is not None and self.train is None:
            raise InvalidArgumentError("StageSpec.teach", "left out where the stage does not train", self.teach)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """One entry of `export:`.

    Args:
        format: `tflite`.
        mode: What the file computes with, a mode of `export_tflite`.
        io: Type of the inputs and outputs of a file of integers; None, by default, for the mode's own. A file of floats
            has float32 ones whatever is asked.
        target: What to write a folder for besides: `android`, `microcontroller` or `edgetpu`; or None.
        simplify: Whether to simplify the model first.
    """

    format: str = "tflite"
    mode: Literal["float32", "float16", "dynamic", "int8", "int8_float_io", "int16x8", "int4"] = "int8"
    io: Literal["int8", "int16", "float32"] | None = None
    target: Literal["android", "microcontroller", "edgetpu"] | None = None
    simplify: bool = True

    @classmethod
    def from_recipe(cls, value: Any, path: KeyPath, source: Source) -> ExportSpec:
        """Builds the export from `{format: {keys}}`, or from the format's name alone."""
        name, keys = named(value, EXPORT_FORMATS, path, source)
        return check_arguments(cls, keys, (*path, name), source, given={"format": name})

    def __post_init__(self):
        if self.format not in EXPORT_FORMATS:
            raise InvalidArgumentError("ExportSpec.format", f"one of {', '.join(EXPORT_FORMATS)}", self.format)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe, resolved: every default and override is in its place.

    Args:
        name: What the run is called; letters, digits, `.`, `_` and `-`.
        seed: What all random numbers follow from, at least 0.
        data: The data.
        train: Keys that every `train:` of the recipe starts from. A stage, or a teacher from a family, that has no
            `train:` takes them where they name `epochs`.
        teacher: The teacher, several that speak as one, or None.
        assistants: Networks between teacher and student, each of which learns from the one before it; the last one is
            the teacher of the stages.
        student: The model to compress, or None, which compresses the teacher itself.
        stages: The techniques, in their order.
        export: The files to write.
        source: Where the values come from, for errors; two recipes that differ only in this are equal.
    """

    name: str = "recipe"
    seed: int = 0
    data: DataSpec = dataclasses.field(default_factory=DataSpec)
    train: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    teacher: EnsembleSpec | ModelSpec | None = None
    assistants: tuple[AssistantSpec, ...] = ()
    student: ModelSpec | None = None
    stages: tuple[StageSpec, ...] = ()
    export: tuple[ExportSpec, ...] = ()
    source: Source = dataclasses.field(default_factory=Source, compare=False, repr=False)

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", self.name):
            raise InvalidArgumentError("Recipe.name", "a file name of letters, digits, '.', '_' and '-'", self.name)
        if not 0 <= self.seed < 2**31:
            raise InvalidArgumentError("Recipe.seed", "in [0, 2147483647]", self.seed)
        modes = [(export.format, export.mode) for export in self.export]
        if len(set(modes)) < len(modes):
            raise InvalidArgumentError("Recipe.export", "a list with each format and mode once", modes)

    def to_yaml(self) -> str:
        """The resolved recipe as YAML text, which reads back as an equal recipe."""
        from tfcompress.recipe.writing import recipe_to_yaml

        return recipe_to_yaml(self)

    def require_complete(self) -> None:
        """Checks that the recipe names all that a run needs by itself: data, a model, and a teacher where one teaches.

        A recipe for `compress` may leave these out, since its caller brings the model and the data.

        Raises:
            RecipeError: If something is missing.
        """
        if self.data.name is None:
            raise self.source.error(("data", "name"), "is missing; it must be digits, folder or a name of TFDS.")
        if self.student is None and self.teacher is None:
            raise self.source.error(("student",), "is missing; give `student: {model: cnn}` or a `teacher`.")
        if self.teacher is None and self.assistants:
            raise self.source.error(
                ("assistants",), "learn from a teacher; give `teacher: {model: cnn, train: {...}}`."
            )
        if self.teacher is None:
            for index, stage in enumerate(self.stages):
                if stage.technique == "distill" or stage.teach is not None:
                    path = stage_path(self, index)
                    raise self.source.error(path, "learns from a teacher; give `teacher: {model: cnn, train: {...}}`.")


def stage_path(recipe: Recipe, index: int) -> KeyPath:
    """Where stage `index` stands in its recipe: `("stages", 1, "prune")`."""
    return ("stages", index, recipe.stages[index].technique)


def load_technique(name: str) -> type:
    """The technique's class, importing its module, and with it TensorFlow.

    Raises:
        RecipeError: If no technique has that name.
    """
    module, _, attribute = TECHNIQUES[named(name, TECHNIQUES, ("stages",), Source())[0]].partition(":")
    return getattr(importlib.import_module(module), attribute)


def build_technique(recipe: Recipe, index: int) -> Any:
    """The technique of stage `index` with its arguments checked.

    Args:
        recipe: The recipe.
        index: The stage's index.

    Returns:
        An instance of the technique's frozen dataclass.

    Raises:
        RecipeError: If an argument is unknown, missing, of the wrong type or out of range.
    """
    stage = recipe.stages[index]
    technique = load_technique(stage.technique)
    return check_arguments(technique, stage.arguments, stage_path(recipe, index), recipe.source)


def _require_range(name: str, bounds: tuple[float, float]) -> None:
    if not bounds[0] < bounds[1]:
        raise InvalidArgumentError(name, "two numbers, the lower one first", bounds)
