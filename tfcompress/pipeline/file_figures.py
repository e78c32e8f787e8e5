"""Figures of a model's int8 file, and channel pruning down to a budget of them.

Techniques know no export, so that what measures a file is given to them here: to the recipe's stages by `Context`, and
to `tfcompress.prune_channels` by its wrapper.

Invariant: a figure is of a file that was written and, for its time, run. Left out: how a budget is met, which is
`techniques/channels/measured.py`, and the gate's comparison with the Keras model: right after channels are removed it
would judge a model that nobody ships.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import keras

from tfcompress import files
from tfcompress.errors import DataError
from tfcompress.export import export_tflite
from tfcompress.measure.latency import measure_latency
from tfcompress.techniques import channels
from tfcompress.techniques.channels.budget import ChannelBudget, Measure


def file_figure(model: keras.Model, figure: str, calibration: Any) -> float:
    """Exports a model to int8 and measures the file.

    Args:
        model: A model that `export_tflite` takes.
        figure: `"tflite_kb"` for its size (1 kB is 1000 B), `"latency_ms"` for the median time of one inference.
        calibration: As `export_tflite` takes it.

    Raises:
        DataError, ModelError, ExportError: As `export_tflite`.
    """
    with tempfile.TemporaryDirectory(prefix="tfcompress-figure-") as folder:
        exported = export_tflite(model, Path(folder) / "model.tflite", calibration=calibration, parity_samples=0)
        return exported.file_bytes / 1000 if figure == "tflite_kb" else measure_latency(exported.path).median_ms


class RecordedFigures:
    """`file_figure`, with a record of what it gave, from which a stage that is run again is answered.

    Times differ from run to run: without it, a stage that was interrupted in its training would choose other channels
    than those that its checkpoint belongs to.

    Args:
        calibration: As `export_tflite` takes it.
        path: The JSON file of the record.
    """

    def __init__(self, calibration: Any, path: Path):
        self._calibration = calibration
        self._path = path
        self._recorded: list[dict[str, float]] = json.loads(path.read_text()) if path.exists() else []
        self._asked = 0

    def __call__(self, model: keras.Model, figure: str) -> float:
        if self._asked == len(self._recorded):
            self._recorded.append({figure: file_figure(model, figure, self._calibration)})
            files.write_json(self._path, self._recorded)
        self._asked += 1
        return self._recorded[self._asked - 1][figure]


@functools.wraps(channels.prune_channels)
def prune_channels(
    model: keras.Model,
    *,
    macs: float | None = None,
    params: float | None = None,
    tflite_kb: float | None = None,
    latency_ms: float | None = None,
    data: Any = None,
    measure: Measure | None = None,
    **arguments: Any,
) -> keras.Model:
    budget = ChannelBudget(macs=macs, params=params, tflite_kb=tflite_kb, latency_ms=latency_ms)
    if budget.is_measured and measure is None:
        if data is None:
            raise DataError(
                f"`{budget.name}` is measured on an int8 file, whose ranges come from data. Pass `data`, 100 to 500 "
                "typical samples at least, or a `measure` of your own, which may export in a mode that needs none."
            )
        calibration = data[0] if isinstance(data, tuple) else data
        measure = functools.partial(file_figure, figure=budget.name, calibration=calibration)
    given: dict[str, Any] = {budget.name: budget.value, **arguments}
    return channels.prune_channels(model, data=data, measure=measure, **given)
