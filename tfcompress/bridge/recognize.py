"""What a path holds, told by its content: magic bytes, members of a zip, attributes of an HDF5 file, files of a folder.

Invariant: nothing is unpickled, imported or built to find out, and what no model can be read from is a `ModelError`
that names what it is and what to do with it. Left out: whether the content is sound and safe (`guard.py`).
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

from tfcompress.errors import InvalidArgumentError, ModelError

_HEAD_BYTES = 4096
_METADATA_BYTES = 1 << 16


class Kind(enum.Enum):
    """The kinds of files and folders that a model, or its weights, can be read from."""

    KERAS_ARCHIVE = "`.keras` archive of Keras 3"
    KERAS_FOLDER = "unzipped `.keras` archive of Keras 3"
    TF_KERAS_ARCHIVE = "`.keras` archive of Keras 2 (tf_keras)"
    H5_MODEL = "`.h5` model of Keras 3"
    TF_KERAS_H5_MODEL = "`.h5` model of Keras 2 (tf_keras)"
    H5_WEIGHTS = "`.weights.h5` file, weights without a model"
    LEGACY_H5_WEIGHTS = "`.h5` weights of Keras 2, without a model"
    CHECKPOINT = "TensorFlow checkpoint, weights without a model"
    TF_KERAS_SAVED_MODEL = "SavedModel of Keras 2 (tf_keras)"
    TFLITE = "`.tflite` file"

    @property
    def is_weights(self) -> bool:
        """Whether it holds weights only, so that a model must be given as code."""
        return self in (Kind.H5_WEIGHTS, Kind.LEGACY_H5_WEIGHTS, Kind.CHECKPOINT)


@dataclasses.dataclass(frozen=True)
class Recognized:
    """What a path is.

    Args:
        path: The file or folder; of a checkpoint its prefix, of a SavedModel its folder.
        kind: The kind.
    """

    path: Path
    kind: Kind


def recognize(source: str | os.PathLike) -> Recognized:
    """Tells what a path holds.

    Args:
        source: A file, a folder, or the prefix of a checkpoint.

    Returns:
        The path and its kind.

    Raises:
        InvalidArgumentError: If the path is empty, or a URL.
        ModelError: If there is nothing, or nothing that a Keras model or its weights can be read from.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.bin"
        >>> _ = path.write_bytes(bytes(4) + b"TFL3")
        >>> recognize(path).kind.value
        '`.tflite` file'
    """
    text = os.fspath(source)
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise InvalidArgumentError("source", "a model, or the path of a model file", source)
    if re.match(r"[a-z][a-z0-9+.-]+://", text, re.IGNORECASE):
        raise InvalidArgumentError("source", "a path on this machine; download the model first", text)
    path = Path(text)
    prefix = re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", text)
    if path.is_dir():
        return _folder(path)
    if Path(prefix + ".index").is_file():
        return _checkpoint(Path(prefix))
    if not path.exists():
        raise ModelError(f"No model file at {text!r}. Give the path of a model file, a SavedModel or a checkpoint.")
    if not path.is_file():
        raise _unreadable(path, "neither a file nor a folder", "Give the path of a model file.")
    if path.name == "saved_model.pb":
        return _folder(path.parent)
    return _file(path)


def _unreadable(path: Path, what: str, remedy: str) -> ModelError:
    return ModelError(f"No model can be read from {str(path)!r}: it is {what}. {remedy}")


def _folder(path: Path) -> Recognized:
    names = {entry.name for entry in path.iterdir()}
    if "saved_model.pb" in names:
        if "keras_metadata.pb" in names:
            return Recognized(path, Kind.TF_KERAS_SAVED_MODEL)
        raise _unreadable(
            path,
            "a SavedModel without layers (of `model.export`, `tf.saved_model.save`, or made before TensorFlow 2.5)",
            "It can be run, but not be compressed. Save the model that it was made of with "
            "`model.save('model.keras')`, and load that.",
        )
    if {"config.json", "model.weights.h5"} <= names:
        return Recognized(path, Kind.KERAS_FOLDER)
    prefixes = sorted(name.removesuffix(".index") for name in names if name.endswith(".index"))
    if len(prefixes) == 1:
        return _checkpoint(path / prefixes[0])
    if prefixes:
        raise _unreadable(path, "a folder of several checkpoints", f"Name one of them: {prefixes[:20]}.")
    what = "a folder without a model in it" if names else "an empty folder"
    raise _unreadable(path, what, "Give a model file, or the folder of a SavedModel, which holds `saved_model.pb`.")


def _checkpoint(prefix: Path) -> Recognized:
    if not list(prefix.parent.glob(_literal(prefix.name) + ".data-?????-of-?????")):
        raise _unreadable(prefix, "a checkpoint without its `.data-...` files", "Copy them beside the `.index` file.")
    return Recognized(prefix, Kind.CHECKPOINT)


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _file(path: Path) -> Recognized:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise _unreadable(path, f"a file that cannot be opened ({error})", "Check its permissions.") from error
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return Recognized(path, _zip_kind(path))
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return Recognized(path, _h5_kind(path))
    if head[4:8] == b"TFL3":
        return Recognized(path, Kind.TFLITE)
    for fits, what, remedy in _UNREADABLE:
        if fits(head, path):
            raise _unreadable(path, what, remedy)
    raise _unreadable(path, "no known model file", "If it was a model once, it is damaged: get it anew.")


def _zip_kind(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            metadata = b""
            if "metadata.json" in names and archive.getinfo("metadata.json").file_size <= _METADATA_BYTES:
                metadata = archive.read("metadata.json")
            config = b""
            if "config.json" in names:
                with archive.open("config.json") as member:
                    config = member.read(_HEAD_BYTES)
    except _ZIP_ERRORS as error:
        raise _unreadable(path, f"a damaged zip archive ({error})", "Copy or download it anew.") from error
    if "config.json" in names:
        return Kind.TF_KERAS_ARCHIVE if _is_keras_2(metadata, config) else Kind.KERAS_ARCHIVE
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        raise _unreadable(path, "a PyTorch model, which holds pickled code", _OTHER_FRAMEWORK)
    if any(name.endswith("saved_model.pb") for name in names):
        raise _unreadable(path, "a zipped SavedModel", "Unzip it, and give its folder.")
    if names and all(name.endswith(".npy") for name in names):
        raise _unreadable(path, "an `.npz` file of NumPy arrays", _ARRAYS)
    raise _unreadable(path, "a zip archive without a Keras model (no `config.json`)", "Give a `.keras` file.")


def _is_keras_2(metadata: bytes, config: bytes) -> bool:
    try:
        version = str(json.loads(metadata or b"{}").get("keras_version", ""))
    except (ValueError, AttributeError, RecursionError):
        version = ""
    if version[:2] in ("2.", "3."):
        return version.startswith("2.")
    # The class of the model says who wrote it: "keras.src.engine" and "tf_keras" are Keras 2.
    return re.search(rb'"module":\s*"(tf_keras\b|keras\.(src\.)?engine\b)', config) is not None


def _h5_kind(path: Path) -> Kind:
    # Late, since most of what is asked for is no HDF5 file, and a missing path needs no library.
    import h5py

    try:
        with h5py.File(path, "r") as file:
            attributes, names = set(file.attrs), set(file)
            version = file.attrs.get("keras_version", "")
    except _H5_ERRORS as error:
        raise _unreadable(path, f"a damaged HDF5 file ({error})", "Copy or download it anew.") from error
    version = version.decode("utf-8", "replace") if isinstance(version, bytes) else str(version)
    if "model_config" in attributes:
        return Kind.H5_MODEL if version.startswith("3.") else Kind.TF_KERAS_H5_MODEL
    if any(name.startswith("layer_names") for name in attributes) or "model_weights" in names:
        return Kind.LEGACY_H5_WEIGHTS
    if names & {"vars", "layers", "_layer_checkpoint_dependencies"}:
        return Kind.H5_WEIGHTS
    raise _unreadable(path, "an HDF5 file without a Keras model or its weights", "Give one that Keras has saved.")


_ZIP_ERRORS = (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, EOFError)
_H5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)

_OTHER_FRAMEWORK = "Build the model in Keras and copy its weights over, then load the `.keras` file that it saves."
_ARRAYS = "Build the model in code and give it the arrays with `set_weights`."
_PICKLE = "Loading it would run whatever code is in it, so it is not opened. Save the model as a `.keras` file."


def _is_pickle(head: bytes, path: Path) -> bool:
    is_binary = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    return is_binary or re.match(rb"c[\w.]+\n[\w.]+\n|\(dp\d|\(lp\d|\(i[\w.]+\n", head) is not None


def _is_json(head: bytes, path: Path) -> bool:
    return re.match(rb"\s*[\[{]\s*(\"|[\]}\[{])", head) is not None


def _is_text(head: bytes, path: Path) -> bool:
    try:
        # A character may be cut at the end of what was read.
        text = head.decode("utf-8") if len(head) < _HEAD_BYTES else head[:-4].decode("utf-8", "ignore")
    except UnicodeDecodeError:
        return False
    return sum(char.isprintable() or char.isspace() for char in text) == len(text)


# In this order: what a file may be, and what to do about it.
_UNREADABLE: tuple[tuple[Callable[[bytes, Path], bool], str, str], ...] = (
    (lambda head, path: not head, "an empty file", "Copy or download it anew."),
    (_is_pickle, "a pickle file", _PICKLE),
    (lambda head, path: head[:6] == b"\x93NUMPY", "a NumPy array", _ARRAYS),
    (lambda head, path: head[:4] == b"GGUF", "a GGUF model", _OTHER_FRAMEWORK),
    (
        lambda head, path: head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or head[:6] == b"\xfd7zXZ\0",
        "a compressed file",
        "Unpack it first, and give what is in it.",
    ),
    (lambda head, path: head[257:262] == b"ustar", "a tar archive", "Unpack it first, and give what is in it."),
    (
        lambda head, path: head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27,
        "a safetensors file, which holds weights without names of Keras",
        _OTHER_FRAMEWORK,
    ),
    (
        lambda head, path: path.suffix.lower() == ".onnx" or re.match(rb"\x08[\x03-\x14]\x12", head) is not None,
        "an ONNX model",
        _OTHER_FRAMEWORK,
    ),
    (
        lambda head, path: path.suffix.lower() in (".pb", ".pbtxt"),
        "a TensorFlow graph without layers (a frozen graph)",
        "It can be run, but not be compressed. Load the Keras model that it was made of.",
    ),
    (
        _is_json,
        "a JSON file: at most a model's configuration, without its weights",
        "Build the model with `keras.models.model_from_json`, and load its weights with `load(weights, into=model)`.",
    ),
    (_is_text, "a text file", "Give a model file, such as `model.keras`."),
)
