"""Where a file leaves its Keras model: each layer's output against the file's tensor, in the order of the graph.

A layer is found in the file by the names that the converter gives to results. Where layers were fused, the result is
that of the last of them, and the others are reported as fused. A name may hold less than was fused. So each match is
tried on the float32 file of the same model too, and reported only if it holds there; with fake quantization, whose
float32 file rounds as well, the names alone decide. There a layer's output is the one after its fake quantization.

Invariant: a figure is of the tensor that holds the layer's output, or the row says why there is none. Left out: layers
inside of layers; and what one layer alone costs, with all before it exact, which is `sensitivity`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tfcompress.errors import ExportError, InvalidArgumentError
from tfcompress.export import flatbuffer
from tfcompress.export.converter import shared_converter
from tfcompress.export.endpoint import Endpoint, model_in_float32
from tfcompress.export.layer_names import Result, layer_results, rounded
from tfcompress.export.modes import MODES
from tfcompress.export.parity import MAX_SNR_DB, decibels
from tfcompress.export.recurrent import Prepared, prepare_recurrent
from tfcompress.export.samples import for_ranges_and_figures
from tfcompress.export.tflite import CALIBRATION_SAMPLES, converted, kind_of
from tfcompress.graph.trace import Ref, Trace, trace
from tfcompress.layers import FakeQuantize, LeftInFloat
from tfcompress.measure.tflite_runner import dequantize, quantize

if TYPE_CHECKING:
    import rich.table

SAMPLES = 32
# Below this a layer counts as gone wrong: noise a tenth of the signal.
SPOILED_DB = 10.0
# The least that a float32 file must give for a match: a wrong tensor gives less than 10 dB, a right one 60 or more.
_SAME_DB = 30.0
_BATCH = 8


@dataclasses.dataclass(frozen=True)
class LayerDrift:
    """One layer's output against the file's tensor.

    Args:
        layer: Its name in Keras.
        snr_db: Power of the layer's output over power of the difference, in dB, at most 200; None where not compared.
        channel_snr_db: The same of the median channel. Far below `snr_db`, it means that few channels set the range
            and the others are rounded away.
        tensor: Name of the file's tensor, as the converter calls it.
        dtype: Its type.
        fused_into: The layer whose tensor holds this one's result too.
        note: Why there is no figure, or empty.
    """

    layer: str
    snr_db: float | None = None
    channel_snr_db: float | None = None
    tensor: str | None = None
    dtype: str | None = None
    fused_into: str | None = None
    note: str = ""

    @property
    def worst_db(self) -> float:
        """The lower of both ratios; `MAX_SNR_DB` where not compared."""
        return min(MAX_SNR_DB if value is None else value for value in (self.snr_db, self.channel_snr_db))


@dataclasses.dataclass(frozen=True)
class Drift:
    """How a file leaves its Keras model, layer by layer.

    Args:
        mode: A key of `MODES`.
        samples: How many samples were compared.
        layers: One entry for each layer, in the order of the graph.
    """

    mode: str
    samples: int
    layers: tuple[LayerDrift, ...]

    @property
    def compared(self) -> tuple[LayerDrift, ...]:
        """The layers with a figure, in the order of the graph."""
        return tuple(layer for layer in self.layers if layer.snr_db is not None)

    @property
    def by_snr(self) -> tuple[LayerDrift, ...]:
        """The layers with a figure, the worst first."""
        return tuple(sorted(self.compared, key=lambda layer: layer.worst_db))

    def first_below(self, snr_db: float = SPOILED_DB) -> LayerDrift | None:
        """The first layer in the graph with a ratio (its own, or of its median channel) below so many dB, if any."""
        return next((layer for layer in self.compared if layer.worst_db < snr_db), None)

    def rows(self) -> list[dict[str, Any]]:
        """The layers in the order of the graph, as mappings that JSON can hold."""
        return [dataclasses.asdict(layer) for layer in self.layers]

    def table(self) -> rich.table.Table:
        """The table for a terminal, in the order of the graph; layers below 10 dB stand out."""
        import rich.box
        import rich.table
        import rich.text

        table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        table.add_column("layer")
        table.add_column("SNR (dB)", justify="right")
        table.add_column("median channel", justify="right")
        table.add_column("type")
        table.add_column("not compared")
        for layer in self.layers:
            figures = ["-" if value is None else f"{value:.1f}" for value in (layer.snr_db, layer.channel_snr_db)]
            # Text, not markup: a name may hold square brackets.
            texts = map(rich.text.Text, (layer.layer, *figures, layer.dtype or "-", layer.note))
            table.add_row(*texts, style="bold red" if layer.worst_db < SPOILED_DB else None)
        return table


def layer_drift(model: keras.Model, calibration: Any, *, mode: str = "int8", samples: int = SAMPLES) -> Drift:
    """Compares each layer of a model with its tensor in the file that a mode gives.

    The model is converted as `export_tflite` does it, without the gate, and run without a delegate. Use it where an
    export fails its comparison, to see where the file goes wrong first.

    Args:
        model: A functional or built Sequential model, with or without fake quantization (compared as it rounds).
        calibration: Typical inputs, as `export_tflite` takes them: a `Dataset` (its training split gives the ranges,
            its validation split is compared), batches, or arrays.
        mode: As in `export_tflite`.
        samples: How many samples are compared, at least 1.

    Returns:
        One figure for each layer that has a tensor of its own, and the reason for each other one.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        DataError: If the data is missing, has another shape, or holds NaN or infinity.
        ModelError: If the model has no graph, inputs of unknown size, or fake quantization in a mode of floats.
        ExportError: If the converter fails, or the file does not run.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, name="first"),
        ...                           keras.layers.ReLU(name="relu"), keras.layers.Dense(4, name="last")])
        >>> found = layer_drift(model, np.random.default_rng(0).uniform(size=(50, 8)))
        >>> [(layer.layer, layer.fused_into) for layer in found.layers]
        [('first', 'relu'), ('relu', None), ('last', None)]
        >>> found.first_below(10.0) is None
        True
    """
    if mode not in MODES:
        raise InvalidArgumentError("mode", f"one of {', '.join(MODES)}", mode)
    endpoint = Endpoint(model)
    kind_of(endpoint, mode, calibration)
    real, inputs = for_ranges_and_figures(calibration, endpoint.inputs, CALIBRATION_SAMPLES, samples)
    prepared = Prepared(model) if endpoint.is_fake_quantized else prepare_recurrent(model, mode)
    ranges = real if MODES[mode].needs_calibration and not endpoint.is_fake_quantized else None
    rows = _compare(converted(endpoint, prepared, mode, samples=ranges), endpoint, inputs)
    if not endpoint.is_fake_quantized and mode != "float32":
        exact = _compare(converted(endpoint, prepared, "float32"), endpoint, inputs)
        rows = [_confirmed(row, other) for row, other in zip(rows, exact, strict=True)]
    return Drift(mode, len(next(iter(inputs.values()))), tuple(rows))


def _confirmed(row: LayerDrift, exact: LayerDrift) -> LayerDrift:
    """The row, without its figures where the float32 file does not hold the layer in the same place."""
    if row.snr_db is None or (exact.snr_db is not None and exact.snr_db >= _SAME_DB):
        return row
    note = "not told apart: the float32 file has something else there, see mode='float32'"
    return LayerDrift(row.layer, note=note)


def _compare(content: bytes, endpoint: Endpoint, inputs: Mapping[str, np.ndarray]) -> list[LayerDrift]:
    """One row for each layer, in the order of the graph."""
    traced = trace(endpoint.model, allow_equal_names=True)
    matches = _matches(flatbuffer.parse(content), traced, endpoint.output_names)
    file = _File(content, inputs)
    noise: dict[str, _Noise] = {}
    with model_in_float32(endpoint.model):
        for start in range(0, file.samples, _BATCH):
            at = range(start, min(start + _BATCH, file.samples))
            wanted = {name: match for name, match in matches.items() if isinstance(match, Result)}
            tensors = file.run(at, {match.index for match in wanted.values()})
            for name, expected in _outputs(traced, endpoint, [inputs[s.name][at] for s in endpoint.inputs], wanted):
                actual = tensors[wanted[name].index]
                if expected is None or np.squeeze(actual[0]).shape != np.squeeze(expected[0]).shape:
                    matches[name] = LayerDrift(name, note="several results, or one of another shape in the file")
                    continue
                noise.setdefault(name, _Noise()).add(expected, actual.reshape(expected.shape))
    rows = []
    for name, match in matches.items():
        if isinstance(match, Result):
            dtype = np.dtype(file.details[match.index]["dtype"]).name
            match = LayerDrift(name, *noise[name].ratios(), tensor=match.name, dtype=dtype)
        rows.append(match)
    return rows


def _matches(file: Any, traced: Trace, output_names: tuple[str, ...]) -> dict[str, Result | LayerDrift]:
    """The result that holds each layer's output, or the row that says why there is none."""
    results = layer_results(file, traced, output_names)
    no_rows = (keras.layers.InputLayer, FakeQuantize, LeftInFloat)
    calls = [call.operation for call in traced.calls if not isinstance(call.operation, no_rows)]
    uses = Counter(operation.name for operation in calls)
    found: dict[str, Result | LayerDrift] = {}
    for name in uses:
        last = next((result for result in reversed(results) if name in result.layers), None)
        if uses[name] > 1:
            found[name] = LayerDrift(name, note=f"used {uses[name]} times")
        elif last is None:
            found[name] = LayerDrift(name, note="no operation with its name")
        elif last.layers[-1] != name:
            found[name] = LayerDrift(name, fused_into=last.layers[-1], note=f"fused into {last.layers[-1]!r}")
        elif last.is_foreign:
            found[name] = LayerDrift(name, note="fused with an operation that is in no layer")
        else:
            found[name] = last
    return found


def _outputs(
    traced: Trace, endpoint: Endpoint, arrays: list[np.ndarray], wanted: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray | None]]:
    """The output of each wanted layer `(samples, ...)`, as the graph runs; None of one with several results."""
    refs = keras.tree.flatten(traced.inputs)
    values = {ref: keras.ops.convert_to_tensor(array) for ref, array in zip(refs, arrays, strict=True)}

    names = {index: call.operation.name for index, call in enumerate(traced.calls)}
    layer_at = {rounded(traced, index): name for index, name in names.items() if name in wanted}

    for index, call in enumerate(traced.calls):
        if Ref(index) in values:
            continue
        args, kwargs = call.arguments(values.__getitem__)
        # Not a model of these outputs: calling layers on symbolic tensors would leave nodes in the user's layers.
        results = keras.tree.flatten(call.operation(*args, **kwargs))
        values |= {Ref(index, position): result for position, result in enumerate(results)}
        if index in layer_at:
            yield layer_at[index], results[0].numpy() if len(results) == 1 else None


class _File:
    """A file whose tensors can be read after each run."""

    def __init__(self, content: bytes, inputs: Mapping[str, np.ndarray]):
        resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        # First in the converter's process: a crash harms nobody there.
        shared_converter().invoke(content, resolver.name)
        try:
            self._interpreter = Interpreter(
                model_content=content, experimental_op_resolver_type=resolver, experimental_preserve_all_tensors=True
            )
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ExportError("The file does not run with all of its tensors kept.", [str(error)]) from error
        self.details = {details["index"]: details for details in self._interpreter.get_tensor_details()}
        names = flatbuffer.input_names(flatbuffer.parse(content))
        self._inputs = {index: inputs[name] for index, name in names.items()}
        self.samples = len(next(iter(inputs.values())))

    def run(self, at: range, wanted: set[int]) -> dict[int, np.ndarray]:
        """The values `(samples, ...)` of some tensors, by their index, for the samples at `at`."""
        found: dict[int, list[np.ndarray]] = {index: [] for index in wanted}
        for sample in at:
            self._interpreter.reset_all_variables()
            for index, array in self._inputs.items():
                self._interpreter.set_tensor(index, quantize(array[sample : sample + 1], self.details[index]))
            self._interpreter.invoke()
            for index, parts in found.items():
                parts.append(dequantize(self._interpreter.get_tensor(index), self.details[index]))
        return {index: np.stack(parts) for index, parts in found.items()}


class _Noise:
    """Power of outputs and of their differences, by channel (the last axis)."""

    def __init__(self) -> None:
        self._signal: Any = 0.0
        self._noise: Any = 0.0

    def add(self, expected: np.ndarray, actual: np.ndarray) -> None:
        expected, actual = np.float64(expected), np.float64(actual)
        axes = tuple(range(max(1, expected.ndim - 1)))
        self._signal = self._signal + np.sum(expected**2, axis=axes)
        self._noise = self._noise + np.sum((expected - actual) ** 2, axis=axes)

    def ratios(self) -> tuple[float, float]:
        """Signal over noise in dB: of all values, and of the median channel of those that are not zero throughout."""
        signal, noise = np.atleast_1d(self._signal), np.atleast_1d(self._noise)
        channels = [decibels(one, other) for one, other in zip(signal, noise, strict=True) if one > 0]
        whole = decibels(signal.sum(), noise.sum())
        return whole, float(np.median(channels)) if channels else whole
