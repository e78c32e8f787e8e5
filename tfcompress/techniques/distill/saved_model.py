"""Runs a SavedModel as it was exported: `model.export` of either Keras, or `tf.saved_model.save` with a signature.

Invariant: TensorFlow loads the graph only after every function in it has been looked through: none that calls Python,
writes or reads files, or talks to others is run; nothing is imported or unpickled. Left out: layers, which an exported
graph no longer has, and SavedModels of TensorFlow 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from tfcompress.bridge.checkpoint import check_checkpoint
from tfcompress.bridge.guard import damaged, refuse
from tfcompress.bridge.read_model import LOADING_ERRORS
from tfcompress.errors import ModelError
from tfcompress.files import folder_key

_DEFAULT = "serving_default"
# `InitializeTableFromTextFile` reads the vocabulary that lies in the folder.
_REFUSED = re.compile(
    r"PyFunc|(?<!Text)File|Reader|^Save|^Restore|Checkpoint|Dataset|Summary|Debug|^Print|ImmutableConst"
    r"|Rpc|Remote|Send|Recv|Collective"
)


def is_saved_model(path: Path) -> bool:
    """Whether a path is the folder of a SavedModel."""
    return (path / "saved_model.pb").is_file()


class SavedModel:
    """The serving signature of a SavedModel, from a batch of inputs to one tensor.

    Args:
        path: The folder, with `saved_model.pb` in it. Its signature is `serving_default`, or the only one.

    Attributes:
        inputs: The `tf.TensorSpec` of each input, by name.
        output: The `tf.TensorSpec` of the output.

    Raises:
        ModelError: If the folder is damaged, its graph does what a graph of a model does not, or there is no signature,
            or several without a default, or one with several outputs.

    Example:
        >>> import keras, tempfile
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.export(folder, verbose=False)
        ...     SavedModel(Path(folder))(tf.ones((2, 4))).shape
        TensorShape([2, 3])
    """

    def __init__(self, path: Path):
        self.path = path
        self._where = repr(str(path))
        _check_graph(path / "saved_model.pb", self._where)
        prefix = path / "variables" / "variables"
        if prefix.with_suffix(".index").exists():
            check_checkpoint(prefix)
        try:
            # Its variables live as long as it does.
            self._loaded = tf.saved_model.load(str(path))
        except LOADING_ERRORS as error:
            raise ModelError(f"TensorFlow cannot load the SavedModel {self._where}: {error}") from error
        self._signature = self._choose(self._loaded.signatures)
        self.inputs: dict[str, tf.TensorSpec] = dict(self._signature.structured_input_signature[1])
        outputs = self._signature.structured_outputs
        if len(outputs) != 1:
            shapes = {name: tuple(spec.shape) for name, spec in sorted(outputs.items())}
            raise ModelError(
                f"The SavedModel {self._where} must have one output. Received: {shapes}. Load it yourself, and pass a "
                "callable that gives one of them."
            )
        ((self._output_name, self.output),) = outputs.items()
        for name, spec in self.inputs.items():
            if spec.shape.rank and spec.shape[0] is not None:
                raise ModelError(
                    f"The SavedModel {self._where} must take batches of any size. Received: input {name!r} of shape "
                    f"{tuple(spec.shape)}. Export it with None as the first size."
                )

    def __call__(self, inputs: Any) -> Any:
        """The output for a batch: a tensor, or of several inputs a dict by their names."""
        return self._signature(**self._by_name(inputs))[self._output_name]

    def key(self) -> str:
        """What it is known by: the content of its files."""
        return folder_key(self.path)

    def _by_name(self, inputs: Any) -> dict[str, Any]:
        if not isinstance(inputs, dict):
            if len(self.inputs) != 1 or isinstance(inputs, list | tuple):
                raise ModelError(
                    f"The SavedModel {self._where} takes its inputs by name, as a dict of {sorted(self.inputs)}. "
                    f"Received: {type(inputs).__name__}."
                )
            inputs = dict.fromkeys(self.inputs, inputs)
        if not set(self.inputs) <= set(inputs):
            raise ModelError(
                f"The SavedModel {self._where} takes the inputs {sorted(self.inputs)}. Received: {sorted(inputs)}."
            )
        return {name: self._cast(name, inputs[name]) for name in self.inputs}

    def _cast(self, name: str, value: Any) -> Any:
        value, wanted = tf.convert_to_tensor(value), self.inputs[name].dtype
        both = (value.dtype, wanted)
        if value.dtype != wanted and not (all(t.is_floating for t in both) or all(t.is_integer for t in both)):
            raise ModelError(
                f"The SavedModel {self._where} takes {wanted.name} as input {name!r}. Received: {value.dtype.name}. "
                "Load it yourself, and pass a callable that converts it."
            )
        return tf.cast(value, wanted)

    def _choose(self, signatures: Any) -> Any:
        names = sorted(signatures)
        if _DEFAULT in names or len(names) == 1:
            return signatures[_DEFAULT if _DEFAULT in names else names[0]]
        if names:
            what = f"several signatures, none of which is {_DEFAULT!r}: {', '.join(names)}"
        else:
            what = "no signature"
        raise ModelError(
            f"The SavedModel {self._where} has {what}. Load it yourself (`loaded = tf.saved_model.load(path)`), and "
            "pass the function of it that is to be run."
        )


def _check_graph(path: Path, where: str) -> None:
    """Raises a `ModelError` if a function that loading or running could reach does what no model needs."""
    message = saved_model_pb2.SavedModel()
    try:
        message.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise damaged(where, error) from error
    for graph in message.meta_graphs:
        library = {function.signature.name: function.node_def for function in graph.graph_def.library.function}
        waiting, seen = list(_entries(graph.object_graph_def)), set[str]()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            for node in library.get(name, ()):
                if _REFUSED.search(node.op) and node.op not in library:
                    raise refuse(
                        where,
                        f"its function {name!r} runs the operation {node.op}, which is no part of a model's graph",
                        "If you trust it, load it yourself, and pass a callable that runs it.",
                    )
                waiting += [node.op, *_called(node)]
    if not any(graph.object_graph_def.nodes for graph in message.meta_graphs):
        raise ModelError(
            f"{where} is a SavedModel of TensorFlow 1. Load it yourself (`tf.saved_model.load`), and pass a callable "
            "that runs it."
        )


def _entries(objects: Any) -> Iterator[str]:
    """Functions that the objects of a SavedModel name; those that save and restore it are not among them."""
    yield from objects.concrete_functions
    for node in objects.nodes:
        yield from node.function.concrete_functions
        yield node.bare_concrete_function.concrete_function_name


def _called(node: Any) -> Iterator[str]:
    for attribute in node.attr.values():
        yield attribute.func.name
        yield from (function.name for function in attribute.list.func)
