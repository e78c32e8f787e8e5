"""Which layers lose most by int8: each one quantized alone, measured on the kernels of the runtime.

The model is converted and calibrated once. Then, for each layer, the converter quantizes that layer only and leaves all
others in float, which takes hundredths of a second, and LiteRT runs the file.

Invariant: every figure is of a file that ran, against the float file of the same conversion; layers have the names they
have in Keras. Left out: a picture (`tfcompress.report.plots.layer_sensitivity`); how files are made and proven, and why
no layer is in 16x8 (`mixed_precision.py`); and models with fake quantization, whose ranges are theirs.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.progress import track

from tfcompress.data import Dataset
from tfcompress.errors import ExportError, InvalidArgumentError, ModelError
from tfcompress.export import flatbuffer
from tfcompress.export.converter import shared_converter
from tfcompress.export.endpoint import SIGNATURE, Endpoint
from tfcompress.export.gate import Comparison
from tfcompress.export.layer_names import nodes_by_layer
from tfcompress.export.mixed_precision import CalibratedFile, Measured, MixedPrecision
from tfcompress.export.samples import for_ranges_and_figures, spread
from tfcompress.export.tflite import CALIBRATION_SAMPLES, PARITY_SAMPLES
from tfcompress.graph.trace import Trace, trace

SAMPLES = 256
# A drop of exactly the budget meets it, however the shares are rounded.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class LayerSensitivity:
    """What one layer loses by int8.

    Args:
        layer: Its name in Keras.
        snr_db: Signal-to-noise ratio of the outputs in dB with this layer alone in int8.
        top1: Share of samples with the same largest class as in float; None where the output has no classes.
        weight_bytes: Bytes of its kernel and bias in float.
        nodes: Its operations in the file.
    """

    layer: str
    snr_db: float
    top1: float | None
    weight_bytes: int
    nodes: tuple[str, ...]


class Sensitivity:
    """The sensitivities of a model's layers, and files that keep the worst of them in float.

    Args:
        calibrated: The float file with the ranges that calibration showed.
        weight_bytes: Bytes of each layer's weights in float, by its name.
        labelled: A `Dataset` with labels, where there is one.
        progress: Whether to show a bar.

    Attributes:
        layers: One `LayerSensitivity` for each layer with operations in the file, the most sensitive first.
        int8: The file with every layer in int8, measured.
        in_float_anyway: Layers that the converter does not take to int8 throughout, although it is told to. Every other
            file here has them in float, as a whole.
    """

    def __init__(
        self,
        calibrated: CalibratedFile,
        weight_bytes: Mapping[str, int],
        labelled: Dataset | None = None,
        *,
        progress: bool = False,
    ):
        self._calibrated = calibrated
        self._labelled = labelled
        found = []
        nodes = calibrated.nodes
        for layer in track(nodes, "each layer alone", disable=not progress):
            alone = calibrated.with_int8(layer)
            found.append(LayerSensitivity(layer, alone.snr_db, alone.top1, weight_bytes[layer], nodes[layer]))
        self.layers = tuple(sorted(found, key=lambda layer: layer.snr_db))
        self.int8 = calibrated.with_float(())
        self.in_float_anyway = calibrated.in_float_anyway(self.int8)

    def with_float(self, layers: Sequence[str]) -> MixedPrecision:
        """The int8 file with some layers in float.

        Args:
            layers: Names of Keras layers, besides those of `in_float_anyway`.

        Raises:
            InvalidArgumentError: If a layer has no operation in the file.
            ExportError: If the file does not pass the gate.
        """
        unknown = [layer for layer in layers if layer not in self._calibrated.nodes]
        if unknown:
            raise InvalidArgumentError("layers", f"names among {sorted(self._calibrated.nodes)}", unknown)
        return self._calibrated.proven(self._measured(layers))

    def choose(
        self,
        *,
        min_snr_db: float | None = None,
        max_top1_drop: float | None = None,
        max_accuracy_drop: float | None = None,
        labelled: tuple[Any, Any] | Dataset | None = None,
        progress: bool = False,
    ) -> MixedPrecision:
        """Keeps layers in float, the most sensitive first, until the file is within a budget.

        Layers of `in_float_anyway` are in float from the start.

        Args:
            min_snr_db: The least signal-to-noise ratio of the outputs, in dB.
            max_top1_drop: The largest share of samples whose top class may be another than the float file's, in [0, 1].
                No labels are needed; accuracy drops by less, since not every change is a mistake.
            max_accuracy_drop: How much lower the accuracy may be than the float file's, in [0, 1]: 0.001 is 0.1 points.
            labelled: What accuracy is measured on: `(x, y)` with whole-number labels `y` of shape `(samples,)`, or a
                `Dataset`, whose validation split is taken; by default the `Dataset` that calibration came from.
            progress: Whether to show a bar.

        Returns:
            The first file within the budget, be it the one with every layer in int8. It passed the gate.

        Raises:
            InvalidArgumentError: If there is not exactly one budget, it is out of its range, or labels are missing.
            ExportError: If no file meets the budget, or the first that does fails the gate.
        """
        budgets = {"min_snr_db": min_snr_db, "max_top1_drop": max_top1_drop, "max_accuracy_drop": max_accuracy_drop}
        _check_budgets(budgets, self.int8)
        float_accuracy = None
        if max_accuracy_drop is not None:
            labelled = self._labelled if labelled is None else labelled
            if labelled is None:
                allowed = "`(x, y)` or a Dataset with labels, since `max_accuracy_drop` needs them"
                raise InvalidArgumentError("labelled", allowed, labelled)
            float_accuracy = self._calibrated.accuracy(labelled)
        order = [layer.layer for layer in self.layers if layer.layer not in self.in_float_anyway]
        for count in track(range(len(order) + 1), "layers in float", disable=not progress, transient=True):
            measured = self._measured(order[:count])
            accuracy = drop = None
            if float_accuracy is not None:
                accuracy = self._calibrated.accuracy(labelled, measured)
                drop = float_accuracy - accuracy
            if _meets(budgets, measured, drop):
                return self._calibrated.proven(measured, accuracy=accuracy, float_accuracy=float_accuracy)
        raise ExportError(
            f"No file meets the budget, even with every layer in float: {measured.snr_db:.1f} dB.",
            ["remedy: a wider budget; a file without quantization is mode='float32'"],
        )

    def _measured(self, layers: Sequence[str]) -> Measured:
        layers = tuple(dict.fromkeys((*self.in_float_anyway, *layers)))
        return self._calibrated.with_float(layers) if layers else self.int8

    def rows(self) -> list[dict[str, Any]]:
        """The table, the most sensitive layer first, as mappings that JSON can hold."""
        columns = ("layer", "snr_db", "top1", "weight_bytes")
        return [{column: getattr(layer, column) for column in columns} for layer in self.layers]

    def table(self) -> str:
        """The table as text."""
        width = max([len(layer.layer) for layer in self.layers] + [len("all in int8")])
        lines = [f"{'layer':<{width}}  SNR alone (dB)  same top class  weights (bytes)"]
        for one in self.layers:
            lines.append(f"{one.layer:<{width}}  {one.snr_db:14.1f}  {_share(one.top1)}  {one.weight_bytes:15,}")
        return "\n".join([*lines, f"{'all in int8':<{width}}  {self.int8.snr_db:14.1f}  {_share(self.int8.top1)}"])


def _share(top1: float | None) -> str:
    return f"{'-' if top1 is None else f'{top1:.3f}':>14}"


def _check_budgets(budgets: Mapping[str, float | None], int8: Measured) -> None:
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        names = [f"`{name}`" for name in budgets]
        raise InvalidArgumentError("choose", f"given one of {', '.join(names[:-1])} and {names[-1]}", dict(budgets))
    ((name, value),) = given.items()
    if name == "min_snr_db":
        return
    if not 0 <= value <= 1:
        raise InvalidArgumentError(name, "a share in [0, 1]", value)
    if int8.top1 is None:
        raise InvalidArgumentError(name, "left out where the output is no (batch, classes)", value)


def _meets(budgets: Mapping[str, float | None], measured: Measured, drop: float | None) -> bool:
    least, changed, lost = budgets["min_snr_db"], budgets["max_top1_drop"], budgets["max_accuracy_drop"]
    if least is not None:
        return measured.snr_db >= least
    if changed is not None:
        return measured.top1 is not None and 1 - measured.top1 <= changed + _ROUNDING
    return lost is not None and drop is not None and drop <= lost + _ROUNDING


def sensitivity(model: keras.Model, calibration: Any, *, samples: int = SAMPLES, progress: bool = False) -> Sensitivity:
    """Measures what each layer of a float model loses by int8.

    Args:
        model: A functional or built Sequential model of plain Keras layers.
        calibration: Typical inputs, as `export_tflite` takes them: a `Dataset` (its training split gives the ranges,
            its validation split is measured), batches, or arrays. Up to 500 samples are used.
        samples: How many of them are measured, at least 1.
        progress: Whether to show a bar.

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
    endpoint = Endpoint(model)
    if endpoint.is_fake_quantized:
        raise ModelError(
            f"Model {model.name!r} has fake quantization, and its file is int8 throughout. Measure the float model "
            "that `quantize_aware` or `quantize_post_training` was given."
        )
    real, measured = for_ranges_and_figures(calibration, endpoint.inputs, CALIBRATION_SAMPLES, samples)
    content = _calibrate(endpoint, real)
    traced = trace(model, allow_equal_names=True)
    order = flatbuffer.input_names(flatbuffer.parse(content)).values()
    calibrated = CalibratedFile(
        content,
        nodes_by_layer(content, traced, endpoint.output_names),
        [measured[name] for name in order],
        Comparison(endpoint, "ptq", calibration, real, PARITY_SAMPLES),
    )
    labelled = calibration if isinstance(calibration, Dataset) else None
    return Sensitivity(calibrated, _weight_bytes(traced), labelled, progress=progress)


def _weight_bytes(traced: Trace) -> dict[str, int]:
    return {
        call.operation.name: sum(4 * math.prod(weight.shape) for weight in getattr(call.operation, "weights", ()))
        for call in traced.calls
    }


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
