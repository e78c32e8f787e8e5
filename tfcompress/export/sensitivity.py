"""Which layers lose most by int8: each one quantized alone, measured on the kernels of the runtime.

The model is converted and calibrated once. Then, for each layer, the converter quantizes that layer only and leaves all
others in float, which takes hundredths of a second, and LiteRT runs the file.

Invariant: every figure is of a file that ran, against the float file of the same conversion; layers have the names they
have in Keras. Left out: a picture (`tfcompress.report.plots.layer_sensitivity`); layers in 16x8 beside others in int8,
which the converter has for whole files only (mode "int16x8"); and models with fake quantization, whose ranges are
theirs.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcompress import files
from tfcompress.data import Dataset
from tfcompress.errors import ExportError, InvalidArgumentError, ModelError
from tfcompress.export import flatbuffer
from tfcompress.export.converter import shared_converter
from tfcompress.export.endpoint import SIGNATURE, Endpoint
from tfcompress.export.layer_names import layer_results
from tfcompress.export.samples import collect, spread
from tfcompress.graph.trace import Trace, trace
from tfcompress.measure.tflite_runner import TFLiteRunner

CALIBRATION_SAMPLES = 500
SAMPLES = 256
# What stands for "no difference at all".
MAX_SNR_DB = 200.0


@dataclasses.dataclass(frozen=True)
class LayerSensitivity:
    """What one layer loses by int8.

    Args:
        layer: Its name in Keras.
        snr_db: Signal-to-noise ratio of the outputs in dB with this layer alone in int8.
        weight_bytes: Bytes of its kernel and bias in float.
        nodes: Its operations in the file.
    """

    layer: str
    snr_db: float
    weight_bytes: int
    nodes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class MixedPrecision:
    """An int8 file with some layers in float.

    Args:
        float_layers: Names of the layers in float, the most sensitive first.
        snr_db: Signal-to-noise ratio of its outputs, in dB.
        top1: Share of samples with the same largest class as the float file; None where the output has no classes.
        content: The file, with float32 inputs and outputs.
    """

    float_layers: tuple[str, ...]
    snr_db: float
    top1: float | None
    content: bytes = dataclasses.field(repr=False)

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the file."""
        files.write_bytes(Path(path), self.content)
        return Path(path)


class Sensitivity:
    """The sensitivities of a model's layers, and files that keep the worst of them in float.

    Args:
        calibrated: The float file with the ranges that calibration showed.
        nodes: The operations of each Keras layer, by its name.
        weight_bytes: Bytes of each layer's weights in float, by its name.
        inputs: Samples `(samples, ...)`, in the order of the file's inputs.

    Attributes:
        layers: One `LayerSensitivity` for each layer with operations in the file, the most sensitive first.
        int8: The file with every layer in int8.
    """

    def __init__(
        self,
        calibrated: bytes,
        nodes: Mapping[str, tuple[str, ...]],
        weight_bytes: Mapping[str, int],
        inputs: Sequence[np.ndarray],
    ):
        self._calibrated = calibrated
        self._inputs = list(inputs)
        self._float_outputs = _predict(calibrated, self._inputs)
        self._nodes = dict(nodes)
        everything = [node for names in nodes.values() for node in names]
        found = []
        for layer, own in nodes.items():
            content = self._requantize([node for node in everything if node not in own])
            snr = _snr_db(self._float_outputs, _predict(content, self._inputs))
            found.append(LayerSensitivity(layer, snr, weight_bytes[layer], own))
        self.layers = tuple(sorted(found, key=lambda layer: layer.snr_db))
        self.int8 = self.with_float(())

    def with_float(self, layers: Sequence[str]) -> MixedPrecision:
        """The int8 file with some layers in float, measured.

        Args:
            layers: Names of Keras layers.

        Raises:
            InvalidArgumentError: If a layer has no operation in the file.
        """
        unknown = [layer for layer in layers if layer not in self._nodes]
        if unknown:
            raise InvalidArgumentError("layers", f"names among {sorted(self._nodes)}", unknown)
        content = self._requantize([node for layer in layers for node in self._nodes[layer]])
        outputs = _predict(content, self._inputs)
        return MixedPrecision(
            tuple(layers), _snr_db(self._float_outputs, outputs), _top1(self._float_outputs, outputs), content
        )

    def choose(self, *, min_snr_db: float | None = None, max_top1_drop: float | None = None) -> MixedPrecision:
        """Keeps layers in float, the most sensitive first, until the file is within a budget.

        Args:
            min_snr_db: The least signal-to-noise ratio of the outputs, in dB.
            max_top1_drop: The largest share of samples whose top class may be another than the float file's, in [0, 1].
                No labels are needed; accuracy drops by less, since not every change is a mistake.

        Returns:
            The first file within the budget; the one with every layer in int8 if that is.

        Raises:
            InvalidArgumentError: If there is not exactly one budget, or it is out of its range.
            ExportError: If no file meets the budget.
        """
        if (min_snr_db is None) == (max_top1_drop is None):
            both = {"min_snr_db": min_snr_db, "max_top1_drop": max_top1_drop}
            raise InvalidArgumentError("choose", "given one of `min_snr_db` and `max_top1_drop`", both)
        if max_top1_drop is not None and not 0 <= max_top1_drop <= 1:
            raise InvalidArgumentError("max_top1_drop", "a share in [0, 1]", max_top1_drop)
        if max_top1_drop is not None and self.int8.top1 is None:
            raise InvalidArgumentError(
                "max_top1_drop", "left out where the output is no (batch, classes)", max_top1_drop
            )
        order = [layer.layer for layer in self.layers]
        for count in range(len(order) + 1):
            mixed = self.int8 if count == 0 else self.with_float(order[:count])
            meets_snr = min_snr_db is not None and mixed.snr_db >= min_snr_db
            meets_top1 = max_top1_drop is not None and mixed.top1 is not None and 1 - mixed.top1 <= max_top1_drop
            if meets_snr or meets_top1:
                return mixed
        raise ExportError(
            f"No file meets the budget, even with every layer in float: {mixed.snr_db:.1f} dB.",
            ["remedy: lower `min_snr_db`; a file without quantization is mode='float32'"],
        )

    def rows(self) -> list[dict[str, Any]]:
        """The table, the most sensitive layer first, as mappings that JSON can hold."""
        return [
            {"layer": layer.layer, "snr_db": layer.snr_db, "weight_bytes": layer.weight_bytes} for layer in self.layers
        ]

    def table(self) -> str:
        """The table as text."""
        width = max([len(layer.layer) for layer in self.layers] + [len("layer")])
        lines = [f"{'layer':<{width}}  SNR alone (dB)  weights (bytes)"]
        lines += [f"{one.layer:<{width}}  {one.snr_db:14.1f}  {one.weight_bytes:15,}" for one in self.layers]
        return "\n".join([*lines, f"{'all in int8':<{width}}  {self.int8.snr_db:14.1f}"])

    def _requantize(self, keep_float: Sequence[str]) -> bytes:
        with tempfile.TemporaryDirectory(prefix="tfcompress-sensitivity-") as folder:
            path = Path(folder) / "calibrated.tflite"
            path.write_bytes(self._calibrated)
            return shared_converter().requantize(path, keep_float=keep_float)


def sensitivity(model: keras.Model, calibration: Any, *, samples: int = SAMPLES) -> Sensitivity:
    """Measures what each layer of a float model loses by int8.

    Args:
        model: A functional or built Sequential model of plain Keras layers.
        calibration: Typical inputs, as `export_tflite` takes them: a `Dataset` (its training split gives the ranges,
            its validation split is measured), batches, or arrays. Up to 500 samples are used.
        samples: How many of them are measured, at least 1.

    Returns:
        The sensitivities; `choose` makes a file of them.

    Raises:
        InvalidArgumentError: If `samples` is below 1.
        ModelError: If the model has no graph, inputs of unknown size, or fake quantization.
        DataError: If calibration data is missing, has another shape, or holds NaN or infinity.
        ExportError: If the converter fails, or a file does not run.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, activation="relu", name="first"),
        ...                           keras.layers.Dense(4, name="last")])
        >>> found = sensitivity(model, np.random.default_rng(0).uniform(size=(50, 8)))
        >>> sorted(layer.layer for layer in found.layers)
        ['first', 'last']
        >>> found.choose(min_snr_db=10.0).float_layers
        ()
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise InvalidArgumentError("samples", "a whole number, at least 1", samples)
    endpoint = Endpoint(model)
    if endpoint.is_fake_quantized:
        raise ModelError(
            f"Model {model.name!r} has fake quantization, and its file is int8 throughout. Measure the float model "
            "that `quantize_aware` or `quantize_post_training` was given."
        )
    real = collect(calibration, endpoint.inputs, max(CALIBRATION_SAMPLES, samples))
    measured = real
    if isinstance(calibration, Dataset):
        measured = collect(calibration, endpoint.inputs, samples, split="validation")
    chosen = spread(len(next(iter(measured.values()))), samples)
    calibrated = _calibrate(endpoint, real)
    order = flatbuffer.input_names(flatbuffer.parse(calibrated)).values()
    traced = trace(model, allow_equal_names=True)
    weight_bytes = {
        call.operation.name: sum(4 * math.prod(weight.shape) for weight in getattr(call.operation, "weights", ()))
        for call in traced.calls
    }
    return Sensitivity(
        calibrated,
        nodes_by_layer(calibrated, traced, endpoint.output_names),
        weight_bytes,
        [measured[name][chosen] for name in order],
    )


def _calibrate(endpoint: Endpoint, real: Mapping[str, np.ndarray]) -> bytes:
    converter = shared_converter()
    # While the worker imports TensorFlow, this process traces the model.
    converter.start()
    with tempfile.TemporaryDirectory(prefix="tfcompress-sensitivity-") as folder:
        endpoint.write_saved_model(Path(folder) / "saved_model")
        chosen = spread(len(next(iter(real.values()))), CALIBRATION_SAMPLES)
        arrays: dict[str, Any] = {f"input:{name}": array[chosen] for name, array in real.items()}
        np.savez(Path(folder) / "calibration.npz", **arrays)
        return converter.convert(
            Path(folder) / "saved_model",
            signature=SIGNATURE,
            mode="int8",
            calibration=Path(folder) / "calibration.npz",
            calibrate_only=True,
        )


def nodes_by_layer(content: bytes, traced: Trace, output_names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The operations of a float file by the Keras layer they come from, in the order of the file.

    An operation that several layers were fused into belongs to the one with most weights. One without a name of its own
    gives an output, and belongs to the layer of that output.

    Args:
        content: The file, with its names.
        traced: The calls of the model it was made of.
        output_names: The names that the file gives to the outputs of the model, in the model's order.
    """
    weights = {
        call.operation.name: sum(math.prod(weight.shape) for weight in getattr(call.operation, "weights", ()))
        for call in traced.calls
    }
    found: dict[str, list[str]] = {}
    for result in layer_results(flatbuffer.parse(content), traced, output_names):
        # What belongs to no layer moves numbers about for the operation before it.
        if result.layers:
            found.setdefault(max(result.layers, key=lambda name: weights[name]), []).append(result.name)
    return {layer: tuple(nodes) for layer, nodes in found.items()}


def _predict(content: bytes, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    try:
        outputs = TFLiteRunner(content).predict(list(inputs))
    except ModelError as error:
        raise ExportError("A file with some layers in float does not run.", [str(error)]) from error
    return outputs if isinstance(outputs, list) else [outputs]


def _snr_db(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float:
    """Power of the float outputs over power of the difference, of the worst output, in dB."""
    worst = MAX_SNR_DB
    for one, other in zip(expected, actual, strict=True):
        signal, noise = float(np.mean(np.square(one, dtype=np.float64))), float(np.mean((one - other) ** 2.0))
        if noise > 0:
            worst = min(worst, 10 * math.log10(signal / noise) if signal > 0 else -MAX_SNR_DB)
    return worst


def _top1(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float | None:
    if len(expected) != 1 or expected[0].ndim != 2 or expected[0].shape[1] < 2:
        return None
    return float(np.mean(expected[0].argmax(1) == actual[0].argmax(1)))
