"""Int8 files with some layers in float: made of one calibration, measured, and proven by the gate of every export.

Layers in 16x8 beside others in int8 are not among them, since the converter (TensorFlow 2.21) makes no such file that
runs. Its quantizer has one type of activations for a whole pass, and what it quantizes has no ranges left for a second
one. Given them again, the second pass joins int16 results to int8 operations, which LiteRT refuses
("input1->type != input2->type (INT8 != INT16)", add.cc). Mode "int16x8" is the whole file.

Invariant: a `MixedPrecision` passed the gate: nothing but the named layers computes in float, it ran with every kernel
set of the runtime that has its operations, and it agrees with the Keras model. Left out: which layers, see
`sensitivity.py`.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfcompress import files
from tfcompress.data import Dataset
from tfcompress.errors import ExportError, InvalidArgumentError, ModelError
from tfcompress.export import flatbuffer
from tfcompress.export.audit import FLOAT_TYPES, Audit
from tfcompress.export.converter import shared_converter
from tfcompress.export.gate import Comparison, pass_gate
from tfcompress.export.parity import MAX_SNR_DB, Parity, snr_db
from tfcompress.measure.accuracy import evaluate
from tfcompress.measure.tflite_runner import TFLiteRunner

_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Measured:
    """An int8 file with some layers in float, as the converter made it.

    Args:
        float_layers: Names of the layers in float, the most sensitive first.
        snr_db: Signal-to-noise ratio of its outputs against the float file, in dB.
        top1: Share of samples with the same largest class as the float file; None where the output has no classes.
        content: The file, with float32 inputs and outputs.
    """

    float_layers: tuple[str, ...]
    snr_db: float
    top1: float | None
    content: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class MixedPrecision(Measured):
    """The same, stripped, after it passed the gate.

    Args:
        audit: What it computes; `left_in_float` names the operations in float.
        parity: How it agrees with its Keras model under each kernel set.
        accuracy: Its accuracy on the labelled samples that a budget was for, in [0, 1]; None without one.
        float_accuracy: That of the float file.
    """

    audit: Audit
    parity: Parity
    accuracy: float | None = None
    float_accuracy: float | None = None

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the file."""
        files.write_bytes(Path(path), self.content)
        return Path(path)

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can hold, without the content."""
        figures = {key: getattr(self, key) for key in ("snr_db", "top1", "accuracy", "float_accuracy")}
        return {
            "float_layers": list(self.float_layers),
            "file_bytes": len(self.content),
            **figures,
            "audit": self.audit.to_dict(),
            "parity": self.parity.to_dict(),
        }


class CalibratedFile:
    """A float file with ranges, of which int8 files are made in hundredths of a second.

    Args:
        content: The file that a conversion stopped at.
        nodes: The operations of each Keras layer, by its name.
        inputs: Samples `(samples, ...)` to measure with, in the order of the file's inputs.
        comparison: What a file is compared with in the gate.
    """

    def __init__(
        self,
        content: bytes,
        nodes: Mapping[str, tuple[str, ...]],
        inputs: Sequence[np.ndarray],
        comparison: Comparison,
    ):
        self.nodes = dict(nodes)
        self._content = content
        self._inputs = list(inputs)
        self._comparison = comparison
        self._outputs = _predict(content, self._inputs)

    def in_float_anyway(self, int8: Measured) -> tuple[str, ...]:
        """The layers with an operation that is in float in the file that should have none, in the order of the file."""
        layer_of = {node: layer for layer, nodes in self.nodes.items() for node in nodes}
        model = flatbuffer.parse(int8.content)
        tensors = model.subgraphs[0].tensors
        found = []
        for operator in flatbuffer.listed(model.subgraphs[0].operators):
            result = tensors[operator.outputs[0]]
            if flatbuffer.type_name(result.type) in FLOAT_TYPES:
                name = flatbuffer.op_name(model.operatorCodes[operator.opcodeIndex])
                # What converts to floats only leads to the next operation.
                found.append(None if name == "DEQUANTIZE" else layer_of.get(flatbuffer.tensor_name(result)))
        return tuple(dict.fromkeys(layer for layer in found if layer is not None))

    def with_float(self, layers: Sequence[str]) -> Measured:
        """The int8 file with some layers in float."""
        with tempfile.TemporaryDirectory(prefix="tfcompress-mixed-") as folder:
            path = Path(folder) / "calibrated.tflite"
            path.write_bytes(self._content)
            nodes = [node for layer in layers for node in self.nodes[layer]]
            content = shared_converter().requantize(path, keep_float=nodes)
        outputs = _predict(content, self._inputs)
        return Measured(tuple(layers), _worst_db(self._outputs, outputs), _top1(self._outputs, outputs), content)

    def with_int8(self, layer: str) -> Measured:
        """The float file with one layer in int8."""
        return self.with_float([other for other in self.nodes if other != layer])

    def accuracy(self, labelled: Any, measured: Measured | None = None) -> float:
        """Accuracy of a file, or of the float file, in [0, 1].

        Args:
            labelled: A `Dataset`, whose validation split is used, or arrays `(x, y)` with whole-number labels.
            measured: The file.

        Raises:
            InvalidArgumentError: If `labelled` is neither.
            DataError: If labels are not what the model can answer.
        """
        if isinstance(labelled, tuple) and len(labelled) == 2:
            x, y = (np.asarray(array) for array in labelled)
            labelled = tf.data.Dataset.from_tensor_slices((x.astype(np.float32), y)).batch(_BATCH)
        elif not isinstance(labelled, Dataset):
            raise InvalidArgumentError("labelled", "a Dataset, or arrays `(x, y)` with labels", labelled)
        with tempfile.TemporaryDirectory(prefix="tfcompress-mixed-") as folder:
            path = Path(folder) / "model.tflite"
            path.write_bytes(self._content if measured is None else measured.content)
            return evaluate(path, labelled, split="validation").accuracy

    def proven(self, measured: Measured, **accuracies: float | None) -> MixedPrecision:
        """Takes a file through the gate.

        Raises:
            ExportError: If it does not pass.
        """
        passed = pass_gate(
            measured.content,
            self._comparison,
            name=_called(measured.float_layers),
            mode="int8",
            io="float32",
            audit=True,
            slim=True,
            float_layers=measured.float_layers,
        )
        return MixedPrecision(
            measured.float_layers,
            measured.snr_db,
            measured.top1,
            passed.content,
            passed.audit,
            passed.parity,
            **accuracies,
        )


def _called(float_layers: Collection[str]) -> str:
    return f"The int8 file with {', '.join(float_layers)} in float" if float_layers else "The int8 file"


def _predict(content: bytes, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    try:
        outputs = TFLiteRunner(content).predict(list(inputs))
    except ModelError as error:
        raise ExportError("A file with some layers in float does not run.", [str(error)]) from error
    return outputs if isinstance(outputs, list) else [outputs]


def _worst_db(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float:
    """Power of the float outputs over power of the difference, of the worst output, in dB."""
    pairs = zip(expected, actual, strict=True)
    return min((snr_db(one.astype("float64"), other.astype("float64")) for one, other in pairs), default=MAX_SNR_DB)


def _top1(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float | None:
    if len(expected) != 1 or expected[0].ndim != 2 or expected[0].shape[1] < 2:
        return None
    return float(np.mean(expected[0].argmax(1) == actual[0].argmax(1)))
