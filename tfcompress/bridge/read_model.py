"""Whole models from files, each kind by its own loader, after the guard has passed it.

Invariant: a loader gets a file only after `guard` and `guard_config` have looked through it, and while it works, no
more weights are created than the file holds. Left out: files of weights (`read_weights.py`).
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfcompress.bridge import guard
from tfcompress.bridge.checkpoint import check_checkpoint
from tfcompress.bridge.guard_config import Consent, check_config, weight_budget
from tfcompress.bridge.recognize import Kind, Recognized
from tfcompress.bridge.saved_metadata import root_metadata
from tfcompress.errors import ModelError

# What zipfile, h5py, JSON, the layers and TensorFlow raise on what is no sound model, and Keras lets through.
LOADING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    tf.errors.OpError,
)
# Of one layer and sample; 1 GiB of float32. An image of 4 megapixels with 64 channels has as many.
OUTPUT_VALUES = 1 << 28
_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"


def read_model(found: Recognized, consent: Consent, notes: list[str]) -> Any:
    """Reads a whole model.

    Args:
        found: What the path is.
        consent: What may be in the file beside what Keras has.
        notes: What was done is added here.

    Returns:
        A Keras 3 model, or a tf_keras one where only tf_keras can read it; not compiled.

    Raises:
        ModelError: If the file is damaged, not allowed, or no loader reads it.
    """
    model = _READERS[found.kind](found.path, consent, notes)
    if not isinstance(model, keras.Model):
        _check_outputs(model, repr(str(found.path)))
    return model


def _check_outputs(model: Any, where: str) -> None:
    """Refuses layers with outputs that no machine holds, since a model that crosses the bridge is run."""
    waiting = list(model.layers)
    while waiting:
        layer = waiting.pop()
        waiting.extend(getattr(layer, "layers", ()))
        for tensor in keras.tree.flatten(getattr(layer, "output", ())):
            values = math.prod(size or 1 for size in tensor.shape)
            if values > OUTPUT_VALUES:
                raise guard.refuse(
                    where,
                    f"its layer {layer.name!r} gives {values:,} values for each sample; {OUTPUT_VALUES:,} are allowed",
                )


def _archive(path: Path, consent: Consent, notes: list[str]) -> keras.Model:
    values = _check_archive(path, consent)
    return _load(keras, path, ".keras", consent, values)


def _legacy_archive(path: Path, consent: Consent, notes: list[str]) -> Any:
    import tf_keras

    values = _check_archive(path, consent)
    notes.append(f"{path.name} was written by Keras 2 and read with tf_keras.")
    return _load(tf_keras, path, ".keras", consent, values)


def _check_archive(path: Path, consent: Consent) -> int:
    """Checks a `.keras` archive, and gives the number of values in its weights."""
    where = repr(str(path))
    sizes = guard.check_zip(path)
    if _WEIGHTS not in sizes:
        raise guard.refuse(where, f"it has no {_WEIGHTS}", "Save the model again with `model.save`.")
    with guard.open_member(path, _WEIGHTS) as member, guard.open_h5(member, f"{_WEIGHTS} in {where}") as file:
        values = guard.check_h5(file, where, sizes[_WEIGHTS])
    check_config(guard.read_member(path, _CONFIG), where, consent, values)
    return values


def _folder(path: Path, consent: Consent, notes: list[str]) -> keras.Model:
    where, weights, config = repr(str(path)), path / _WEIGHTS, path / _CONFIG
    for part in path.rglob("*"):
        if part.is_symlink():
            raise guard.refuse(where, f"its {part.name!r} is a link")
    if config.stat().st_size > guard.CONFIG_BYTES:
        raise guard.refuse(where, f"{_CONFIG} may have {guard.CONFIG_BYTES:,} bytes")
    with guard.open_h5(weights, repr(str(weights))) as file:
        values = guard.check_h5(file, where, weights.stat().st_size)
    check_config(config.read_bytes(), where, consent, values)
    return _load(keras, path, "", consent, values)


def _h5(path: Path, consent: Consent, notes: list[str]) -> keras.Model:
    values, _ = _check_h5(path, consent)
    try:
        return _load(keras, path, ".h5", consent, values)
    except ModelError as error:
        unknown = re.match(r"Unknown layer: '(\w+)'", str(error.__cause__))
        if unknown is None:
            raise
        raise ModelError(
            f"Keras cannot read {str(path)!r}: it knows no layer {unknown[1]!r}. If that is one of your own, pass it "
            "in `custom_objects`. If it is an operation, such as `x + 1` or `keras.ops.relu(x)`: Keras 3 writes these "
            "into an `.h5` file but does not read them back; save the model as a `.keras` file."
        ) from error


def _legacy_h5(path: Path, consent: Consent, notes: list[str]) -> Any:
    """Keras 3 reads most files of Keras 2 itself; tf_keras reads the others, and those that would compute otherwise."""
    import tf_keras

    values, config = _check_h5(path, consent)
    # Keras 3 has another function of that name.
    if b'"hard_sigmoid"' in config:
        reason = "it has a hard_sigmoid, which is another function in Keras 3"
    else:
        try:
            model = _load(keras, path, ".h5", consent, values)
        except ModelError as error:
            if error.__cause__ is None:
                raise
            reason = f"Keras 3 does not read it ({_first_line(error.__cause__)})"
        else:
            notes.append(f"{path.name} was written by Keras 2; Keras 3 read it.")
            return model
    model = _load(tf_keras, path, ".h5", consent, values)
    notes.append(f"{path.name} was written by Keras 2 and read with tf_keras, since {reason}.")
    return model


def _check_h5(path: Path, consent: Consent) -> tuple[int, bytes]:
    where = repr(str(path))
    with guard.open_h5(path, where) as file:
        values = guard.check_h5(file, where, path.stat().st_size)
        config = guard.h5_attribute(file, "model_config", where)
    check_config(config, where, consent, values)
    return values, config


def _saved_model(path: Path, consent: Consent, notes: list[str]) -> Any:
    """Builds the layers of a SavedModel and loads its variables; the graph in it is not run, nor even read."""
    import tf_keras

    where, prefix = repr(str(path)), path / "variables" / "variables"
    values = check_checkpoint(prefix)
    metadata = root_metadata(path / "keras_metadata.pb")
    name, config = metadata.get("class_name"), metadata.get("config")
    if not isinstance(config, dict) or not isinstance(name, str):
        raise guard.damaged(where, ValueError("its keras_metadata.pb describes no model"))
    check_config(json.dumps({"class_name": name, "config": config}).encode(), where, consent, values)
    if "layers" not in config or name not in ("Functional", "Sequential", "Model"):
        raise ModelError(
            f"{where} holds the subclassed model {name}, whose layers are not described in it. Build it in code, and "
            f"load its weights: `load({str(prefix)!r}, into=model)`."
        )
    with _reading(where, "tf_keras"), weight_budget(values, where):
        serialized = {"class_name": name, "config": _without_tuples(config)}
        with tf_keras.saving.custom_object_scope(dict(consent.custom_objects)):
            model = tf_keras.layers.deserialize(serialized)
        # Some entries, such as the counter of saves, belong to no layer.
        model.load_weights(str(prefix)).expect_partial().assert_existing_objects_matched()
    notes.append(f"{path.name} is a SavedModel of Keras 2; its layers were read with tf_keras.")
    return model


def _without_tuples(value: Any) -> Any:
    """Undoes how tf_keras writes tuples into JSON."""
    if isinstance(value, dict):
        if value.get("class_name") in ("__tuple__", "TensorShape") and "items" in value:
            return tuple(_without_tuples(item) for item in value["items"])
        return {key: _without_tuples(item) for key, item in value.items()}
    return [_without_tuples(item) for item in value] if isinstance(value, list) else value


def _load(library: Any, path: Path, suffix: str, consent: Consent, values: int) -> Any:
    where = repr(str(path))
    is_keras_3 = library is keras
    with (
        _reading(where, "Keras" if is_keras_3 else "tf_keras"),
        named(path, suffix) as readable,
        weight_budget(values, where),
    ):
        return library.models.load_model(
            readable if is_keras_3 else str(readable),
            custom_objects=dict(consent.custom_objects),
            compile=False,
            safe_mode=not consent.allow_lambda,
        )


@contextlib.contextmanager
def _reading(where: str, reader: str) -> Iterator[None]:
    try:
        yield
    except ModelError:
        raise
    except LOADING_ERRORS as error:
        raise ModelError(
            f"{reader} cannot read {where}: {_first_line(error)} If it has layers of your own, import the module that "
            "registers them first, or pass `custom_objects`; if it has none, it may be damaged: get it anew."
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0][:300] if lines else type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."


@contextlib.contextmanager
def named(path: Path, suffix: str) -> Iterator[Path]:
    """The file under a name that ends in `suffix`, by which Keras chooses how to read it."""
    if path.name.endswith(suffix):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="tfcompress-load-") as folder:
        copy = Path(folder) / f"model{suffix}"
        shutil.copyfile(path, copy)
        yield copy


_READERS: dict[Kind, Callable[[Path, Consent, list[str]], Any]] = {
    Kind.KERAS_ARCHIVE: _archive,
    Kind.KERAS_FOLDER: _folder,
    Kind.TF_KERAS_ARCHIVE: _legacy_archive,
    Kind.H5_MODEL: _h5,
    Kind.TF_KERAS_H5_MODEL: _legacy_h5,
    Kind.TF_KERAS_SAVED_MODEL: _saved_model,
}
