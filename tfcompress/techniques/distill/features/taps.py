"""`Taps`: hearing what layers inside a network give, while the network runs as it always does.

Layers are named as the network's own are; those of a nested network also by a path, `"backbone/conv_1"`.

Invariant: a network is listened to only within `listening`; after it, and whatever was raised in it, its layers are as
they were. Left out: layers that run several times in one forward pass, such as shared ones and those within a loop.
"""

from __future__ import annotations

import contextlib
import difflib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError, ModelError

# Stands for a value that only another graph has.
_UNREACHABLE = object()


class Tap(NamedTuple):
    """What of a layer is heard.

    Args:
        layer: Its name, or its path.
        attention: Whether its attention is heard, and not its output: probabilities of shape
            `(batch, heads, queries, keys)` of a `MultiHeadAttention`.
        inputs: Whether what comes to it is heard, and not its output.
    """

    layer: str
    attention: bool = False
    inputs: bool = False


Heard = dict[Tap, list[Any]]


class Taps:
    """Hears what some layers give.

    Args:
        model: The network.
        taps: What is heard.
        argument: What the names of layers are an argument of, for errors.

    Raises:
        InvalidArgumentError: If there is no such layer, several of one name, or a layer has no attention.

    Example:
        >>> inputs = keras.Input((4,))
        >>> model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dense(3, name="hidden")(inputs)))
        >>> taps = Taps(model, [Tap("hidden")])
        >>> with taps.listening() as heard:
        ...     outputs = model(keras.ops.ones((1, 4)))
        >>> taps.values(heard)[Tap("hidden")].shape
        TensorShape([1, 3])
    """

    def __init__(self, model: Any, taps: Sequence[Tap], *, argument: str = "Tap.layer"):
        self._layers = {tap: find_layer(argument, model, tap.layer) for tap in taps}
        for tap, layer in self._layers.items():
            if tap.attention and not isinstance(layer, keras.layers.MultiHeadAttention):
                raise InvalidArgumentError(
                    argument, "a MultiHeadAttention where attention is compared", f"{tap.layer}: {type(layer).__name__}"
                )
        self._argument = argument
        self._lock = threading.Lock()
        self._listeners = 0
        self._originals: list[tuple[Any, Any, Any]] = []
        # The replicas of a strategy are traced in threads of their own, in turns.
        self._of_thread = threading.local()

    @contextlib.contextmanager
    def listening(self) -> Iterator[Heard]:
        """While it lasts, what the layers give comes into the dict that it hands out: a list for each tap."""
        heard: Heard = {tap: [] for tap in self._layers}
        with self._lock:
            self._listeners += 1
            if self._listeners == 1:
                self._install()
        self._of_thread.heard, self._of_thread.graph = heard, tf.compat.v1.get_default_graph()
        try:
            yield heard
        finally:
            self._of_thread.heard = self._of_thread.graph = None
            with self._lock:
                self._listeners -= 1
                if self._listeners == 0:
                    self._remove()

    def values(self, heard: Heard) -> dict[Tap, Any]:
        """The one tensor of each tap.

        Raises:
            ModelError: If a layer has not run, has run several times, or gives something else than one tensor.
        """
        found = {}
        for tap, values in heard.items():
            if any(value is _UNREACHABLE for value in values):
                raise ModelError(
                    f"`{self._argument}` must be a layer that is not called within a `tf.function` or a loop of the "
                    f"network's own, out of which no tensor comes. Received: {tap.layer!r}. Leave out the decorator "
                    "`@tf.function`: a training is compiled as a whole."
                )
            tensors = keras.tree.flatten(values[0]) if len(values) == 1 else []
            if len(tensors) != 1:
                received = f"it gives {len(tensors)} tensors" if len(values) == 1 else f"it ran {len(values)} times"
                if not values:
                    received += ", or within a `tf.function` of the network's own"
                raise ModelError(
                    f"`{self._argument}` must be a layer that runs once in a forward pass, and gives one tensor; one "
                    f"before or after it may. Received: {tap.layer!r}; {received}"
                )
            found[tap] = tensors[0]
        return found

    def _install(self) -> None:
        for tap, layer in self._layers.items():
            hook = self._attention_hook(tap, layer.call) if tap.attention else self._hook(tap, layer.call)
            self._originals.append((layer, layer.__dict__.get("call"), hook))
            # Past Keras's attribute tracking, which is for variables.
            object.__setattr__(layer, "call", hook)

    def _remove(self) -> None:
        for layer, own, hook in reversed(self._originals):
            if layer.__dict__.get("call") is not hook:
                continue  # Somebody else's hook has come on top.
            if own is None:
                object.__delattr__(layer, "call")
            else:
                object.__setattr__(layer, "call", own)
        self._originals.clear()

    def _hear(self, tap: Tap, value: Any) -> None:
        heard = getattr(self._of_thread, "heard", None)
        if heard is not None:
            outside = self._of_thread.graph is not tf.compat.v1.get_default_graph()
            heard[tap].append(_UNREACHABLE if outside else value)

    def _hook(self, tap: Tap, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            outputs = original(*args, **kwargs)
            self._hear(tap, keras.tree.flatten((args, kwargs))[0] if tap.inputs else outputs)
            return outputs

        return call

    def _attention_hook(self, tap: Tap, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, return_attention_scores: bool = False, **kwargs: Any) -> Any:
            outputs, attention = original(*args, return_attention_scores=True, **kwargs)
            self._hear(tap, attention)
            return (outputs, attention) if return_attention_scores else outputs

        return call


def find_layer(argument: str, model: Any, name: str) -> Any:
    """The layer or operation of a name or path, in a network or the networks within it.

    Raises:
        InvalidArgumentError: If there is none, or more than one.
    """
    paths = dict(layer_paths(model))
    found = [path for path in paths if path == name] or [path for path in paths if path.endswith(f"/{name}")]
    if len(found) == 1:
        return paths[found[0]]
    if found:
        raise InvalidArgumentError(argument, f"a name of one layer, such as one of {found[:5]}", name)
    near = difflib.get_close_matches(name, paths, n=5, cutoff=0.4) or list(paths)[-5:]
    raise InvalidArgumentError(argument, f"the name of a layer of {model.name!r}, such as {near}", name)


def layer_paths(model: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """All layers and operations of a network and the networks within it, with their paths."""
    parts = getattr(model, "operations", None)
    if parts is None:
        parts = model._flatten_layers(include_self=False, recursive=False) if isinstance(model, keras.Layer) else ()
    for part in parts:
        path = f"{above}{part.name}"
        yield path, part
        yield from layer_paths(part, f"{path}/")
