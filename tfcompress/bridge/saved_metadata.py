"""What a SavedModel of tf_keras says about its layers, in `keras_metadata.pb`.

Invariant: the file is read as plain fields of protocol buffers, at most `CONFIG_BYTES` of it; no class is built. Left
out: the graph, in `saved_model.pb`, which is not needed to build the layers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfcompress.bridge.guard import CONFIG_BYTES, damaged, refuse

# Numbers of the fields in `SavedMetadata` and `SavedObject`, as tf_keras defines them.
_NODES, _PATH, _METADATA = 1, 3, 5
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5


def root_metadata(path: Path) -> dict[str, Any]:
    """The description of the model itself, the root of all objects.

    Args:
        path: The `keras_metadata.pb`.

    Raises:
        ModelError: If the file is too large, damaged, or describes no root.
    """
    where = repr(str(path))
    size = path.stat().st_size
    if size > CONFIG_BYTES:
        raise refuse(where, f"it may have {CONFIG_BYTES:,} bytes. Received: {size:,}")
    try:
        for number, node in _fields(path.read_bytes()):
            fields = dict(_fields(node)) if number == _NODES and isinstance(node, bytes) else {}
            if fields.get(_PATH) == b"root":
                text = fields.get(_METADATA, b"")
                metadata = json.loads(text) if isinstance(text, bytes) else None
                if isinstance(metadata, dict):
                    return metadata
    except (ValueError, IndexError, RecursionError, TypeError) as error:
        raise damaged(where, error) from error
    raise damaged(where, ValueError("it describes no model"))


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of a message, each with its number."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            length, at = _varint(message, at)
        elif wire in (_FIXED_32, _FIXED_64):
            length = 4 if wire == _FIXED_32 else 8
        else:
            raise ValueError(f"it has a field of the unknown type {wire}")
        if at + length > len(message):
            raise ValueError("it ends in the middle of a field")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("it has a number that does not end")
