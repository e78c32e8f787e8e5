"""Reads the `metrics.json` of a run.

Invariant: what other modules of this folder get has every section, empty where a run had nothing to say. Left out: what
the numbers mean (see `tfcompress.measure.metrics`).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfcompress.errors import DataError

FILE_NAME = "metrics.json"

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Results:
    """The content of `metrics.json`.

    Args:
        recipe: Name of the recipe.
        rows: One mapping for each stage and export, in order; see `tfcompress.measure.Metrics` for the keys.
        export: Mode to `path`, `audit`, `parity`, ... of the exported file.
        histories: Stage to quantity to its value after each epoch.
        sparsity: Stage to layer to the share of zeros in its kernel, in [0, 1].
        layers: Stage to layer to what it holds and computes; see `tfcompress.measure.layer_sizes`.
        environment: Name to version or description.
    """

    recipe: str
    rows: Sequence[Row]
    export: Mapping[str, Mapping[str, Any]]
    histories: Mapping[str, Mapping[str, Sequence[float]]]
    sparsity: Mapping[str, Mapping[str, float]]
    layers: Mapping[str, Mapping[str, Mapping[str, Any]]]
    environment: Mapping[str, Any]


def read_results(run_dir: str | os.PathLike) -> Results:
    """Reads `metrics.json` in `run_dir`.

    Raises:
        DataError: If the file is missing, broken, or has no row.
    """
    path = Path(run_dir) / FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"No results at {os.fspath(path)!r}: {error.strerror}. Give the folder that `tfcompress run` wrote."
        ) from error
    except ValueError as error:
        raise DataError(f"{os.fspath(path)!r} is no JSON: {error}. Run the recipe again.") from error
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and "stage" in row for row in rows):
        raise DataError(f"{os.fspath(path)!r} must hold 'rows', each with a 'stage'. Run the recipe again.")
    return Results(
        recipe=str(content.get("recipe", "")),
        rows=rows,
        export=content.get("export") or {},
        histories=content.get("histories") or {},
        sparsity=content.get("sparsity") or {},
        layers=content.get("layers") or {},
        environment=content.get("environment") or {},
    )


def is_export(row: Row) -> bool:
    """Whether a row is that of an exported file."""
    return str(row["stage"]).startswith("export-")
