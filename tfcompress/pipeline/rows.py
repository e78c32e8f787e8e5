"""Measurements: one row for each stage and each exported file, all taken in the same way.

Invariant: accuracy is that of the test split, which nothing else reads; bytes and latency of a Keras stage are those of
its float32 `.tflite`, so that rows can be compared. Left out: how rows are shown (`report/`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcompress.data import Dataset
from tfcompress.export import ExportResult, export_tflite
from tfcompress.files import gzip_size
from tfcompress.graph.macs import count_macs
from tfcompress.measure.accuracy import evaluate
from tfcompress.measure.latency import measure_latency
from tfcompress.measure.layer_sizes import layer_sizes
from tfcompress.measure.metrics import Metrics
from tfcompress.measure.size import layer_sparsity, num_nonzero, num_params
from tfcompress.measure.tflite_runner import TFLiteRunner
from tfcompress.techniques.distill import Ensemble, Teacher
from tfcompress.techniques.quantize.removal import remove_fake_quantization


def keras_row(stage: str, model: keras.Model, data: Dataset, seconds: float) -> Metrics:
    """The row of a Keras model.

    Args:
        stage: Name of the row.
        model: The model; fake quantization counts for its accuracy, and is taken out to measure the rest.
        data: The data whose test split gives the accuracy.
        seconds: What the stage took.
    """
    return Metrics(stage=stage, accuracy=evaluate(model, data).accuracy, seconds=seconds, **_model_figures(model))


def teacher_row(stage: str, teacher: Teacher | Ensemble, path: Path | None, data: Dataset, seconds: float) -> Metrics:
    """The row of a teacher that is a file, as it teaches: on images of its own size and range, with its class map.

    What a `.tflite` file or the graph of a SavedModel does not tell is `None`; so is all but the accuracy of several
    teachers as one, who have no path.
    """
    figures: dict[str, Any] = {}
    source = teacher.source if isinstance(teacher, Teacher) else None
    if isinstance(source, keras.Model):
        figures = _model_figures(source)
    elif isinstance(source, TFLiteRunner) and path is not None:
        figures = _file_figures(path)
    teacher.find_out_outputs(next(iter(data.batches("test", 1)))[0])
    return Metrics(stage=stage, accuracy=evaluate(teacher.logits, data).accuracy, seconds=seconds, **figures)


def layer_figures(model: keras.Model) -> dict[str, Any]:
    """What is measured of each layer of a stage's model: share of zeros, sizes; in a form that JSON can hold."""
    plain = remove_fake_quantization(model)
    return {"sparsity": layer_sparsity(plain), "layers": layer_sizes(plain)}


def export_row(stage: str, exported: ExportResult, model: keras.Model, data: Dataset, seconds: float) -> Metrics:
    """The row of an exported file; its non-zeros are counted in the file, after rounding."""
    plain = remove_fake_quantization(model)
    kernels = [constant for constant in exported.audit.weights if constant.role == "kernel"]
    zeros = sum(round(kernel.zeros * int(np.prod(kernel.shape))) for kernel in kernels)
    return Metrics(
        stage=stage,
        accuracy=evaluate(exported.path, data).accuracy,
        num_params=num_params(plain),
        num_nonzero=num_params(plain) - zeros,
        macs=count_macs(plain),
        seconds=seconds,
        **_file_figures(exported.path),
    )


def _model_figures(model: keras.Model) -> dict[str, Any]:
    plain = remove_fake_quantization(model)
    with tempfile.TemporaryDirectory() as folder:
        # The gate is for what is shipped; here the file is only measured, on random inputs in its size and time.
        path = export_tflite(plain, Path(folder) / "model.tflite", mode="float32", parity_samples=0).path
        return {
            "num_params": num_params(plain),
            "num_nonzero": num_nonzero(plain),
            "macs": count_macs(plain),
            **_file_figures(path),
        }


def _file_figures(path: Path) -> dict[str, Any]:
    latency = measure_latency(path)
    return {
        "file_bytes": path.stat().st_size,
        "gzip_bytes": gzip_size(path),
        "latency_ms_median": latency.median_ms,
        "latency_ms_p90": latency.p90_ms,
    }
