"""What calls what in a tf_keras model, in the same form as the trace of a Keras 3 model.

Invariant: calls come in an order in which they can run, nested models opened; the model is only read. Left out: layers
that no output depends on, which compute nothing.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import keras
import tensorflow as tf
import tf_keras

from tfcompress.errors import ModelError
from tfcompress.graph.trace import Call, Ref, Trace, splice


def trace_tf_keras(model: Any) -> Trace:
    """Lists the calls of a tf_keras model.

    Args:
        model: A functional tf_keras model, or a Sequential one with an input shape.

    Returns:
        The calls; `Call.operation` is a tf_keras layer.

    Raises:
        ModelError: If the model has no graph, or a loss of its own in it.

    Example:
        >>> inputs = tf_keras.Input((4,), name="x")
        >>> model = tf_keras.Model(inputs, tf_keras.layers.Dense(2, name="y")(inputs))
        >>> [call.operation.name for call in trace_tf_keras(model).calls]
        ['x', 'y']
    """
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        raise ModelError(
            f"tf_keras model {model.name!r} ({type(model).__name__}) has no graph. Give a Sequential model an input "
            "shape, or call a subclassed one on `tf_keras.Input`s and build a functional model of it."
        )
    for layer in model.layers:
        if type(layer).__name__ in ("AddLoss", "AddMetric"):
            raise ModelError(
                f"tf_keras model {model.name!r} has a loss or metric of its own (`add_loss`, `add_metric`), and a "
                "functional Keras 3 model cannot hold one. Remove it and give it to `compile`."
            )
    return _Walk(model).trace()


class _Walk:
    """Goes from the outputs back to the inputs, without recursion: networks are deeper than Python's stack."""

    def __init__(self, model: Any):
        self._model = model
        self._calls: list[Call] = []
        self._refs: dict[int, Ref] = {}  # of tensors, by identity; nodes keep them alive
        self._done: set[int] = set()  # identities of nodes

    def trace(self) -> Trace:
        for tensor in self._model.inputs:
            self._calls.append(Call(_InputOf(tensor)))
            self._refs[id(tensor)] = Ref(len(self._calls) - 1)
        pending = [tensor.node for tensor in reversed(self._model.outputs) if id(tensor) not in self._refs]
        while pending:
            node = pending[-1]
            before = [] if id(node) in self._done else self._missing(node)
            if before:
                pending.extend(before)
                continue
            pending.pop()
            if id(node) not in self._done:
                self._done.add(id(node))
                self._add(node)
        inputs, outputs = (
            keras.tree.map_structure(lambda tensor: self._refs[id(tensor)], side)
            for side in (self._model.input, self._model.output)
        )
        return Trace(self._model.name, tuple(self._calls), inputs, outputs)

    def _missing(self, node: Any) -> list[Any]:
        """The nodes whose results `node` takes and that have no call yet."""
        found = []
        for leaf in keras.tree.flatten((node.call_args, node.call_kwargs)):
            if _is_tensor(leaf) and id(leaf) not in self._refs:
                if leaf.node.is_input:
                    raise ModelError(
                        f"tf_keras model {self._model.name!r} depends on the input {leaf.node.layer.name!r}, which is "
                        "none of its inputs."
                    )
                found.append(leaf.node)
        return found[::-1]

    def _add(self, node: Any) -> None:
        def ref(leaf: Any) -> Any:
            if isinstance(leaf, tf.Variable):
                raise ModelError(
                    f"Layer {node.layer.name!r} of tf_keras model {self._model.name!r} computes with the variable "
                    f"{leaf.name!r}, which is no layer's weight. Put both in a layer of your own."
                )
            return self._refs[id(leaf)] if _is_tensor(leaf) else leaf

        args, kwargs = keras.tree.map_structure(ref, (node.call_args, dict(node.call_kwargs)))
        call = Call(node.layer, args, kwargs)
        results = keras.tree.flatten(node.outputs)
        if isinstance(node.layer, tf_keras.Model):
            first = len(self._calls)
            made = splice(trace_tf_keras(node.layer), call, self._calls)
            if kwargs.get("training") is not None:
                self._calls[first:] = [_with_training(inner, kwargs["training"]) for inner in self._calls[first:]]
        else:
            self._calls.append(call)
            made = [Ref(len(self._calls) - 1, at) for at in range(len(results))]
        for tensor, one in zip(results, made, strict=True):
            self._refs[id(tensor)] = one


class _InputOf:
    """Stands for the input layer of a tensor; a model may begin at a tensor within another one."""

    def __init__(self, tensor: Any):
        self.name = tensor.node.layer.name
        if any(getattr(tensor.node.layer, kind, False) for kind in ("sparse", "ragged")):
            raise ModelError(f"Input {self.name!r} is sparse or ragged; the bridge carries dense tensors only.")
        self.batch_shape = tuple(tensor.shape)
        self.dtype = tensor.dtype.name


def _with_training(call: Call, training: bool) -> Call:
    """A call within a model that was called with `training`, which holds for all its layers."""
    if "training" not in inspect.signature(call.operation.call).parameters:
        return call
    return dataclasses.replace(call, kwargs={"training": training, **call.kwargs})


def _is_tensor(leaf: Any) -> bool:
    return hasattr(leaf, "node") and hasattr(leaf, "dtype") and hasattr(leaf, "shape")
