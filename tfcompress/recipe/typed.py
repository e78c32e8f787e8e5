"""Plain values to typed ones: a mapping becomes a frozen dataclass, or the checked arguments of a function.

Invariant: what comes out has the types that the annotations promise; every mismatch is a `RecipeError` that names the
place, the path and what is allowed. Left out: ranges, which each class checks itself in `__post_init__`, and types that
YAML cannot write (a callable, a loss), which are skipped where a union offers something else.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Union

from tfcompress.errors import InvalidArgumentError
from tfcompress.recipe.source import KeyPath, Source

_SCALARS = {bool: "true or false", int: "an integer", float: "a number", str: "a string", type(None): "null"}


@dataclasses.dataclass(frozen=True)
class _Key:
    """One key that a mapping may have."""

    name: str
    type: Any
    required: bool
    choices: Mapping[str, Any] | None = None


def check_arguments(
    target: Callable[..., Any],
    arguments: Mapping[str, Any],
    path: KeyPath = (),
    source: Source | None = None,
    *,
    given: Mapping[str, Any] = types.MappingProxyType({}),
) -> Any:
    """Checks a mapping against what a frozen dataclass or a function takes.

    A dataclass field with `metadata={"choices": {"name": Class, ...}}` takes `name` or `{name: {arguments}}` and
    becomes an instance of that class. A class with a `from_recipe(value, path, source)` builds itself. At most one
    field with `metadata={"rest": True}`, a mapping, takes all keys that are not fields.

    Args:
        target: The dataclass to build, or the function whose arguments to check.
        arguments: The mapping as the recipe has it.
        path: Where in the recipe the mapping stands.
        source: The recipe's source, for lines in errors.
        given: Arguments that the caller passes itself, by name: they are no keys of the recipe.

    Returns:
        An instance of the dataclass; for a function the dictionary of its keyword arguments, `given` included.

    Raises:
        RecipeError: For an unknown or missing key, a wrong type, or a value that the class refuses.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Pool:
        ...     size: int
        ...     mode: Literal["max", "mean"] = "max"
        >>> check_arguments(Pool, {"size": 2})
        Pool(size=2, mode='max')
        >>> check_arguments(Pool, {"siz": 2}, ("pool",))
        Traceback (most recent call last):
        tfcompress.errors.RecipeError: recipe: `pool.siz` is not a key; did you mean `size`? Allowed: size, mode.
    """
    source = source or Source()
    if not isinstance(arguments, Mapping):
        raise source.error(path, f"must be a mapping of keys to values. Received: {arguments!r}.")
    keys = {name: key for name, key in _keys(target).items() if name not in given}
    rest = _rest_field(target)
    built: dict[str, Any] = dict(given)
    others: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in keys:
            built[name] = _build_key(keys[name], value, (*path, name), source)
        elif rest is not None:
            others[name] = value
        else:
            raise _unknown_key(name, keys, path, source)
    for key in keys.values():
        if key.required and key.name not in built:
            raise source.error((*path, key.name), f"is missing; it must be {_describe(key)}.")
    if rest is not None:
        built[rest] = others
    return _construct(target, built, path, source) if dataclasses.is_dataclass(target) else built


def _keys(target: Callable[..., Any]) -> dict[str, _Key]:
    hints = typing.get_type_hints(target)
    if dataclasses.is_dataclass(target):
        return {
            field.name: _Key(
                field.name,
                hints[field.name],
                field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
                field.metadata.get("choices"),
            )
            for field in dataclasses.fields(target)
            if field.init and not field.metadata.get("rest")
        }
    return {
        name: _Key(name, hints.get(name, Any), parameter.default is parameter.empty)
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }


def _rest_field(target: Callable[..., Any]) -> str | None:
    if not dataclasses.is_dataclass(target):
        return None
    return next((field.name for field in dataclasses.fields(target) if field.metadata.get("rest")), None)


def _construct(target: Callable[..., Any], built: dict[str, Any], path: KeyPath, source: Source) -> Any:
    try:
        return target(**built)
    except InvalidArgumentError as error:
        name = error.name.rpartition(".")[2]
        rest = built.get(_rest_field(target) or "", {})
        known = name in built or name in rest or name in _keys(target)
        # What lies deeper than the keys of this level is called what its own check calls it.
        deeper = not known and "." in error.name
        message = f"is not right: {error}" if deeper else f"must be {error.expected}. Received: {error.received!r}."
        raise source.error((*path, name) if known else path, message) from error


def _unknown_key(name: str, keys: Mapping[str, _Key], path: KeyPath, source: Source) -> Exception:
    near = difflib.get_close_matches(str(name), keys, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else "."
    return source.error((*path, name), f"is not a key{hint} Allowed: {', '.join(keys) or 'none'}.")


def _build_key(key: _Key, value: Any, path: KeyPath, source: Source) -> Any:
    if key.choices is None or (value is None and type(None) in typing.get_args(key.type)):
        return build(key.type, value, path, source)
    name, arguments = named(value, key.choices, path, source)
    return check_arguments(key.choices[name], arguments, (*path, name), source)


def named(value: Any, names: Iterable[str], path: KeyPath, source: Source) -> tuple[str, Mapping[str, Any]]:
    """Takes `name` or `{name: {arguments}}` apart.

    Args:
        value: The plain value.
        names: The names that are allowed.
        path: Where in the recipe the value stands.
        source: The recipe's source.

    Returns:
        The name and the arguments, which are empty where none are given.

    Raises:
        RecipeError: If the value is of another form, or its name is not one of `names`.
    """
    allowed = list(names)
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise source.error(path, f"must be {_named_phrase(allowed)}. Received: {value!r}.")
    ((name, arguments),) = value.items()
    if name not in allowed:
        near = difflib.get_close_matches(str(name), allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise source.error(path, f"must be {_named_phrase(allowed)}. Received: {name!r}{hint}")
    return name, {} if arguments is None else arguments


def build(annotation: Any, value: Any, path: KeyPath, source: Source) -> Any:
    """The value as the type of `annotation`: scalars, literals, tuples, lists, mappings, unions and dataclasses.

    Args:
        annotation: The type, as `typing.get_type_hints` gives it.
        value: The plain value.
        path: Where in the recipe it stands.
        source: The recipe's source.

    Raises:
        RecipeError: If the value is not of that type.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return _build_union(annotation, value, path, source)
    if hasattr(annotation, "from_recipe"):
        return annotation.from_recipe(value, path, source)
    if dataclasses.is_dataclass(annotation) and isinstance(value, Mapping):
        return check_arguments(typing.cast(Callable, annotation), value, path, source)
    if annotation is Any or annotation is object:
        return value
    if origin in (tuple, list, Sequence) and isinstance(value, (list, tuple)):
        return _build_sequence(origin, arguments, value, path, source)
    if (origin or annotation) in (dict, Mapping) and isinstance(value, Mapping):
        of = arguments[1] if arguments else Any
        return {key: build(of, item, (*path, key), source) for key, item in value.items()}
    if origin is Literal and any(value == choice and type(value) is type(choice) for choice in arguments):
        return value
    if annotation is float and type(value) is int:
        return float(value)
    if annotation in _SCALARS and type(value) is annotation:
        return value
    raise source.error(path, f"must be {_phrase(annotation)}. Received: {value!r}.")


def _build_sequence(origin: Any, arguments: tuple, value: Sequence, path: KeyPath, source: Source) -> Any:
    if origin is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise source.error(path, f"must be a list of {len(arguments)} values. Received: {value!r}.")
        kinds: Sequence = arguments
    else:
        kinds = [arguments[0] if arguments else Any] * len(value)
    items = [
        build(kind, item, (*path, index), source) for index, (kind, item) in enumerate(zip(kinds, value, strict=True))
    ]
    return items if origin is list else tuple(items)


def _build_union(annotation: Any, value: Any, path: KeyPath, source: Source) -> Any:
    """The first member that the value's shape fits, so that an error inside it names the key and not the union."""
    members = [member for member in typing.get_args(annotation) if _writable(member)]
    fitting = [member for member in members if _has_shape(member, value)]
    if not fitting:
        raise source.error(path, f"must be {_phrase(annotation)}. Received: {value!r}.")
    # Of two dataclasses, the one whose required keys are there.
    complete = [member for member in fitting if not dataclasses.is_dataclass(member) or _has_required(member, value)]
    return build((complete or fitting)[0], value, path, source)


def _has_required(target: Any, value: Mapping[str, Any]) -> bool:
    return all(key.name in value for key in _keys(target).values() if key.required)


def _has_shape(annotation: Any, value: Any) -> bool:
    kind = typing.get_origin(annotation) or annotation
    if annotation is Any or annotation is object:
        return True
    if kind is Literal:
        return value in typing.get_args(annotation)
    if dataclasses.is_dataclass(kind) or kind in (dict, Mapping):
        return isinstance(value, Mapping)
    if kind in (tuple, list, Sequence):
        return isinstance(value, (list, tuple))
    return type(value) is kind or (kind is float and type(value) is int)


def _writable(annotation: Any) -> bool:
    """Whether YAML can write a value of this type."""
    kind = typing.get_origin(annotation) or annotation
    return (
        kind in _SCALARS
        or kind in (Any, object, Literal, tuple, list, Sequence, dict, Mapping, Union, types.UnionType)
        or dataclasses.is_dataclass(kind)
    )


def _describe(key: _Key) -> str:
    return _phrase(key.type) if key.choices is None else _named_phrase(key.choices)


def _named_phrase(names: Iterable[str]) -> str:
    return f"one of {', '.join(names)}, alone or as `name: {{arguments}}`"


def _phrase(annotation: Any) -> str:
    """The type as the rest of the sentence "must be ..."."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_phrase(member) for member in arguments if _writable(member))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (tuple, list, Sequence):
        return f"a list of {len(arguments)} values" if origin is tuple and arguments[-1] is not Ellipsis else "a list"
    if dataclasses.is_dataclass(annotation) or (origin or annotation) in (dict, Mapping):
        return "a mapping of keys to values"
    return _SCALARS.get(annotation, "of another type")
