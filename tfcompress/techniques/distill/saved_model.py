"""Runs a SavedModel as it was exported: `model.export` of either Keras, or `tf.saved_model.save` with a signature.

Invariant: TensorFlow loads the graph only after every function in it has been looked through: none that calls Python,
writes or reads files, or talks to others is run; nothing is imported or unpickled. Left out: layers, which an exported
graph no longer has, and SavedModels of TensorFlow 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
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
_REFUSED = re.compile(
    r"PyFunc|(?<!Text)File|Reader|^Save|^Restore|Checkpoint|Dataset|Summary|Debug|^Print|ImmutableConst"
    r"|Rpc|Remote|Send|Recv|Collective"
    # These take the name of a file, too, or end the process.
    r"|VocabRemapping|LoadAndRemap|FixedUnigram|RecordInput|Skipgram|DistributedSave|StatisticsSaver|DumpTensor|^Abort"
)
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
# May read a vocabulary that lies in the folder.
_TABLE_OF_FILE = re.compile(r"^InitializeTableFromTextFile")


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
        _check_assets(graph.asset_file_def, where)
        library = {function.signature.name: function for function in graph.graph_def.library.function}
        objects = graph.object_graph_def
        # A function, and which of its arguments are files of the folder.
        waiting = [(name, _own_files(name, library, objects)) for name in _entries(objects)]
        seen = set[tuple[str, frozenset[str]]]()
        while waiting:
            name, own_files = waiting.pop()
            if (name, own_files) in seen or name not in library:
                continue
            seen.add((name, own_files))
            for node in library[name].node_def:
                reads = _TABLE_OF_FILE.search(node.op) and not set(node.input[1:2]) <= own_files
                if node.op not in library and (reads or _REFUSED.search(node.op)):
                    raise refuse(
                        where,
                        f"its function {name!r} runs the operation {node.op}, which is no part of a model's graph",
                        "If you trust it, load it yourself, and pass a callable that runs it.",
                    )
                waiting += [(called, _passed(node, called, library, own_files)) for called in _called(node)]
    if not any(graph.object_graph_def.nodes for graph in message.meta_graphs):
        raise ModelError(
            f"{where} is a SavedModel of TensorFlow 1. Load it yourself (`tf.saved_model.load`), and pass a callable "
            "that runs it."
        )


def _check_assets(assets: Any, where: str) -> None:
    """Raises a `ModelError` if a file that comes with a SavedModel would be looked for outside of its folder."""
    for asset in assets:
        if PurePosixPath(asset.filename).is_absolute() or ".." in PurePosixPath(asset.filename).parts:
            raise refuse(where, f"its file {asset.filename!r} is outside of its folder")


def _own_files(name: str, library: Mapping[str, Any], objects: Any) -> frozenset[str]:
    """Arguments for which a function, as TensorFlow writes it, captures a file that comes with the SavedModel."""
    if name not in library or name not in objects.concrete_functions:
        return frozenset()
    arguments = [argument.name for argument in library[name].signature.input_arg]
    bound = list(objects.concrete_functions[name].bound_inputs)
    if any(not 0 <= of < len(objects.nodes) for of in bound):
        return frozenset()
    # What is captured comes after what is given.
    captured = zip(arguments[max(len(arguments) - len(bound), 0) :], bound, strict=False)
    return frozenset(name for name, of in captured if objects.nodes[of].HasField("asset"))


def _passed(node: Any, called: str, library: Mapping[str, Any], own_files: frozenset[str]) -> frozenset[str]:
    """Arguments of a function for which a node that calls it passes such files on."""
    if called not in library or (called != node.op and node.op not in _CALLS):
        return frozenset()
    arguments = [argument.name for argument in library[called].signature.input_arg]
    return frozenset(name for name, given in zip(arguments, node.input, strict=False) if given in own_files)


def _entries(objects: Any) -> Iterator[str]:
    """Functions that the objects of a SavedModel name; those that save and restore it are not among them."""
    yield from objects.concrete_functions
    for node in objects.nodes:
        yield from node.function.concrete_functions
        yield node.bare_concrete_function.concrete_function_name


def _called(node: Any) -> Iterator[str]:
    yield node.op
    for attribute in node.attr.values():
        yield attribute.func.name
        yield from (function.name for function in attribute.list.func)
