"""What a `Keras3Operation` of a file may say: one operation of `keras.ops`, and plain values beside its tensors.

Invariant: it is read as JSON, and nothing of it is built; what passes names no function, since Keras would call it, and
no class but the operation. Left out: whether the operation exists, which Keras finds out (`operation_layer.py`).
"""

from __future__ import annotations

import json
import re
from typing import Any

# What stands for a tensor among the arguments.
PLACE = "__tensor_at__"
_MODULE = re.compile(r"keras\.(src\.)?ops(\.(core|einops|image|linalg|math|nn|numpy))?")
# How Keras writes values that JSON does not have.
_VALUES = {"__numpy__", "__tensor__", "__bytes__", "__ellipsis__", "__slice__", "__tuple__"}


def read_operation(operation: Any, arguments: Any) -> tuple[dict[str, Any], Any]:
    """The description of an operation and of its arguments.

    Args:
        operation: JSON, as `keras.saving.serialize_keras_object` gives it for an operation.
        arguments: JSON of `[args, kwargs]`.

    Raises:
        ValueError: If it is something else than an operation on at least one tensor and values.

    Example:
        >>> described = {"module": "keras.src.ops.nn", "class_name": "Relu", "config": {}, "registered_name": "Relu"}
        >>> read_operation(json.dumps(described), '[[{"__tensor_at__": 0}], {}]')[1]
        [[{'__tensor_at__': 0}], {}]
    """
    if not isinstance(operation, str) or not isinstance(arguments, str):
        raise ValueError(f"an operation and its arguments are JSON texts. Received: {operation!r} and {arguments!r}")
    try:
        described, given = json.loads(operation), json.loads(arguments)
    except RecursionError as error:
        raise ValueError("the JSON of an operation is nested too deeply") from error
    if not _is_operation(described):
        raise ValueError(f"an operation of `keras.ops` is allowed only. Received: {described!r:.300}")
    has_place = _check_values([described["config"], given])
    if not has_place:
        raise ValueError(f"an operation has at least one tensor. Received: {given!r:.300}")
    return described, given


def _is_operation(described: Any) -> bool:
    if not isinstance(described, dict) or not isinstance(described.get("config"), dict):
        return False
    name, module, registered = (described.get(key) for key in ("class_name", "module", "registered_name"))
    if not isinstance(name, str) or not isinstance(module, str):
        return False
    is_class = re.fullmatch(r"[A-Z]\w*", name) is not None and name != "Lambda"
    return is_class and _MODULE.fullmatch(module) is not None and registered in (None, name)


def _check_values(value: Any) -> bool:
    """Whether a tensor has its place in it."""
    has_place = False
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting.extend(part)
        elif isinstance(part, dict):
            name = part.get("class_name")
            if "class_name" in part and (not isinstance(name, str) or name not in _VALUES):
                raise ValueError(f"an operation is given tensors and values only. Received: {part!r:.300}")
            has_place = has_place or set(part) == {PLACE}
            waiting.extend(part.values())
    return has_place
