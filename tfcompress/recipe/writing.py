"""Writes a recipe back as YAML.

Invariant: what is written reads back as an equal recipe. Left out: the comments and the layout of the original text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from tfcompress.recipe.specs import AssistantSpec, ExportSpec, ModelSpec, Recipe, StageSpec

_OF_FILES = ("file", "input_range", "resize", "class_map")


class _Dumper(yaml.SafeDumper):
    """The safe dumper without anchors: equal settings are written out, not referred to."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML text, one line for each innermost mapping where it fits."""
    keys = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe) if field.name != "source"}
    return yaml.dump(_plain(keys), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120)


def _plain(value: Any) -> Any:
    if isinstance(value, StageSpec):
        # Both are written even where they are null: leaving `train` out would mean the recipe's defaults.
        return {value.technique: {**_plain(value.arguments), **_fields(value, "train", "teach")}}
    if isinstance(value, AssistantSpec):
        return {"model": value.model, **_plain(value.arguments), **_fields(value, "train", "teach")}
    if isinstance(value, ExportSpec):
        return {value.format: _fields(value, "mode", "io")}
    if isinstance(value, ModelSpec):
        origin = {"model": value.model} if value.file is None else _fields(value, *_OF_FILES)
        return {**origin, **_plain(value.arguments), **_fields(value, "train")}
    if dataclasses.is_dataclass(value):
        return _fields(value, *(field.name for field in dataclasses.fields(value)))
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _fields(spec: Any, *names: str) -> dict[str, Any]:
    return {name: _plain(getattr(spec, name)) for name in names}
