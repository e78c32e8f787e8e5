"""Recipes: YAML files to frozen dataclasses and back, checked without TensorFlow."""

from tfcompress.recipe.reading import load_recipe, parse_recipe
from tfcompress.recipe.source import Source
from tfcompress.recipe.specs import (
    EXPORT_FORMATS,
    TECHNIQUES,
    AssistantSpec,
    AugmentSpec,
    DataSpec,
    EnsembleSpec,
    ExportSpec,
    ModelSpec,
    Recipe,
    StageSpec,
    build_technique,
    load_technique,
)
from tfcompress.recipe.typed import check_arguments

__all__ = [
    "EXPORT_FORMATS",
    "TECHNIQUES",
    "AssistantSpec",
    "AugmentSpec",
    "DataSpec",
    "EnsembleSpec",
    "ExportSpec",
    "ModelSpec",
    "Recipe",
    "Source",
    "StageSpec",
    "build_technique",
    "check_arguments",
    "load_recipe",
    "load_technique",
    "parse_recipe",
]
