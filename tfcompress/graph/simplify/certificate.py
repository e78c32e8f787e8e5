"""What was done to a model, and how closely the result agrees with it: on random inputs, and on the user's.

Invariant: both models compute in float32, whatever their layers' precision, so that a difference is that of the
rewriting, and keep the states that they had; differences are relative to the largest output. Left out: training, in
which a simplified model differs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.data import Dataset
from tfcompress.errors import DataError, InvalidArgumentError, ModelError
from tfcompress.graph.precision import computing_in_float32
from tfcompress.graph.random_inputs import LARGE_OPEN_SIZE, OPEN_SIZE, random_inputs
from tfcompress.graph.recurrent_states import without_states
from tfcompress.graph.simplify.rewriting import Step
from tfcompress.graph.trace import trace

# Float32 rounding through hundreds of layers, a share of the largest output.
TOLERANCE = 1e-4
_RANDOM_SAMPLES = 4
_SAMPLES = 256
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What `simplify` did.

    Args:
        model: Name of the model.
        steps: What was done to each layer, in order.
        random_difference: Largest difference of an output on random inputs, as a share of the largest output.
        data_difference: The same on the user's data; None without.
        tolerance: What a difference may be.
        num_params: Parameters before and after.
        macs: Multiply-adds for one sample before and after; None where an input size is not known.
        note: Why nothing was done, where that has a reason.
    """

    model: str
    steps: tuple[Step, ...]
    random_difference: float
    data_difference: float | None
    tolerance: float
    num_params: tuple[int, int]
    macs: tuple[int, int] | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can hold."""
        return {**dataclasses.asdict(self), "num_params": list(self.num_params), "macs": self.macs and list(self.macs)}

    def table(self) -> str:
        """A line for each step, then the differences and the sizes."""
        names = max([5, *(len(step.layer) for step in self.steps)])
        kinds = max([4, *(len(step.kind) for step in self.steps)])
        lines = [f"{step.layer:<{names}}  {step.kind:<{kinds}}  {step.what}" for step in self.steps]
        lines = [f"{'layer':<{names}}  {'kind':<{kinds}}  what was done", *lines] if lines else ["nothing to simplify"]
        data = "" if self.data_difference is None else f", {self.data_difference:.1e} on the data"
        lines.append(
            f"max relative difference {self.random_difference:.1e} on random inputs{data}; allowed {self.tolerance:.0e}"
        )
        sizes = [("parameters", self.num_params)] + ([("MACs", self.macs)] if self.macs else [])
        lines += [f"{name}: {before:,} before, {after:,} after" for name, (before, after) in sizes]
        return "\n".join([*lines, *([self.note] if self.note else [])])

    def __str__(self) -> str:
        return self.table()


def random_difference(model: keras.Model, other: keras.Model) -> float:
    """How far the outputs of two models are apart on random inputs, as a share of the largest output.

    Raises:
        ModelError: If the model fails on random inputs.
    """
    traced = trace(model, allow_equal_names=True)
    failure: Exception | None = None
    found: float | None = None
    with computing_in_float32(_of_half_precision(model, other)):
        # Some networks make too little of a small input, or take the root of a negative number.
        for open_size, signed in itertools.product((OPEN_SIZE, LARGE_OPEN_SIZE), (True, False)):
            flat = random_inputs(traced, _RANDOM_SAMPLES, open_size=open_size, signed=signed)
            inputs = keras.tree.pack_sequence_as(_structure(model), flat)
            try:
                difference, is_finite = _difference(model, other, [inputs])
            except (tf.errors.OpError, LookupError, TypeError, ValueError) as error:
                failure = error
                continue
            if is_finite:
                return difference
            found = difference if found is None else found
    if found is None:
        raise ModelError(f"Model {model.name!r} cannot be compared, since it fails on random inputs: {failure}")
    return found


def data_difference(model: keras.Model, other: keras.Model, data: Any) -> float:
    """The same on the user's data.

    Raises:
        DataError: If there is none, or its shape is not the model's.
        InvalidArgumentError: If it is no data.
    """
    with computing_in_float32(_of_half_precision(model, other)):
        return _difference(model, other, _batches(model, data))[0]


def _difference(model: keras.Model, other: keras.Model, batches: Iterable[Any]) -> tuple[float, bool]:
    """The largest difference, and whether all outputs were finite; what is not must be so in both.

    Each batch meets models without states, since they are compared, not run on.
    """
    found, largest, is_finite = [], [], True
    for inputs in batches:
        with without_states(model, other):
            # Lists of outputs stand for any structure of them.
            both = [keras.tree.flatten(each(inputs, training=False)) for each in (model, other)]
        one, two = ([_array(output) for output in outputs] for outputs in both)
        found.append([_largest(x - y) if (np.isfinite(x) == np.isfinite(y)).all() else np.inf
                      for x, y in zip(one, two, strict=True)])  # fmt: skip
        largest.append([_largest(x) for x in one])
        is_finite = is_finite and all(np.isfinite(x).all() for x in one)
    if not found:
        raise DataError("`data` holds no sample, or not one batch of the size that the model says. Give more.")
    differences, scales = np.max(found, axis=0), np.max(largest, axis=0)
    return float(np.max(differences / np.where(scales == 0, 1.0, scales), initial=0.0)), is_finite


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def _array(output: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(output).astype("float64")


def _structure(model: keras.Model) -> Any:
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def _batches(model: keras.Model, data: Any) -> Iterator[Any]:
    """Up to 256 samples of the user's data, in the structure that the model takes."""
    structure = _structure(model)
    if isinstance(data, Dataset):
        data = data.batches("validation", _BATCH, limit=_SAMPLES)
    elif isinstance(data, np.ndarray | tf.Tensor | Mapping) or _is_arrays(structure, data):
        data = [keras.tree.map_structure(lambda array: np.asarray(array)[:_SAMPLES], data)]
    elif not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise InvalidArgumentError(
            "data", "a Dataset, batches `x` or `(x, y)` such as a tf.data.Dataset, or arrays of samples", data
        )
    for batch in itertools.islice(data, _SAMPLES):
        inputs = batch[0] if isinstance(batch, tuple) else batch
        flat = _flat_inputs(structure, inputs)
        for array, tensor in zip(flat, keras.tree.flatten(structure), strict=True):
            wanted = tensor.shape[1:]
            fits = len(array.shape) == len(tensor.shape) and all(
                want in (None, got) for want, got in zip(wanted, array.shape[1:], strict=True)
            )
            if not fits:
                shape = ", ".join(["batch", *map(str, wanted)])
                raise DataError(f"`data` for input {tensor.name!r} must have the shape ({shape}). "
                                f"Received: {tuple(array.shape)}.")  # fmt: skip
        for piece in _of_one_batch(flat, keras.tree.flatten(structure)[0].shape[0]):
            yield keras.tree.pack_sequence_as(structure, piece)


def _of_one_batch(flat: list[np.ndarray], size: int | None) -> Iterator[list[np.ndarray]]:
    """Samples in batches of the size that a model says, as one with states does; what is left over is left out."""
    size = size or max(1, len(flat[0]))
    for start in range(0, len(flat[0]) - size + 1, size):
        yield [array[start : start + size] for array in flat]


def _is_arrays(structure: Any, data: Any) -> bool:
    return isinstance(structure, list) and isinstance(data, list) and len(data) == len(structure)


def _flat_inputs(structure: Any, inputs: Any) -> list[np.ndarray]:
    tensors = keras.tree.flatten(structure)
    if isinstance(inputs, Mapping) and not isinstance(structure, Mapping):
        inputs = [inputs[tensor.name] for tensor in tensors if tensor.name in inputs]
    flat = (
        [np.asarray(array) for array in keras.tree.flatten(inputs)]
        if isinstance(inputs, Mapping | list)
        else [np.asarray(inputs)]
    )
    if len(flat) != len(tensors):
        names = [tensor.name for tensor in tensors]
        raise DataError(f"`data` must have one array for each of the inputs {names}. Received: {len(flat)}.")
    return flat


def _of_half_precision(*models: keras.Model) -> list[Any]:
    """The layers of some models that compute in 16 bits; their variables are float32 anyway."""
    layers = [layer for model in models for layer in model._flatten_layers()]
    return [layer for layer in layers if layer.dtype_policy.compute_dtype in ("float16", "bfloat16")]
