"""Runs a `.tflite` file in LiteRT on NumPy arrays, many samples at a time where the file allows it.

Invariant: each sample's result is that of the file run on this sample alone: state does not go from one sample to the
next, and batches are used only after they gave what single samples give. Integer inputs and outputs are quantized and
dequantized with the file's own scales and zero points. Left out: time (see `latency`) and what is inside the file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tfcompress.errors import DataError, InvalidArgumentError, ModelError

DELEGATES: Mapping[str, OpResolverType] = {
    "default": OpResolverType.AUTO,
    "none": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}

# More samples at once gain nothing and cost memory.
_BATCH = 32


class TFLiteRunner:
    """A loaded `.tflite` file with `predict`; may be called from several threads.

    Args:
        path_or_bytes: The file, or its content.
        num_threads: Threads of the interpreter, at least 1.
        delegate: `"default"` (XNNPACK where it is built in), `"none"` (the optimized kernels without a delegate), or
            `"reference"` (the slow kernels that define what is right).

    Attributes:
        inputs: Details of each input as LiteRT gives them: `name`, `shape`, `dtype`, `quantization`, ...
        outputs: Details of each output, likewise.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        ModelError: If the file is missing, or LiteRT cannot load it.

    Example:
        >>> import tempfile, tensorflow as tf
        >>> double = tf.function(lambda x: 2.0 * x, input_signature=[tf.TensorSpec((1, 3))])
        >>> converter = tf.lite.TFLiteConverter.from_concrete_functions([double.get_concrete_function()], double)
        >>> TFLiteRunner(converter.convert()).predict(np.ones((2, 3), "float32")).tolist()
        [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """

    def __init__(self, path_or_bytes: str | os.PathLike | bytes, *, num_threads: int = 1, delegate: str = "default"):
        if delegate not in DELEGATES:
            raise InvalidArgumentError("delegate", f"one of {', '.join(DELEGATES)}", delegate)
        if not isinstance(num_threads, int) or isinstance(num_threads, bool) or num_threads < 1:
            raise InvalidArgumentError("num_threads", "a whole number, at least 1", num_threads)
        self._name, self._content = _read(path_or_bytes)
        self._num_threads = num_threads
        self._delegate = delegate
        self._lock = threading.Lock()  # An interpreter belongs to one thread at a time.
        try:
            self._interpreter = self._load(None)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"LiteRT cannot load {self._name}: {error}") from error
        self.inputs: tuple[dict[str, Any], ...] = tuple(self._interpreter.get_input_details())
        self.outputs: tuple[dict[str, Any], ...] = tuple(self._interpreter.get_output_details())
        self._batch = int(self.inputs[0]["shape"][0]) if len(self.inputs[0]["shape"]) else 1
        model = schema.Model.GetRootAs(self._content, 0)
        self._keeps_variables = _has_resource_variables(model)
        # LiteRT 2.3 aborts the process on some resized files with variables; so none of several subgraphs is resized.
        self._may_resize = self._batch == 1 and model.SubgraphsLength() == 1 and not self._keeps_variables

    @property
    def content(self) -> bytes:
        """The bytes of the file."""
        return self._content

    @property
    def input_details(self) -> dict[str, Any]:
        """Details of the first input."""
        return self.inputs[0]

    @property
    def output_details(self) -> dict[str, Any]:
        """Details of the first output."""
        return self.outputs[0]

    def predict(self, x: np.ndarray | Sequence[np.ndarray]) -> Any:
        """Runs the file on float samples.

        Args:
            x: Shape `(samples, ...)`, in the units of the Keras model; for several inputs a list, in the file's order.

        Returns:
            Float32 outputs of shape `(samples, ...)`; a list of them where the file has several.

        Raises:
            InvalidArgumentError: If shapes are not those of the file.
            DataError: If a value is not finite, or has no place in an integer input.
            ModelError: If LiteRT fails.
        """
        arrays = self._check(x)
        raw = self.predict_raw([quantize(a, details) for a, details in zip(arrays, self.inputs, strict=True)])
        raw = [raw] if len(self.outputs) == 1 else raw
        outputs = [dequantize(a, details) for a, details in zip(raw, self.outputs, strict=True)]
        return outputs[0] if len(outputs) == 1 else outputs

    def predict_raw(self, x: np.ndarray | Sequence[np.ndarray]) -> Any:
        """Like `predict`, with the numbers that the file itself takes and gives (int8, for instance)."""
        arrays = self._check(x)
        for array, details in zip(arrays, self.inputs, strict=True):
            if array.dtype != details["dtype"]:
                expected = f"of type {np.dtype(details['dtype'])}, as input {details['name']!r} is"
                raise InvalidArgumentError("x", expected, str(array.dtype))
        try:
            with self._lock:
                self._try_batches(arrays)
                outputs = self._run(self._interpreter, self._batch, arrays)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"LiteRT cannot run {self._name}: {error}") from error
        return outputs[0] if len(outputs) == 1 else outputs

    def prepare_run(self) -> Callable[[], None]:
        """Fills the inputs with random values and returns what runs the file once on them, for taking its time.

        Integers cover their whole type where they have a scale, and are 0 where not; floats are in [0, 1).
        """
        rng = np.random.default_rng(0)
        for details in self.inputs:
            dtype = np.dtype(details["dtype"])
            values = rng.random(details["shape"])
            if np.issubdtype(dtype, np.integer):
                limits = np.iinfo(dtype)
                span = limits.max - limits.min if details["quantization"][0] else 0
                values = np.floor(values * span) + (limits.min if span else 0)
            self._interpreter.set_tensor(details["index"], values.astype(dtype))
        return self._interpreter.invoke

    def _check(self, x: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
        arrays = [np.asarray(array) for array in (x if isinstance(x, (list, tuple)) else [x])]
        if len(arrays) != len(self.inputs):
            raise InvalidArgumentError(
                "x", f"{len(self.inputs)} array(s), one for each input", f"{len(arrays)} array(s)"
            )
        for array, details in zip(arrays, self.inputs, strict=True):
            sample = tuple(int(size) for size in details["shape"][1:])
            if array.ndim == 0 or len(array) == 0 or array.shape[1:] != sample or len(array) != len(arrays[0]):
                shape = f"({', '.join(['samples', *map(str, sample)])})"
                raise InvalidArgumentError("x", f"of shape {shape}, with at least one sample", array.shape)
        return arrays

    def _load(self, batch: int | None) -> Interpreter:
        interpreter = Interpreter(
            model_content=self._content,
            num_threads=self._num_threads,
            experimental_op_resolver_type=DELEGATES[self._delegate],
        )
        if batch is not None:
            for details in self.inputs:
                interpreter.resize_tensor_input(details["index"], [batch, *details["shape"][1:]])
        interpreter.allocate_tensors()
        return interpreter

    def _try_batches(self, arrays: Sequence[np.ndarray]) -> None:
        """Changes to batches at the first call that gains from them, if they give the same as single samples."""
        if not self._may_resize or len(arrays[0]) < _BATCH:
            return
        self._may_resize = False
        probe = [array[:_BATCH] for array in arrays]
        try:
            batched = self._load(_BATCH)
            together = self._run(batched, _BATCH, probe)
        except (ValueError, RuntimeError):
            return  # Something in the graph has its batch built in: one sample at a time is what the file is for.
        for at in (0, _BATCH - 1):
            alone = self._run(self._interpreter, 1, [array[at : at + 1] for array in probe])
            if not all(_same(a[0], b[at]) for a, b in zip(alone, together, strict=True)):
                return
        self._interpreter, self._batch = batched, _BATCH

    def _run(self, interpreter: Interpreter, batch: int, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        samples = len(arrays[0])
        collected: list[list[np.ndarray]] = [[] for _ in self.outputs]
        for start in range(0, samples, batch):
            interpreter = self._fresh(interpreter)
            for array, details in zip(arrays, self.inputs, strict=True):
                chunk = array[start : start + batch]
                # The last batch is filled up with its last sample; what comes of that is cut off below.
                filled = np.concatenate([chunk, np.repeat(chunk[-1:], batch - len(chunk), axis=0)])
                interpreter.set_tensor(details["index"], filled)
            interpreter.invoke()
            for parts, details in zip(collected, self.outputs, strict=True):
                result = interpreter.get_tensor(details["index"])
                if result.ndim == 0 or len(result) != batch:
                    raise ValueError(f"output {details['name']!r} has shape {result.shape} for a batch of {batch}")
                parts.append(result)
        return [np.concatenate(parts)[:samples] for parts in collected]

    def _fresh(self, interpreter: Interpreter) -> Interpreter:
        """Forgets the last sample, whose state a recurrent layer keeps in the file's variables."""
        if self._keeps_variables:
            return self._load(None)  # LiteRT resets its variable tensors only, and no resource variables.
        interpreter.reset_all_variables()
        return interpreter


def quantize(x: np.ndarray, details: Mapping[str, Any]) -> np.ndarray:
    """Rounds floats to what an input takes, half away from zero as TFLite's own QUANTIZE, limits included.

    Args:
        x: Floats of any shape.
        details: The input's `dtype` and `quantization` (scale, zero point), as LiteRT gives them.

    Returns:
        The same shape in the input's type.

    Raises:
        DataError: If a value is not finite, or not whole where the input is of integers without a scale.
    """
    dtype = np.dtype(details["dtype"])
    if not np.issubdtype(dtype, np.integer):
        return x.astype(dtype, copy=False)
    if not np.isfinite(x).all():
        raise DataError(f"Input {details['name']!r} takes {dtype}. Received: NaN or infinity.")
    scale, zero_point = details["quantization"]
    limits = np.iinfo(dtype)
    if scale == 0:
        whole = np.rint(x)
        if (whole != x).any() or whole.min() < limits.min or whole.max() > limits.max:
            raise DataError(f"Input {details['name']!r} takes whole numbers of type {dtype}. Received: other values.")
        return whole.astype(dtype)
    # Divided in float32 as TFLite does; rounded in float64, where adding a half is exact.
    ratio = (x.astype(np.float32, copy=False) / np.float32(scale)).astype(np.float64)
    rounded = np.copysign(np.floor(np.abs(ratio) + 0.5), ratio) + zero_point
    return np.clip(rounded, limits.min, limits.max).astype(dtype)


def dequantize(raw: np.ndarray, details: Mapping[str, Any]) -> np.ndarray:
    """Float32 values of what an output gives, with its `quantization` (scale, zero point) as LiteRT gives it."""
    scale, zero_point = details["quantization"]
    if not np.issubdtype(raw.dtype, np.integer) or scale == 0:
        return raw.astype(np.float32)
    return (np.float32(scale) * (raw.astype(np.int64) - zero_point)).astype(np.float32)


def _read(path_or_bytes: str | os.PathLike | bytes) -> tuple[str, bytes]:
    """Name for messages, and content."""
    if isinstance(path_or_bytes, (bytes, bytearray)):
        name, content = f"a model of {len(path_or_bytes)} bytes", bytes(path_or_bytes)
    else:
        name = repr(os.fspath(path_or_bytes))
        try:
            content = Path(path_or_bytes).read_bytes()
        except OSError as error:
            raise ModelError(f"No TFLite file can be read at {name}: {error.strerror}.") from error
    if not content:
        raise ModelError(f"LiteRT cannot load {name}: it is empty.")
    return name, content


def _has_resource_variables(model: Any) -> bool:
    codes = (model.OperatorCodes(index).BuiltinCode() for index in range(model.OperatorCodesLength()))
    return schema.BuiltinOperator.VAR_HANDLE in codes


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    if np.issubdtype(one.dtype, np.integer):
        return bool((np.abs(one.astype(np.int64) - other.astype(np.int64)) <= 1).all())
    return bool(np.allclose(one, other, rtol=1e-3, atol=1e-4 * max(1e-3, float(np.abs(one).max(initial=0)))))
