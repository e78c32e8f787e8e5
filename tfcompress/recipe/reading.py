"""Reads a recipe: YAML text to a resolved `Recipe`.

Invariant: a recipe that is returned has its defaults and overrides in place, so that equal recipes do equal work. Left
out: what needs TensorFlow to be known, such as the keys of a technique.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfcompress.errors import RecipeError
from tfcompress.recipe.source import read_source
from tfcompress.recipe.specs import Recipe
from tfcompress.recipe.typed import check_arguments
from tfcompress.train_settings import TrainSettings


def load_recipe(path: str | os.PathLike, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and checks the recipe file at `path`.

    Args:
        path: A YAML file.
        overrides: Strings `key.path=value` as of `--set`, applied in their order.

    Returns:
        The recipe; its name is the file's where it doesn't give one.

    Raises:
        RecipeError: If the file cannot be read, or anything in it or in an override is not as it must be.
    """
    file = pathlib.Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RecipeError(f"Cannot read the recipe {str(path)!r}: {reason}. Give the path of a YAML file.") from error
    name = re.sub(r"[^A-Za-z0-9._-]", "-", file.stem).lstrip(".-") or "recipe"
    return parse_recipe(text, overrides, name=name, source_name=str(path))


def parse_recipe(
    text: str, overrides: Sequence[str] = (), *, name: str = "recipe", source_name: str = "recipe"
) -> Recipe:
    """Reads and checks a recipe from YAML text.

    Args:
        text: The YAML text.
        overrides: Strings `key.path=value` as of `--set`, applied in their order.
        name: The recipe's name where the text doesn't give one.
        source_name: What errors call the text.

    Raises:
        RecipeError: If anything in the text or in an override is not as it must be.

    Example:
        >>> recipe = parse_recipe("stages: [{quantize: {train: {epochs: 2}}}]", ["stages.quantize.train.epochs=3"])
        >>> recipe.stages[0].train.epochs
        3
    """
    source = read_source(text, source_name, overrides)
    values = {"name": name, **source.values}
    defaults = values.get("train", {})
    if defaults is None or not isinstance(defaults, Mapping):
        raise source.error(("train",), f"must be a mapping of keys to values. Received: {defaults!r}.")
    if defaults:
        check_arguments(TrainSettings, {"epochs": 1, **defaults}, ("train",), source)
    if isinstance(values.get("student"), Mapping):
        values["student"] = _with_train(values["student"], defaults, False)
    values["teacher"] = _teacher_with_train(values.get("teacher"), defaults)
    if isinstance(values.get("assistants"), list):
        values["assistants"] = [
            _with_train(keys, defaults, True) if isinstance(keys, Mapping) else keys for keys in values["assistants"]
        ]
    if isinstance(values.get("stages"), list):
        values["stages"] = [_stage_with_train(stage, defaults) for stage in values["stages"]]
    for key in ("assistants", "stages", "export"):
        values[key] = [] if values.get(key) is None else values[key]
    return check_arguments(Recipe, values, (), source, given={"source": source})


def _with_train(keys: Mapping[str, Any], defaults: Mapping[str, Any], inherits: bool) -> dict[str, Any]:
    """The keys with `train` filled up from `defaults`, or taken from them where `inherits` and they name `epochs`."""
    train = keys.get("train", {} if inherits and "epochs" in defaults else None)
    return {**keys, "train": {**defaults, **train} if isinstance(train, Mapping) else train}


def _teacher_with_train(teacher: Any, defaults: Mapping[str, Any]) -> Any:
    if not isinstance(teacher, Mapping):
        return teacher
    if isinstance(teacher.get("teachers"), list):
        return {**teacher, "teachers": [_teacher_with_train(member, defaults) for member in teacher["teachers"]]}
    return _with_train(teacher, defaults, teacher.get("file") is None)


def _stage_with_train(stage: Any, defaults: Mapping[str, Any]) -> Any:
    if not isinstance(stage, Mapping):
        return stage
    return {
        name: _with_train(keys, defaults, True) if isinstance(keys, Mapping) else keys for name, keys in stage.items()
    }
