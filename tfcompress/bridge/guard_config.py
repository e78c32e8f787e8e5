"""Looks through the configuration of a model before Keras builds it.

Invariant: what passes names only layers, functions and operations of Keras, classes that the user has registered or
given, and, with consent, Lambda layers; building it creates no more weights than the file holds. Whatever module a
configuration names is never imported. Independent of which of these holes the installed Keras has closed: Lambda code
in `.keras` and `.h5` (CVE-2024-3660, CVE-2025-9905), classes and functions of any module (CVE-2025-1550, CVE-2025-8747,
CVE-2025-9906), vocabularies read from other files (CVE-2025-12058), layers that run other models (CVE-2026-1462). Left
out: how long a model takes that is large, and says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

import tfcompress.layers  # noqa: F401  (registers the layers that a file may hold)
from tfcompress.bridge.application_layers import is_application_layer
from tfcompress.bridge.guard import refuse
from tfcompress.bridge.operation_names import read_operation
from tfcompress.bridge.tf_functions import FUNCTIONS

DEPTH = 256
LAYERS = 20_000
# Counters, scalars and states of random generators, which not every format stores.
SPARE_WEIGHTS = 100_000
# Each is a number of weights along one axis, so the file holds at least as many.
_SIZES = (
    "units",
    "filters",
    "input_dim",
    "output_dim",
    "key_dim",
    "value_dim",
    "num_heads",
    "depth_multiplier",
    "rank",
)
# Loops that Keras unrolls while it builds a model.
_LOOPS = ("power_iterations", "num_chains", "chain_depth", "num_ops")
_LOOP_LIMIT = 1_000
# Each part that a tensor is split into is an object of Python.
_PARTS = ("num", "indices_or_sections", "num_or_size_splits")
_SHAPES = ("batch_shape", "batch_input_shape", "shape", "newshape", "target_shape", "n", "size")
_PART_LIMIT = 4_000
_FILES = ("vocabulary", "merges", "proto", "filepath", "vocabulary_file")
# Where functions that a layer may have are found: activations, initializers, operations, and the like.
_HOMES = (
    keras.activations,
    keras.constraints,
    keras.initializers,
    keras.losses,
    keras.metrics,
    keras.ops,
    keras.regularizers,
)
# Layers whose code, or whose model, is in the file or in another one.
_CARRIERS = ("TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")
_OF_KERAS = re.compile(
    r"^(tf_)?keras(\.src)?(\.(_tf_keras|api|engine|layers|models|ops|initializers|regularizers|constraints|activations"
    r"|losses|metrics|optimizers|optimizer_v2|random|dtype_policies|mixed_precision|quantizers|backend)(\.\w+)*)?$"
)
_MARKERS = {"__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__", "__tuple__"}
_MARKERS |= {"TensorShape"}
_TF_GRAPH_OPS = re.compile(
    r"File|Read|Write|Save|Restore|PyFunc|Dataset|Queue|Print|Debug|Load|Import|Remote|Rpc|Summary|Collective|Host"
    r"|Checkpoint|Directory|Table|Send|Recv|Call|Library|Plugin|Lookup",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Consent:
    """What the user allows a file to name beside Keras's own.

    Args:
        custom_objects: Classes and functions by name.
        allow_lambda: Whether Lambda layers, whose code is in the file, may be made.
    """

    custom_objects: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    allow_lambda: bool = False

    def knows(self, name: Any, library: Any = keras) -> bool:
        """Whether a name is the user's own: given here, or registered with the Keras that reads the file."""
        known = (self.custom_objects, library.saving.get_custom_objects())
        return isinstance(name, str) and any(name in objects for objects in known)


def check_config(
    text: bytes, where: str, consent: Consent, stored_values: int | None, library: Any = keras
) -> dict[str, Any]:
    """Checks the JSON configuration of a model.

    Args:
        text: The JSON.
        where: The file, for errors.
        consent: What may be in it beside what Keras has.
        stored_values: How many weights the file holds, to hold the sizes of layers against.
        library: The Keras that is to read it, `keras` or `tf_keras`. Each has a registry of its own, and imports what
            it does not find there.

    Returns:
        The configuration.

    Raises:
        ModelError: If it is no JSON object, or asks for something that is not allowed.
    """
    try:
        config = json.loads(text)
    except RecursionError as error:
        raise refuse(where, f"its configuration is nested more than {DEPTH} deep") from error
    except ValueError as error:
        raise refuse(where, f"its configuration is no valid JSON ({error})", "Copy or download it anew.") from error
    if not isinstance(config, dict):
        raise refuse(where, f"its configuration must be a JSON object. Received: {type(config).__name__}")
    # Models are not compiled when they are read, so losses and optimizers are never built.
    checked = {key: value for key, value in config.items() if key not in ("compile_config", "training_config")}
    checker = _Checker(where, consent, stored_values, library)
    _check(checked, checker)
    if checker.unstacks and checker.longest > _PART_LIMIT:
        raise checker.refuse(f"it unstacks a tensor, and has axes of {checker.longest:,}; {_PART_LIMIT:,} are allowed")
    return config


@dataclasses.dataclass
class _Checker:
    where: str
    consent: Consent
    stored_values: int | None
    library: Any
    layers: int = 0
    # Whether a tensor is taken apart along an axis of whatever length it has, and the longest axis that is declared.
    unstacks: bool = False
    longest: int = 0

    def knows(self, name: Any) -> bool:
        return self.consent.knows(name, self.library)

    def refuse(self, what: str, remedy: str = "Load models from sources that you trust only.") -> Exception:
        return refuse(self.where, what, remedy)


def _check(config: dict[str, Any], checker: _Checker) -> None:
    waiting: list[tuple[Any, int]] = [(config, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > DEPTH:
            raise checker.refuse(f"its configuration is nested more than {DEPTH} deep")
        if isinstance(value, dict):
            if "inbound_nodes" in value:
                checker.layers += 1
                if checker.layers > LAYERS:
                    raise checker.refuse(f"a model has at most {LAYERS:,} layers")
                _check_nodes(value, checker)
            _check_parts(value, checker)
            if "class_name" in value:
                _check_object(value, checker)
            waiting.extend((part, depth + 1) for part in value.values())
        elif isinstance(value, list):
            waiting.extend((part, depth + 1) for part in value)


def _check_nodes(layer: dict[str, Any], checker: _Checker) -> None:
    """A call of a layer without any symbolic input would run while the model is built."""
    nodes = layer["inbound_nodes"]
    for node in nodes if isinstance(nodes, list) else [nodes]:
        if not _has_tensor(node):
            raise checker.refuse(f"its layer {_layer_name(layer)} is called without the output of another layer")


def _has_tensor(value: Any) -> bool:
    """Whether a call refers to a tensor, as Keras 3 or, `[layer, node, output]`, as Keras 2 writes it."""
    if isinstance(value, dict):
        return value.get("class_name") == "__keras_tensor__" or any(map(_has_tensor, value.values()))
    if not isinstance(value, list):
        return False
    kinds = [type(part) for part in value[:3]]
    return (kinds == [str, int, int] and value[0] != "_CONSTANT_VALUE") or any(map(_has_tensor, value))


def _check_parts(value: dict[str, Any], checker: _Checker) -> None:
    """Bounds what a tensor is split into; the graph gets each part while it is built."""
    for key in _PARTS:
        parts = len(value[key]) if isinstance(value.get(key), list) else value.get(key)
        if isinstance(parts, int | float) and parts > _PART_LIMIT:
            raise checker.refuse(f"it takes a tensor apart with {key}={parts:,}; {_PART_LIMIT:,} are allowed")
    for key in _SHAPES:
        sizes = value[key] if isinstance(value.get(key), list) else [value.get(key)]
        checker.longest = max([checker.longest, *(size for size in sizes if isinstance(size, int))])


def _check_object(value: dict[str, Any], checker: _Checker) -> None:
    """Checks one class or function that a configuration names."""
    name, module = value.get("class_name"), value.get("module")
    if not isinstance(name, str) or not isinstance(module, str | None):
        raise checker.refuse(f"a class must have a name and a module. Received: {name!r} of {module!r}")
    if name == "__typespec__":
        raise checker.refuse("it has an input of a type other than a tensor", "Save the model with plain inputs.")
    if name in _MARKERS:
        return
    registered = value.get("registered_name", name)
    if not isinstance(registered, str | None):
        raise checker.refuse(f"a registered name must be a text. Received: {registered!r}")
    # These hold whatever the class is registered as: some loaders look at `class_name` only.
    if name in ("Lambda", "__lambda__") and not checker.consent.allow_lambda:
        raise checker.refuse(
            "it has a Lambda layer, whose Python code is in the file and would be run",
            "If you trust where it comes from, pass `allow_lambda=True`.",
        )
    if name == "__lambda__":
        return
    if name in _CARRIERS and not checker.knows(name):
        raise checker.refuse(
            f"its layer {_layer_name(value)} is a {name}, which brings a model or code of another library",
            f"If you trust where it comes from, pass `custom_objects={{{name!r}: keras.layers.{name}}}`.",
        )
    _check_arguments(value, name, checker)
    if name == "function":
        _check_function(value.get("config"), registered, module, checker)
    else:
        _check_class(name, registered, module, checker)


def _check_class(name: str, registered: str | None, module: str | None, checker: _Checker) -> None:
    # Without a module, loaders look up `class_name`; with one, `registered_name`, and then import the module.
    if not module and registered is not None and registered.rpartition(">")[2] != name and registered != name:
        raise checker.refuse(f"it names the class {name!r}, and says that it is registered as {registered!r}")
    if checker.knows(registered) or (not module and checker.knows(name)):
        return
    described = f"{module}.{registered or name}" if module else registered or name
    is_of_keras = module in (None, "builtins") or _OF_KERAS.match(module) or is_application_layer(name, module)
    if not is_of_keras or not re.fullmatch(r"[A-Z]\w*", name) or module == "builtins":
        raise _unknown(described, checker)
    if module is None and registered not in (None, name):
        raise _unknown(described, checker)


def _unknown(described: str, checker: _Checker) -> Exception:
    return checker.refuse(
        f"it names {described!r}, which is neither of Keras nor registered",
        "If it is yours, import the module that registers it with `keras.saving.register_keras_serializable`, or pass "
        f"`custom_objects={{{described.rpartition('.')[2]!r}: ...}}`.",
    )


def _check_function(name: Any, registered: str | None, module: str | None, checker: _Checker) -> None:
    """A function must be one that a layer may have: an activation, an initializer, an operation, and the like."""
    described = f"{module}.{name}" if module else str(name)
    if registered not in (None, "function", name) and str(registered).rpartition(">")[2] != name:
        raise _unknown(described, checker)
    if checker.knows(name):
        return
    if not (module in (None, "builtins") or _OF_KERAS.match(str(module))) or not _is_function_of_keras(name):
        raise _unknown(described, checker)


def _is_function_of_keras(name: Any) -> bool:
    is_name = isinstance(name, str) and name.isidentifier() and not name.startswith("_")
    return is_name and any(callable(getattr(home, name, None)) for home in _HOMES)


def _check_arguments(value: dict[str, Any], name: str, checker: _Checker) -> None:
    config = value.get("config")
    if not isinstance(config, dict):
        return
    for key in _FILES:
        if isinstance(config.get(key), str):
            raise checker.refuse(
                f"its layer {_layer_name(value)} would read the file {config[key]!r}",
                "Save the model with its vocabulary in it, as Keras 3 does.",
            )
    for key in (*_SIZES, *_LOOPS):
        limit = _LOOP_LIMIT if key in _LOOPS else checker.stored_values
        size = config.get(key)
        # A layer without weights, such as a reshaping one, has none of these.
        if limit is not None and isinstance(size, int | float) and not isinstance(size, bool) and size > limit:
            raise checker.refuse(
                f"its layer {_layer_name(value)} has {key}={size:,}, and there are {limit:,} weights in the file"
                if key in _SIZES
                else f"its layer {_layer_name(value)} has {key}={size:,}; {limit:,} are allowed"
            )
    if name == "Unstack" or config.get("function") == "unstack":
        checker.unstacks = True
    if name.rpartition(">")[2] == "Keras3Operation":
        _check_operation(config, checker)
    if name in ("TFOpLambda", "SlicingOpLambda"):
        _check_tf_function(config.get("function"), checker)
    if name in ("ClassMethod", "InstanceMethod", "InstanceProperty"):
        _check_tf_member(config, checker)
    if name in ("TensorFlowOpLayer", "AddLoss", "AddMetric"):
        _check_graph_op(config.get("node_def"), name, checker)


def _check_operation(config: dict[str, Any], checker: _Checker) -> None:
    """An operation of Keras 3 in a layer of tf_keras is written as text."""
    try:
        described = read_operation(config.get("operation"), config.get("arguments"))
    except ValueError as error:
        raise checker.refuse(f"its layer {config.get('name')!r} is no operation of Keras: {error}") from error
    # Keras 3 reads it, and finds in its registry what tf_keras does not.
    inner = dataclasses.replace(checker, library=keras)
    _check({"operation": list(described)}, inner)
    checker.unstacks, checker.longest = checker.unstacks or inner.unstacks, max(checker.longest, inner.longest)


def _layer_name(value: dict[str, Any]) -> str:
    config = value.get("config")
    return repr((config.get("name") if isinstance(config, dict) else None) or value.get("name") or value["class_name"])


def _check_tf_function(symbol: Any, checker: _Checker) -> None:
    """Only what the bridge translates is called; `io.write_file` and its like are functions of TensorFlow too."""
    if isinstance(symbol, str) and (symbol in FUNCTIONS or symbol == "__operators__.getitem"):
        return
    raise checker.refuse(
        f"it calls the TensorFlow function {symbol!r}, for which the bridge knows no operation of Keras 3",
        "Build the model without it, and load its weights with `load(weights, into=model)`.",
    )


def _check_tf_member(config: dict[str, Any], checker: _Checker) -> None:
    member = config.get("method_name", config.get("attr_name"))
    allowed = ("shape", "dtype", "get_shape", "values", "row_splits", "row_lengths", "to_tensor", "from_tensor")
    if member not in allowed:
        raise checker.refuse(f"it calls {member!r} of a tensor; {', '.join(allowed)} are allowed")


def _check_graph_op(node: Any, name: str, checker: _Checker) -> None:
    """Old Keras 2 models hold bare TensorFlow operations, written as text."""
    if node is None:
        return
    operation = re.search(r"\bop:\s*\"(\w+)\"", node) if isinstance(node, str) else None
    received = operation.group(1) if operation else node.get("op") if isinstance(node, dict) else None
    if not isinstance(received, str) or _TF_GRAPH_OPS.search(received):
        raise checker.refuse(f"its {name} runs the TensorFlow operation {received!r}, which may touch files")


@contextlib.contextmanager
def weight_budget(values: int, where: str) -> Iterator[None]:
    """Lets layers that are built within create no more weights than a file holds.

    The size of each weight is looked at before its memory is taken, so that a configuration cannot ask for more than
    there is to load.

    Args:
        values: The number of values in the file.
        where: The file, for errors.

    Raises:
        ModelError: Where the sum of the weights exceeds that number, but for a few spare ones.
    """
    made = 0

    def create(next_creator: Any, **kwargs: Any) -> Any:
        nonlocal made
        made += _size_of(kwargs)
        if made > values + SPARE_WEIGHTS:
            raise refuse(where, f"its layers have more weights than the {values:,} that are in the file")
        return next_creator(**kwargs)

    with tf.variable_creator_scope(create):
        yield


def _size_of(arguments: dict[str, Any]) -> int:
    """The number of values of a variable that is to be created."""
    shape, value = arguments.get("shape"), arguments.get("initial_value")
    if shape is None and callable(value):
        # Keras asks for the value by a function without arguments of its own variable, which knows its shape.
        variable = inspect.getclosurevars(value).nonlocals.get("self") if inspect.isfunction(value) else None
        shape = getattr(variable, "shape", None)
        if shape is None:
            with tf.Graph().as_default():
                shape = tf.convert_to_tensor(value()).shape
    elif shape is None:
        shape = tf.convert_to_tensor(value).shape if value is not None else ()
    return math.prod(size or 0 for size in tuple(tf.TensorShape(shape)))
