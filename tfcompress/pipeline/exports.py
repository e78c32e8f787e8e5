"""The files of a run: each exported from the model of the last stage, described, and measured.

Invariant: a run's folder may move, so what is in it is named from there. Left out: exporting itself (`export/`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import keras

from tfcompress.data import Dataset
from tfcompress.export import export_tflite
from tfcompress.export.endpoint import Endpoint
from tfcompress.export.modes import MODES
from tfcompress.measure.metrics import Metrics
from tfcompress.pipeline.companions import write_companions
from tfcompress.pipeline.rows import export_row
from tfcompress.recipe.specs import ExportSpec
from tfcompress.techniques.quantize.removal import remove_fake_quantization


class ExportedFile(NamedTuple):
    """A file that a run has written.

    Args:
        path: The file.
        row: Its measurements.
        described: What `metrics.json` says of it.
    """

    path: Path
    row: Metrics
    described: dict[str, Any]


def export_file(spec: ExportSpec, model: keras.Model, data: Dataset, out: Path) -> ExportedFile:
    """Writes one file of a recipe, with what stands beside it.

    Args:
        spec: What the recipe says of it.
        model: The model of the last stage.
        data: The data that calibrates and measures it.
        out: The run's folder.

    Raises:
        ExportError: If it does not pass the gate, or its target cannot run it.
    """
    started = time.perf_counter()
    path = out / "export" / f"model_{spec.mode}.tflite"
    bits = Endpoint(model).activation_bits
    exported = export_tflite(
        model if MODES[spec.mode].takes_ranges == bits else remove_fake_quantization(model),
        path,
        mode=spec.mode,
        io=spec.io,
        calibration=data,
        class_names=data.class_names,
        simplify=spec.simplify,
    )
    write_companions(exported, spec.target, data)
    row = export_row(f"export-{spec.mode}", exported, model, data, time.perf_counter() - started)
    here = {"path": path, "labels_path": exported.labels_path}
    named = {key: str(value.relative_to(out)) for key, value in here.items() if value is not None}
    return ExportedFile(path, row, {**exported.to_dict(), **named})
