"""What calls what in a Keras model: every use of a layer or operation, in the order in which they run, nested models
opened.

Invariant: tracing goes through `keras.models.clone_model`, Keras's public way to walk a graph, makes no weights, and
leaves the model as it was; replaying a trace with its own operations gives the same function. Left out: what a layer
does inside its own `call`, and subclassed models, which have no graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from tfcompress.errors import ModelError


@dataclasses.dataclass(frozen=True)
class Ref:
    """The tensor at `position` among the flattened results of `Trace.calls[call]`."""

    call: int
    position: int = 0


@dataclasses.dataclass(frozen=True)
class Call:
    """One use of a layer or operation.

    Args:
        operation: The layer (or `keras.ops` operation) of the traced model; an `InputLayer` for a model input.
        args: Its positional arguments, with a `Ref` in the place of each tensor.
        kwargs: Its keyword arguments, likewise.
    """

    operation: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def sources(self) -> tuple[Ref, ...]:
        """The tensors that come in."""
        return tuple(leaf for leaf in keras.tree.flatten((self.args, dict(self.kwargs))) if isinstance(leaf, Ref))

    def arguments(self, value_of: Callable[[Ref], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Its positional and keyword arguments, with the value of each tensor in the place of its `Ref`."""
        return keras.tree.map_structure(
            lambda leaf: value_of(leaf) if isinstance(leaf, Ref) else leaf, (self.args, dict(self.kwargs))
        )


@dataclasses.dataclass(frozen=True)
class Trace:
    """All calls of a model in the order of their execution; those of its inputs come first.

    Args:
        name: The model's name.
        calls: The calls.
        inputs: A `Ref` for each input, in the model's own structure (one, a list, or a dict).
        outputs: A `Ref` for each output, likewise.
    """

    name: str
    calls: tuple[Call, ...]
    inputs: Any
    outputs: Any

    def consumers(self, index: int) -> tuple[int, ...]:
        """The calls that take a result of call `index`."""
        return tuple(at for at, call in enumerate(self.calls) if any(ref.call == index for ref in call.sources))


def has_graph(model: keras.Model) -> bool:
    """Whether a model is functional, or Sequential with a known input shape."""
    return hasattr(model, "operations") or (isinstance(model, keras.Sequential) and model.built)


def require_functional(model: keras.Model) -> keras.Model:
    """Returns `model`, or the functional form of a Sequential one over the same layers.

    Raises:
        ModelError: If the model is subclassed, or not built yet.
    """
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise ModelError(f"Sequential model {model.name!r} has no input shape yet. Add a `keras.Input` first.")
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if not hasattr(model, "operations"):
        raise ModelError(
            f"Model {model.name!r} must be a functional or Sequential model, since its graph is read. Received: the "
            f"subclassed model {type(model).__name__}. Build it with `keras.Model(inputs, outputs)`, "
            "or let `tfcompress.load(model)` trace it."
        )
    return model


def trace(model: keras.Model, *, allow_equal_names: bool = False) -> Trace:
    """Lists the calls of a functional or Sequential model.

    Args:
        model: A built model with a static graph.
        allow_equal_names: Whether two layers, of nested models, may have one name. Whoever knows layers by their names
            does not allow it.

    Raises:
        ModelError: If the model has no graph, or two of its layers have one name.

    Example:
        >>> inputs = keras.Input((4,), name="x")
        >>> model = keras.Model(inputs, keras.layers.Dense(2, name="y")(inputs))
        >>> [call.operation.name for call in trace(model).calls]
        ['x', 'y']
    """
    model = require_functional(model)
    if model.compiled:
        # Keras would compile the copy too, and look for a user's own loss by its name.
        model = keras.Model(model.input, model.output, name=model.name)
    originals = {operation.name: operation for operation in model.operations}
    calls: list[Call] = []
    refs: dict[int, Ref] = {}
    alive: list[Any] = []  # Tensors are known by identity, so none may be collected and its id given to another.

    def note(result: Any, made: Sequence[Ref]) -> None:
        for tensor, ref in zip(keras.tree.flatten(result), made, strict=True):
            refs[id(tensor)] = ref
            alive.append(tensor)

    def on_call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        result = operation(*args, **kwargs)
        original = originals[operation.name]
        arguments = keras.tree.map_structure(
            lambda leaf: refs[id(leaf)] if isinstance(leaf, keras.KerasTensor) else leaf, (args, kwargs)
        )
        if isinstance(original, keras.Model):
            inner = trace(original, allow_equal_names=True)
            note(result, splice(inner, Call(original, *arguments), calls))
        else:
            calls.append(Call(original, *arguments))
            note(result, [Ref(len(calls) - 1, at) for at in range(len(keras.tree.flatten(result)))])
        return result

    tensors = []
    for tensor in model.inputs:
        # A tensor is not always called as the layer that it comes from.
        (layer,) = (op for op in model.operations if isinstance(op, keras.layers.InputLayer) and op.output is tensor)
        tensors.append(_new_input(layer))
        calls.append(Call(layer))
        note(tensors[-1], [Ref(len(calls) - 1)])
    try:
        clone = keras.models.clone_model(
            model,
            call_function=on_call,
            clone_function=_StandIn,
            input_tensors=keras.tree.pack_sequence_as(model.input, tensors),
        )
    except ModelError:
        raise
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"The graph of model {model.name!r} cannot be read, since Keras cannot copy one of its layers. Give it a "
            f"`get_config` of plain values and registered functions. {error}"
        ) from error
    if not allow_equal_names:
        _refuse_equal_names(model, calls)
    inputs, outputs = (
        keras.tree.map_structure(lambda tensor: refs[id(tensor)], side) for side in (clone.input, clone.output)
    )
    return Trace(model.name, tuple(calls), inputs, outputs)


def splice(inner: Trace, call: Call, calls: list[Call]) -> list[Ref]:
    """Appends the calls of a model that `call` uses as a layer to `calls`, and returns where its outputs are."""
    inner_inputs, inner_outputs = keras.tree.flatten(inner.inputs), keras.tree.flatten(inner.outputs)
    moved: dict[Ref, Ref] = dict(zip(inner_inputs, _sources_of_inputs(inner, call), strict=True))
    # How many results a call has is known only to its consumers; positions stay as they are.
    used: dict[int, set[Ref]] = {at: {Ref(at)} for at in range(len(inner.calls))}
    for ref in [*(ref for one in inner.calls for ref in one.sources), *inner_outputs]:
        used[ref.call].add(ref)

    def move(ref: Ref) -> Ref:
        return moved.get(ref, ref)

    for at, one in enumerate(inner.calls):
        if Ref(at) in moved:
            continue
        calls.append(Call(one.operation, *one.arguments(move)))
        moved |= {ref: Ref(len(calls) - 1, ref.position) for ref in used[at]}
    return [moved[ref] for ref in inner_outputs]


def _sources_of_inputs(inner: Trace, call: Call) -> Sequence[Ref]:
    """What a call gives to each input of a model; a dict gives by name also to a model with a list of inputs."""
    given = call.args[0] if call.args else None
    if isinstance(given, Mapping) and not isinstance(inner.inputs, Mapping):
        names = [inner.calls[ref.call].operation.name for ref in keras.tree.flatten(inner.inputs)]
        if set(names) <= set(given):
            return [given[name] for name in names]
    return call.sources


def replay(
    traced: Trace,
    call_function: Callable[[int, Call, tuple, dict], Any],
    on_input: Callable[[int, Any], Any] | None = None,
    *,
    new_input: Callable[[Any], Any] | None = None,
    new_model: Callable[..., Any] = keras.Model,
) -> Any:
    """Builds a functional model by going through the calls again.

    Args:
        traced: The calls.
        call_function: `(index, call, args, kwargs) -> result`, with real tensors in `args` and `kwargs`; it may call
            `call.operation`, another layer, or several.
        on_input: `(index, tensor) -> tensor` for what follows each input, such as a rescaling.
        new_input: Makes the tensor for an input layer; by default a `keras.Input` of its shape, dtype and name.
        new_model: Makes the model, `(inputs, outputs, name=...)`; by default a `keras.Model`.

    Returns:
        A new functional model of the same name, with the same inputs.
    """
    results: list[list[Any]] = []
    inputs: dict[Ref, Any] = {}
    input_refs = set(keras.tree.flatten(traced.inputs))

    def real(ref: Ref) -> Any:
        return results[ref.call][ref.position]

    for index, call in enumerate(traced.calls):
        if Ref(index) in input_refs:
            tensor = (new_input or _new_input)(call.operation)
            inputs[Ref(index)] = tensor
            results.append([tensor if on_input is None else on_input(index, tensor)])
        else:
            args, kwargs = call.arguments(real)
            results.append(keras.tree.flatten(call_function(index, call, args, kwargs)))
    return new_model(
        keras.tree.map_structure(inputs.__getitem__, traced.inputs),
        keras.tree.map_structure(real, traced.outputs),
        name=traced.name,
    )


class _StandIn(keras.Operation):
    """Takes the place of a layer while its graph is walked, so that no weights are made."""

    def __init__(self, layer: keras.layers.Layer):
        super().__init__(name=layer.name)
        self._layer = layer

    def call(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self._layer.compute_output_spec(*args, **kwargs)


def _refuse_equal_names(model: keras.Model, calls: Sequence[Call]) -> None:
    """Layers are known by their names: to recipes, to masks, and to whoever rewrites the graph."""
    by_name: dict[str, Any] = {}
    for call in calls:
        if by_name.setdefault(call.operation.name, call.operation) is not call.operation:
            raise ModelError(
                f"The layers of a model and of the models in it must have names of their own. Received: two layers "
                f"{call.operation.name!r} in model {model.name!r}. Give one of them another `name`, or use "
                "`tfcompress.load(model)`, which opens nested models and names their layers apart."
            )


def _new_input(layer: keras.layers.InputLayer) -> Any:
    return keras.Input(batch_shape=layer.batch_shape, dtype=layer.dtype, name=layer.name)
