"""`load`: whatever Keras model a user has, as a functional Keras 3 model.

Invariant: a file is recognised by its content and checked before any loader sees it; code that is stored in it never
runs, and modules that it names are never imported, without the user's consent; what was done on the way is told in
notes, never left unsaid. Left out: optimizers and losses of compiled models, and models without layers (frozen graphs,
exported SavedModels, other frameworks), which are errors that say what to do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import keras
from absl import logging

from tfcompress.bridge.guard_config import Consent
from tfcompress.bridge.read_model import read_model
from tfcompress.bridge.read_weights import read_weights
from tfcompress.bridge.recognize import Kind, recognize
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.flatten import flatten
from tfcompress.graph.functional import as_functional
from tfcompress.graph.trace import has_graph, require_functional


def load(
    source: Any,
    *,
    into: keras.Model | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    allow_lambda: bool = False,
    input_shape: Any = None,
) -> keras.Model:
    """Gives a functional Keras 3 model for a model or a path of any kind.

    What is done on the way (a model read through tf_keras, a subclassed model traced, layers renamed) is logged with
    `absl.logging.info`; `load_with_notes` returns it.

    Args:
        source: A Keras 3 or tf_keras model (functional, Sequential or subclassed), which is not changed; or a path: a
            `.keras` or `.h5` file of either Keras, the folder of a tf_keras SavedModel, or weights (`.weights.h5`,
            `.h5`, the prefix of a TensorFlow checkpoint) for the model `into`. The suffix of a file does not matter.
        into: The Keras 3 model, built in code, that a file of weights belongs to. It is not changed.
        custom_objects: Layers and functions of your own that are not registered with Keras, by name.
        allow_lambda: Whether Lambda layers may be read from a file. Their Python code is in the file and runs: say so
            only for files that you trust.
        input_shape: Shape of the input without the batch, such as `(32, 32, 3)`, or several in a list or dict, for a
            model that does not know it yet.

    Returns:
        A functional model, not compiled. It is `source` itself if that is one already.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        ModelError: If there is no model, or none that can be read; if a file is damaged, or asks for code, other files
            or more memory than it should; or if a subclassed model cannot be traced.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> path = os.path.join(tempfile.mkdtemp(), "model.keras")
        >>> model.save(path)
        >>> load(path).output_shape
        (None, 2)
    """
    model, notes = load_with_notes(
        source, into=into, custom_objects=custom_objects, allow_lambda=allow_lambda, input_shape=input_shape
    )
    for note in notes:
        logging.info("%s", note)
    return model


def load_with_notes(
    source: Any,
    *,
    into: keras.Model | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    allow_lambda: bool = False,
    input_shape: Any = None,
) -> tuple[keras.Model, tuple[str, ...]]:
    """As `load`, and what was done on the way, a sentence each.

    Example:
        >>> model = keras.Sequential([keras.layers.Dense(2)])
        >>> load_with_notes(model, input_shape=(4,))[1]
        ('The Sequential model is given as a functional one over the same layers.',)
    """
    if into is not None and not isinstance(into, keras.Model):
        raise InvalidArgumentError("into", "a Keras 3 model", into)
    consent = Consent(dict(custom_objects or {}), allow_lambda)
    notes: list[str] = []
    if isinstance(source, str | os.PathLike):
        source = _read(source, into, consent, input_shape, notes)
    elif into is not None:
        raise InvalidArgumentError("into", "None unless `source` is the path of a weights file", into)
    if is_tf_keras(source):
        source = _cross(source, input_shape, notes)
    if not isinstance(source, keras.Model):
        raise InvalidArgumentError("source", "a Keras model, or the path of a model file", source)
    return _as_plain(source, input_shape, notes), tuple(notes)


def _read(source: Any, into: Any, consent: Consent, input_shape: Any, notes: list[str]) -> Any:
    """A model of either Keras from a path."""
    found = recognize(source)
    if found.kind is Kind.TFLITE:
        raise ModelError(
            f"{str(found.path)!r} is a .tflite file: it can be run (`TFLiteRunner`) and can teach (`Teacher`), but it "
            "has no layers to train or compress. Load the Keras model that it was made of."
        )
    if not found.kind.is_weights:
        if into is not None:
            raise InvalidArgumentError("into", f"None, since {str(found.path)!r} is a whole model", into)
        return _with_single_input(read_model(found, consent, notes))
    if into is None:
        raise ModelError(
            f"{str(found.path)!r} holds weights without a model ({found.kind.value}). Build the model in code, and "
            "pass it: `load(path, into=model)`."
        )
    return read_weights(found, into, input_shape, notes)


def _with_single_input(model: Any) -> Any:
    """The model with its only input as such, not in a list, as `.h5` files have it: Keras warns at each call else."""
    given = getattr(model, "input", None) if isinstance(model, keras.Model) and has_graph(model) else None
    if isinstance(given, list | tuple) and len(given) == 1:
        return keras.Model(given[0], model.output, name=model.name)
    return model


def is_tf_keras(source: Any) -> bool:
    """Whether an object is a tf_keras model; where tf_keras was never imported, it cannot be one."""
    tf_keras = sys.modules.get("tf_keras")
    return tf_keras is not None and isinstance(source, tf_keras.Model)


def _cross(model: Any, input_shape: Any, notes: list[str]) -> keras.Model:
    # Late, since they import tf_keras.
    from tfcompress.bridge.from_tf_keras import from_tf_keras
    from tfcompress.bridge.legacy_functional import as_functional_tf_keras

    functional = as_functional_tf_keras(model, input_shape)
    if functional is not model:
        notes.append(f"The `call` of the tf_keras model {model.name!r} was traced into a graph of its layers.")
    notes.append(f"The tf_keras model {model.name!r} was converted to Keras 3; both give the same outputs.")
    return _with_single_input(from_tf_keras(functional))


def _as_plain(model: keras.Model, input_shape: Any, notes: list[str]) -> keras.Model:
    """The functional form, with names that tell its layers apart."""
    functional = as_functional(model, input_shape)
    if functional is not model:
        if isinstance(model, keras.Sequential):
            notes.append("The Sequential model is given as a functional one over the same layers.")
        else:
            notes.append(
                f"The `call` of {type(model).__name__} {model.name!r} was traced into a functional model over the same "
                "layers."
            )
    equal = _equal_name(functional)
    if equal is not None:
        functional = flatten(functional)
        notes.append(
            f"Two layers were named {equal!r}, so the models within the model were opened, and layers of equal names "
            "told apart by numbers."
        )
    return functional


def _equal_name(model: keras.Model) -> str | None:
    """A name that two layers of a model, or of models within it, have."""
    known: dict[str, Any] = {}
    waiting = [(model, operation) for operation in model.operations]
    while waiting:
        parent, operation = waiting.pop()
        if isinstance(operation, keras.Model):
            inner = require_functional(operation)
            waiting.extend((inner, part) for part in inner.operations)
        # An input of a model within the model is no layer of the flat one.
        elif parent is not model and isinstance(operation, keras.layers.InputLayer):
            continue
        elif known.setdefault(operation.name, operation) is not operation:
            return operation.name
    return None
