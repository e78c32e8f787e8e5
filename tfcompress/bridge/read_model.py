"""Whole models from files, each kind by its own loader, after the guard has passed it.

Invariant: a loader gets a file only after `guard` and `guard_config` have looked through it, and while it works, no
more weights are created than the file holds. Left out: files of weights (`read_weights.py`).
"""

from __future__ import annotations

import contextlib
import json
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
from tfcompress.bridge.output_sizes import check_outputs
from tfcompress.bridge.recognize import Kind, Recognized
from tfcompress.bridge.saved_metadata import root_metadata
from tfcompress.bridge.unrolled import check_steps, safe_mode
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
        # A model that crosses the bridge is run.
        check_outputs(model, repr(str(found.path)), LOADING_ERRORS)
    return model


def _archive(path: Path, consent: Consent, notes: list[str]) -> keras.Model:
    return _load_archive(_keras_3, path, consent)


def _legacy_archive(path: Path, consent: Consent, notes: list[str]) -> Any:
    model = _load_archive(_tf_keras, path, consent)
    notes.append(f"{path.name} was written by Keras 2 and read with tf_keras.")
    return model


def _keras_3(config: bytes) -> Any:
    return keras


def _tf_keras(config: bytes) -> Any:
    """tf_keras, which knows what `to_tf_keras` may have put into a model of this configuration."""
    import tf_keras

    # Both register what they define.
    import tfcompress.bridge.operation_layer  # noqa: F401
    from tfcompress.bridge.activations import register_named_in

    register_named_in(config.decode("utf-8", "replace"))
    return tf_keras


def _load_archive(choose: Callable[[bytes], Any], path: Path, consent: Consent) -> Any:
    """Checks a `.keras` archive, and loads it."""
    where = repr(str(path))
    sizes = guard.check_zip(path)
    if _WEIGHTS not in sizes:
        raise guard.refuse(where, f"it has no {_WEIGHTS}", "Save the model again with `model.save`.")
    with guard.open_member(path, _WEIGHTS) as member, guard.open_h5(member, f"{_WEIGHTS} in {where}") as file:
        values = guard.check_h5(file, where, sizes[_WEIGHTS])
    return _load(choose, path, ".keras", consent, values, guard.read_member(path, _CONFIG))


def _folder(path: Path, consent: Consent, notes: list[str]) -> keras.Model:
    where, weights, config = repr(str(path)), path / _WEIGHTS, path / _CONFIG
    for part in path.rglob("*"):
        if part.is_symlink():
            raise guard.refuse(where, f"its {part.name!r} is a link")
    if config.stat().st_size > guard.CONFIG_BYTES:
        raise guard.refuse(where, f"{_CONFIG} may have {guard.CONFIG_BYTES:,} bytes")
    with guard.open_h5(weights, repr(str(weights))) as file:
        values = guard.check_h5(file, where, weights.stat().st_size)
    return _load(_keras_3, path, "", consent, values, config.read_bytes())


def _h5(path: Path, consent: Consent, notes: list[str]) -> keras.Model:
    values, config = _open_h5(path)
    try:
        return _load(_keras_3, path, ".h5", consent, values, config)
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
    """Keras 3 reads most files of Keras 2 too, but some compute something else there; the bridge compares them."""
    values, config = _open_h5(path)
    try:
        model = _load(_tf_keras, path, ".h5", consent, values, config)
    except ModelError as error:
        if b'"hard_sigmoid"' in config:  # Keras 3 has another function of that name.
            raise
        try:
            model = _load(_keras_3, path, ".h5", consent, values, config)
        except ModelError:
            raise error from error.__cause__
        notes.append(
            f"{path.name} was written by Keras 2; Keras 3 read it, and nothing compared it with Keras 2, since "
            f"tf_keras does not read it ({_first_line(error.__cause__ or error)})."
        )
        return model
    notes.append(f"{path.name} was written by Keras 2 and read with tf_keras.")
    return model


def _open_h5(path: Path) -> tuple[int, bytes]:
    """Checks an `.h5` file, and gives the number of values in it and the configuration, which is not checked yet."""
    where = repr(str(path))
    with guard.open_h5(path, where) as file:
        values = guard.check_h5(file, where, path.stat().st_size)
        return values, guard.h5_attribute(file, "model_config", where)


def _saved_model(path: Path, consent: Consent, notes: list[str]) -> Any:
    """Builds the layers of a SavedModel and loads its variables; the graph in it is not run, nor even read."""
    where, prefix = repr(str(path)), path / "variables" / "variables"
    values = check_checkpoint(prefix)
    metadata = root_metadata(path / "keras_metadata.pb")
    name, config = metadata.get("class_name"), metadata.get("config")
    if not isinstance(config, dict) or not isinstance(name, str):
        raise guard.damaged(where, ValueError("its keras_metadata.pb describes no model"))
    text = json.dumps({"class_name": name, "config": config}).encode()
    tf_keras = _tf_keras(text)
    check_config(text, where, consent, values, tf_keras)
    if "layers" not in config or name not in ("Functional", "Sequential", "Model"):
        raise ModelError(
            f"{where} holds the subclassed model {name}, whose layers are not described in it. Build it in code, and "
            f"load its weights: `load({str(prefix)!r}, into=model)`."
        )
    with _reading(where, "tf_keras"), weight_budget(values, where):
        serialized = {"class_name": name, "config": _without_tuples(config)}
        check_steps(serialized, tf_keras, consent, where)
        with tf_keras.saving.custom_object_scope(dict(consent.custom_objects)), safe_mode(tf_keras, consent):
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


def _load(choose: Callable[[bytes], Any], path: Path, suffix: str, consent: Consent, values: int, config: bytes) -> Any:
    """Loads a file, once its configuration has been checked for the Keras that `choose` gives."""
    where = repr(str(path))
    library = choose(config)
    checked = check_config(config, where, consent, values, library)
    is_keras_3 = library is keras
    with (
        _reading(where, "Keras" if is_keras_3 else "tf_keras"),
        named(path, suffix) as named_path,
        _with_named_functions(named_path, config) as readable,
    ):
        with weight_budget(values, where):
            check_steps(checked, library, consent, where)
        with weight_budget(values, where), safe_mode(library, consent):
            return library.models.load_model(
                readable if is_keras_3 else str(readable),
                custom_objects=dict(consent.custom_objects),
                compile=False,
                safe_mode=not consent.allow_lambda,
            )


@contextlib.contextmanager
def _with_named_functions(path: Path, config: bytes) -> Iterator[Path]:
    """An `.h5` file of what `to_tf_keras` made, as tf_keras can read it."""
    text = config.decode("utf-8", "replace")
    if path.suffix != ".h5" or '"tfcompress>keras3_' not in text:
        yield path
        return
    # Late, since it imports tf_keras.
    from tfcompress.bridge.activations import as_names

    with tempfile.TemporaryDirectory(prefix="tfcompress-load-") as folder:
        copy = Path(shutil.copyfile(path, Path(folder) / "model.h5"))
        with guard.open_h5(copy, repr(str(path)), "r+") as file:
            file.attrs["model_config"] = as_names(text)
        yield copy


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
