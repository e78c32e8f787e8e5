"""A quantization-aware model and its float twin, run side by side on calibration data, one call after the other.

Invariant: when a layer is visited, its input in the quantized run is what the layers before it give as they are now,
so that a visitor who changes layers sees its earlier changes; the float run never changes. A tensor is kept only until
its last use. Left out: what visitors do (`bias_correction.py`, `learned_rounding.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcompress.errors import DataError
from tfcompress.graph.copy_layer import copy_layer, copy_weights
from tfcompress.graph.trace import Call, Trace, trace
from tfcompress.layers import FakeQuantize, copy_plain_weights


@dataclasses.dataclass(frozen=True)
class Visit:
    """One use of a layer with a rounded kernel, before it is run.

    Args:
        index: Of its call in `traced`.
        traced: The calls of the quantization-aware model.
        layer: The layer, which may be changed.
        plain: Its plain Keras twin, with the float weights that the walk began with.
        inputs: What comes in in the quantized run, one tensor `(batch, ...)` for each batch.
        float_inputs: The same in the float run.
    """

    index: int
    traced: Trace
    layer: Any
    plain: Any
    inputs: Sequence[tf.Tensor]
    float_inputs: Sequence[tf.Tensor]


def side_by_side(
    model: keras.Model, batches: Iterable[Any], visit: Callable[[Visit], None], *, floats: keras.Model | None = None
) -> None:
    """Runs a quantization-aware model and the float model under it, and shows each rounded layer to `visit`.

    A layer that is used at several places is visited at the first one only.

    Args:
        model: A quantization-aware model.
        batches: Inputs, or `(inputs, ...)` tuples, of shape `(batch, ...)`.
        visit: Called for each layer with a rounded kernel, in the order of the graph; may change the layer's weights.
        floats: A quantization-aware model of the same structure whose float weights are the aim; by default `model`
            with the weights it has now.

    Raises:
        DataError: If there is no batch.
    """
    traced = trace(model)
    arrays = [batch[0] if isinstance(batch, tuple | list) else batch for batch in batches]
    if not arrays:
        raise DataError("`calibration` must hold at least one batch. Received: nothing.")
    twins = _float_twins(trace(floats) if floats is not None else traced)
    at_input = {ref.call: at for at, ref in enumerate(keras.tree.flatten(traced.inputs))}
    last_use = {ref.call: index for index, call in enumerate(traced.calls) for ref in call.sources}
    # For each call still needed, and each batch, the flattened results of (quantized, float).
    results: dict[int, list[tuple[list[Any], list[Any]]]] = {}
    visited: set[str] = set()
    for index, call in enumerate(traced.calls):
        if index in at_input:
            layer = call.operation
            tensors = [tf.cast(_input_of(array, layer.name, at_input[index]), layer.dtype) for array in arrays]
            results[index] = [([tensor], [tensor]) for tensor in tensors]
            continue
        name = call.operation.name
        if is_rounded(call.operation) and name not in visited:
            visited.add(name)
            (source,) = call.sources
            before = results[source.call]
            visit(
                Visit(
                    index,
                    traced,
                    call.operation,
                    twins[name],
                    [quantized[source.position] for quantized, _ in before],
                    [exact[source.position] for _, exact in before],
                )
            )
        results[index] = [
            (
                _run(call, call.operation, results, at, 0),
                _run_float(call, twins.get(name, call.operation), results, at),
            )
            for at in range(len(arrays))
        ]
        for used in {ref.call for ref in call.sources}:
            if last_use[used] == index:
                del results[used]


def _run(call: Call, operation: Any, results: dict[int, list[Any]], batch: int, run: int) -> list[Any]:
    """The flattened results of one call for one batch, in the quantized run (0) or the float one (1)."""
    args, kwargs = call.arguments(lambda ref: results[ref.call][batch][run][ref.position])
    return keras.tree.flatten(operation(*args, **kwargs))


def _run_float(call: Call, operation: Any, results: dict[int, list[Any]], batch: int) -> list[Any]:
    with unrounded(operation):
        return _run(call, operation, results, batch, 1)


@contextlib.contextmanager
def unrounded(operation: Any) -> Iterator[None]:
    """Lets values pass the ranges of a layer, and of layers inside it, as they are."""
    layers = operation._flatten_layers() if isinstance(operation, keras.layers.Layer) else []
    ranges = [layer for layer in layers if isinstance(layer, FakeQuantize)]
    for layer in ranges:
        layer.observer = _ignore
    try:
        yield
    finally:
        for layer in ranges:
            layer.observer = None


@contextlib.contextmanager
def without_activation(layer: Any) -> Iterator[None]:
    """Lets a layer give its sums."""
    activation, layer.activation = layer.activation, keras.activations.linear
    try:
        yield
    finally:
        layer.activation = activation


def _input_of(batch: Any, name: str, at: int) -> Any:
    """What a batch holds for one input of a model: by its name, or by its place."""
    if isinstance(batch, Mapping) and name in batch:
        return batch[name]
    return keras.tree.flatten(batch)[at]


def _ignore(values: Any) -> None:
    """Looks at nothing."""


def is_rounded(operation: Any) -> bool:
    """Whether a layer makes sums with one rounded kernel, so that they can be made with another."""
    return getattr(operation, "kernel_names", ()) == ("kernel",) and hasattr(operation, "activation")


def _plain_twin(layer: Any) -> Any:
    """The plain Keras layer of a rounded one, with weights of its own."""
    config = {key: value for key, value in layer.get_config().items() if key not in layer.rounding_keys}
    twin = layer.base_class.from_config(config)
    twin.build_from_config(layer.get_build_config())
    copy_plain_weights(layer, twin)
    return twin


def _copy(layer: Any) -> Any:
    """A layer like `layer`, with weights of its own."""
    copy = copy_layer(layer)
    copy.build_from_config(layer.get_build_config())
    copy_weights(layer, copy)
    return copy


def _float_twins(traced: Trace) -> dict[str, Any]:
    """For each layer with weights, by name, a layer with the same weights that no visitor changes, its kernel float."""
    twins: dict[str, Any] = {}
    for call in traced.calls:
        layer = call.operation
        is_range = isinstance(layer, FakeQuantize)
        if layer.name in twins or is_range or not isinstance(layer, keras.layers.Layer) or not layer.weights:
            continue
        twins[layer.name] = _plain_twin(layer) if is_rounded(layer) else _copy(layer)
    return twins
