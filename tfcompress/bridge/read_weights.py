"""Files of weights, for a model that is built in code.

Invariant: the given model is not changed, a copy of it gets the weights; all of its weights come from the file, and all
that the file has go into the model, or it is an error. Left out: weights by layer name, or of a part of a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from tfcompress.bridge import guard
from tfcompress.bridge.checkpoint import check_checkpoint
from tfcompress.bridge.read_model import LOADING_ERRORS, named
from tfcompress.bridge.recognize import Kind, Recognized
from tfcompress.errors import ModelError
from tfcompress.graph.copy_layer import copy_layer
from tfcompress.graph.functional import as_functional, symbolic_inputs
from tfcompress.graph.trace import has_graph


def read_weights(found: Recognized, into: keras.Model, input_shape: Any, notes: list[str]) -> keras.Model:
    """A copy of `into` with the weights of a file.

    Args:
        found: What the path is.
        into: A Keras 3 model.
        input_shape: Its input shape without the batch, if it does not know it yet.
        notes: What was done is added here.

    Raises:
        ModelError: If the file is damaged, or does not fit the model.
    """
    model = _copy(into, input_shape)
    model = _READERS[found.kind](found.path, model, notes)
    notes.append(f"The weights of {found.path.name} were loaded into a copy of model {into.name!r}.")
    return model


def _copy(model: keras.Model, input_shape: Any) -> keras.Model:
    """A built copy of a model, with weights of its own."""
    try:
        if isinstance(model, keras.Sequential) and not model.built:
            model = as_functional(model, input_shape)
        # A subclassed model makes its layers itself.
        options = {"clone_function": copy_layer, "recursive": True} if has_graph(model) else {}
        copy = keras.models.clone_model(model, **options)
        if not copy.built:
            copy(symbolic_inputs(model, input_shape))
        return copy
    except ModelError:
        raise
    except LOADING_ERRORS as error:
        raise ModelError(
            f"Model {model.name!r} cannot be copied, so it cannot be given weights without changing it: {error} Give "
            "its class a `get_config`, or call its own `load_weights` and load the model itself."
        ) from error


def _h5(path: Path, model: keras.Model, notes: list[str]) -> keras.Model:
    _check_h5(path)
    try:
        with named(path, ".weights.h5") as readable:
            model.load_weights(readable)
    except LOADING_ERRORS as error:
        raise _misfit(path, model, error) from error
    with guard.open_h5(path, repr(str(path))) as file:
        stored = sum(_values(part) for key, part in file.items() if key != "optimizer")
    held = sum(math.prod(variable.shape) for variable in model.variables)
    if stored > held:
        raise _misfit(path, model, f"it has {stored:,} values, and the model {held:,}.")
    return model


def _values(part: Any) -> int:
    return sum(_values(each) for each in part.values()) if hasattr(part, "values") else int(part.size)


def _legacy_h5(path: Path, model: keras.Model, notes: list[str]) -> keras.Model:
    _check_h5(path)
    try:
        with _legacy_name(path) as readable:
            model.load_weights(readable)
        return model
    except LOADING_ERRORS as error:
        reason = error
    return _through_tf_keras(path, model, notes, lambda twin: twin.load_weights(str(path)), reason)


def _legacy_name(path: Path) -> Any:
    # A name that ends in ".weights.h5" stands for the other format.
    return named(path, ".h5") if not path.name.endswith(".weights.h5") else named(path, "-legacy.h5")


def _check_h5(path: Path) -> None:
    where = repr(str(path))
    with guard.open_h5(path, where) as file:
        guard.check_h5(file, where, path.stat().st_size)


def _checkpoint(path: Path, model: keras.Model, notes: list[str]) -> keras.Model:
    check_checkpoint(path)

    def fill(twin: Any) -> None:
        # Optimizers and counters that a checkpoint holds belong to no layer.
        twin.load_weights(str(path)).expect_partial().assert_existing_objects_matched()

    return _through_tf_keras(path, model, notes, fill)


def _through_tf_keras(
    path: Path, model: keras.Model, notes: list[str], fill: Callable[[Any], None], reason: Any = None
) -> keras.Model:
    # Late, since they import tf_keras.
    from tfcompress.bridge.to_tf_keras import to_tf_keras
    from tfcompress.bridge.weights import copy_weights_back

    functional = as_functional(model)
    twin = to_tf_keras(functional)
    try:
        fill(twin)
    except LOADING_ERRORS as error:
        raise _misfit(path, model, reason or error) from error
    notes.append(f"The weights of {path.name} were read by tf_keras into the twin of the model.")
    return copy_weights_back(twin, functional)


def _misfit(path: Path, model: keras.Model, reason: Any) -> ModelError:
    text = next((line.strip() for line in str(reason).splitlines() if line.strip()), type(reason).__name__)
    return ModelError(
        f"The weights in {str(path)!r} do not fit model {model.name!r}: {text} Build the model just as it was "
        "when they were saved."
    )


_READERS: dict[Kind, Callable[[Path, keras.Model, list[str]], keras.Model]] = {
    Kind.H5_WEIGHTS: _h5,
    Kind.LEGACY_H5_WEIGHTS: _legacy_h5,
    Kind.CHECKPOINT: _checkpoint,
}
