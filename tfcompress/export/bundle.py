"""A `.tflite` file with all that one target needs, in a folder: for Android, a microcontroller or an Edge TPU.

Invariant: the folder appears whole or not at all, and its reference outputs were given by the file in it. Left out:
making the file (see `tflite.py`), and the compiler of the Edge TPU.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfcompress import files
from tfcompress.errors import ExportError, InvalidArgumentError, ModelError
from tfcompress.export import flatbuffer
from tfcompress.export.android import android_files
from tfcompress.export.edgetpu import edgetpu_violations
from tfcompress.export.metadata import add_metadata
from tfcompress.export.microcontroller import identifier, microcontroller_files
from tfcompress.export.sidecar import describe_file, normalization, reference_vectors
from tfcompress.export.tflite import ExportResult

TARGETS = ("android", "microcontroller", "edgetpu")
# The kernels that are most like those of the target.
_KERNELS = {"android": "default", "microcontroller": "reference", "edgetpu": "reference"}


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A folder for one target.

    Args:
        folder: Where it is.
        target: "android", "microcontroller" or "edgetpu".
        files: Names of the files in it, sorted.
    """

    folder: Path
    target: str
    files: tuple[str, ...]


def write_bundle(
    source: ExportResult | str | os.PathLike,
    folder: str | os.PathLike,
    target: str = "android",
    *,
    class_names: Sequence[str] | None = None,
    input_range: tuple[float, float] | None = None,
    samples: Any = None,
) -> Bundle:
    """Writes a folder with a `.tflite` file and what its target needs beside it.

    Every folder has the file, a description as JSON (inputs, outputs, scales, zero points, labels, preprocessing,
    SHA-256) and reference inputs and outputs. For "android", the file has TensorFlow Lite Metadata, and there are
    labels and Kotlin on LiteRT's CompiledModel; for "microcontroller", the file as a C array, and the operations and
    arena of TensorFlow Lite Micro; for "edgetpu", the file was checked against Coral's rules.

    Args:
        source: The result of `export_tflite`, or the path of a `.tflite` file.
        folder: Where to write. It must not exist, or be empty.
        target: "android", "microcontroller" or "edgetpu".
        class_names: One name for each value of the first output; by default those of the export.
        input_range: (low, high) that the Keras model takes for pixels of 0 to 255; None for inputs that are no images.
        samples: Inputs of the reference vectors: floats `(samples, ...)` in the units of the Keras model, a list for
            several inputs. Random numbers by default.

    Returns:
        What was written.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        ModelError: If there is no TFLite model at `source`, or LiteRT cannot run it.
        ExportError: If the target cannot run the file; every cause is named with its remedy.

    Example:
        >>> write_bundle("model.tflite", "app/model", "android", input_range=(0, 1)).files   # doctest: +SKIP
        ('Model.kt', 'README.md', 'model.json', 'model.tflite', 'vectors/input_0.bin', 'vectors/output_0.bin')
    """
    folder = Path(folder)
    if target not in TARGETS:
        raise InvalidArgumentError("target", f"one of {TARGETS}", target)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidArgumentError("folder", "a new or empty folder", os.fspath(folder))
    if input_range is not None and not (len(input_range) == 2 and input_range[0] < input_range[1]):
        raise InvalidArgumentError("input_range", "two numbers, the lower one first", input_range)
    path, content, names = _read(source, class_names)
    entries = _entries(path.stem, content, target, names, input_range, samples)
    with files.atomic_path(folder) as temporary:
        for name, data in entries.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(data)
        if folder.exists():
            folder.rmdir()
    return Bundle(folder, target, tuple(sorted(entries)))


def _read(source: Any, class_names: Sequence[str] | None) -> tuple[Path, bytes, list[str] | None]:
    path = source.path if isinstance(source, ExportResult) else Path(source)
    names = None if class_names is None else [str(name) for name in class_names]
    if names is None and isinstance(source, ExportResult) and source.labels_path is not None:
        names = source.labels_path.read_text(encoding="utf-8").splitlines()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"No TFLite file can be read at {os.fspath(path)!r}: {error.strerror}.") from error
    model = flatbuffer.parse(content)
    if names is not None:
        output = model.subgraphs[0].tensors[flatbuffer.outputs(model)[0][0]]
        classes = int(output.shape[-1]) if output.shape is not None and len(output.shape) else 1
        if len(names) != classes or any("\n" in name for name in names):
            raise InvalidArgumentError(
                "class_names", f"{classes} names of one line, one per class of the output", names
            )
    return path, content, names


def _entries(
    stem: str,
    content: bytes,
    target: str,
    names: list[str] | None,
    input_range: tuple[float, float] | None,
    samples: Any,
) -> dict[str, bytes]:
    """Content by file name."""
    texts: dict[str, str] = {}
    labels_name = None if names is None else f"{stem}.labels.txt"
    if target == "microcontroller":
        stem = identifier(stem)
        texts = microcontroller_files(content, stem)
    elif target == "edgetpu":
        violations = edgetpu_violations(content)
        if violations:
            raise ExportError(f"{stem}.tflite breaks rules of the Edge TPU.", violations)
        texts["README.md"] = _EDGETPU_README.format(stem=stem)
    else:
        content = add_metadata(
            content,
            name=stem,
            class_names=names,
            labels_name=labels_name or "",
            normalization=None if input_range is None else normalization(input_range),
        )
    described = describe_file(content, f"{stem}.tflite", class_names=names, input_range=input_range)
    if target == "android":
        texts |= android_files(described, stem, labels_name)
    if labels_name is not None and names is not None:
        texts[labels_name] = "".join(f"{name}\n" for name in names)
    described["vectors"], vectors = reference_vectors(content, delegate=_KERNELS[target], samples=samples)
    texts[f"{stem}.json"] = json.dumps(described, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    entries = {name: text.encode("utf-8") for name, text in texts.items()}
    return {f"{stem}.tflite": content, **entries, **vectors}


_EDGETPU_README = """# {stem} for the Edge TPU

`{stem}.tflite` keeps the rules of Coral's page (8-bit tensors of fixed sizes, supported operations). Compile it with

```
edgetpu_compiler {stem}.tflite
```

and look in its log whether every operation was mapped. `{stem}.json` describes inputs and outputs; `vectors/` holds
inputs and the outputs that they must give, by LiteRT's reference kernels, as raw little-endian numbers.
"""
