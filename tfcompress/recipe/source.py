"""Recipe text as plain values that remember the line they were written on.

Invariant: every value of a `Source` can be traced to `file:line`, or to the `--set` that put it there, so that each
error about a recipe can say where to look. Left out: what the values mean, which is `typed.py` and `specs.py`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tfcompress.errors import RecipeError

KeyPath = tuple[str | int, ...]

_NAMED_LISTS = ("stages", "export")  # lists of `name: {arguments}`, where a name can stand for its index


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also reads `1e-3` as the number it is (YAML 1.1 wants `1.0e-3`)."""


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the values of a recipe come from.

    Args:
        name: What errors call the recipe: its file's path as the user gave it.
        values: The recipe as mappings, lists and scalars.
        places: For each path into `values`, where it was written, such as `configs/digits.yaml:12`.
    """

    name: str = "recipe"
    values: Any = None
    places: Mapping[KeyPath, str] = dataclasses.field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """Where the value at `path` was written, or the nearest value around it that was written at all."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.name

    def error(self, path: KeyPath, message: str) -> RecipeError:
        """The error to raise for the value at `path`; `message` goes on after the path's name."""
        subject = f"`{dotted(path)}`" if path else "the recipe"
        return RecipeError(f"{self.place(path)}: {subject} {message}")


def dotted(path: KeyPath) -> str:
    """The path as its user writes it in `--set`.

    Example:
        >>> dotted(("stages", 1, "prune", "train"))
        'stages.1.prune.train'
    """
    return ".".join(map(str, path))


def read_source(text: str, name: str = "recipe", overrides: Sequence[str] = ()) -> Source:
    """Reads YAML text, then applies `key.path=value` overrides in their order.

    Args:
        text: The recipe as YAML.
        name: What errors call it.
        overrides: Strings such as `stages.prune.train.epochs=3`; each value is read as YAML. A stage or an export is
            named by its index or, where that is unique, by its name.

    Raises:
        RecipeError: If the text is not YAML, a key appears twice or is not a plain word, or an override does not fit.
    """
    places: dict[KeyPath, str] = {}
    values = _compose(text, name, places)
    _normalize(values)
    for override in overrides:
        _override(values, places, override)
    return Source(name, values, places)


def _compose(text: str, name: str, places: dict[KeyPath, str]) -> dict[str, Any]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        values = {} if node is None else _plain(loader, node, (), name, places, ())
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{name}{line}: the recipe is not valid YAML: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: the recipe is not valid YAML: {error}.") from error
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise RecipeError(f"{name}: a recipe must be a mapping of keys to values. Received: {values!r}.")
    return values


def _plain(loader: _Loader, node: yaml.Node, path: KeyPath, name: str, places: dict[KeyPath, str], above: tuple) -> Any:
    """The plain value of `node`; notes the place of it and of everything in it."""
    place = places.setdefault(path, f"{name}:{node.start_mark.line + 1}")
    if node in above:
        raise RecipeError(f"{place}: `{dotted(path)}` contains itself through a YAML alias.")
    above = (*above, node)
    if not isinstance(node, yaml.ScalarNode) and not node.tag.endswith((":map", ":seq")):
        raise RecipeError(f"{place}: `{dotted(path)}` has the tag {node.tag!r}; a recipe has plain values only.")
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated_keys(node, path, name)
        loader.flatten_mapping(node)  # `<<: *defaults`: merged keys come first, so that the node's own ones win
        values = {}
        for key_node, value_node in node.value:
            key = key_node.value
            inner = (*path, key)
            places[inner] = f"{name}:{key_node.start_mark.line + 1}"
            values[key] = _plain(loader, value_node, inner, name, places, above)
        return values
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, item, (*path, index), name, places, above) for index, item in enumerate(node.value)]
    return loader.construct_object(node, deep=True)


def _refuse_repeated_keys(node: yaml.MappingNode, path: KeyPath, name: str) -> None:
    lines: dict[str, int] = {}
    for key_node, _ in node.value:
        line = key_node.start_mark.line + 1
        where = f"{name}:{line}: "
        if not isinstance(key_node, yaml.ScalarNode):
            raise RecipeError(f"{where}a key must be a plain word, such as `epochs`. Received: a list or a mapping.")
        if key_node.value in lines:
            full = dotted((*path, key_node.value))
            raise RecipeError(f"{where}`{full}` appears twice, first on line {lines[key_node.value]}; remove one.")
        lines[key_node.value] = line


def _normalize(values: dict[str, Any]) -> None:
    """Writes `- quantize` and `- quantize:` as `- quantize: {}`, so that overrides find a mapping to put keys into."""
    for key in _NAMED_LISTS:
        items = values.get(key)
        if isinstance(items, list):
            for index, item in enumerate(items):
                if isinstance(item, str):
                    items[index] = {item: {}}
                elif isinstance(item, dict):
                    items[index] = {name: {} if inner is None else inner for name, inner in item.items()}


def _override(values: dict[str, Any], places: dict[KeyPath, str], override: str) -> None:
    """Puts one override into `values` and `places`."""
    place = f"--set {override}"
    key, separator, text = override.partition("=")
    keys = key.strip().split(".")
    if not separator or not all(keys):
        raise RecipeError(f"{place}: an override must be key.path=value, such as stages.prune.train.epochs=3.")
    try:
        value = yaml.load(text, Loader=_Loader)  # a subclass of the safe loader
    except yaml.YAMLError as error:
        raise RecipeError(f"{place}: the value is not valid YAML. Received: {text!r}.") from error
    path = _resolve(values, keys, place)
    target: Any = values
    for step in path[:-1]:
        if isinstance(target, dict) and target.get(step) is None:
            target[step] = {}
        target = target[step]
    target[path[-1]] = value
    _normalize(values)
    for known in [known for known in places if known[: len(path)] == path]:
        del places[known]
    places[path] = place


def _resolve(values: dict[str, Any], keys: list[str], place: str) -> KeyPath:
    """The path that the keys of an override mean: `stages.prune.train` is `("stages", 1, "prune", "train")`."""
    path: KeyPath = ()
    target: Any = values
    rest = list(keys)
    while rest:
        key = rest.pop(0)
        if isinstance(target, list):
            index = _index(target, key, path, place)
            path, target = (*path, index), target[index]
            if path[0] in _NAMED_LISTS and len(path) == 2 and isinstance(target, dict) and len(target) == 1:
                (name,) = target
                if rest or key == name:
                    path, target = (*path, name), target[name]
                    rest = rest[1:] if rest[:1] == [name] else rest
        elif isinstance(target, dict) or target is None:
            path, target = (*path, key), (target or {}).get(key)
        else:
            raise RecipeError(f"{place}: `{dotted(path)}` is {target!r}, which has no key `{key}`.")
    return path


def _index(items: list, key: str, path: KeyPath, place: str) -> int:
    """The index in `items` that `key` means: a number, or the name of the one item `{name: ...}`."""
    named = [index for index, item in enumerate(items) if isinstance(item, dict) and list(item) == [key]]
    if len(named) == 1:
        return named[0]
    if key.isdigit() and int(key) < len(items):
        return int(key)
    here = f"{place}: `{dotted(path)}`"
    if named:
        raise RecipeError(f"{here} has `{key}` {len(named)} times; name it by its index, one of {named}.")
    names = [
        f"{index} ({', '.join(item)})" if isinstance(item, dict) else str(index) for index, item in enumerate(items)
    ]
    raise RecipeError(
        f"{here} must be followed by one of: {', '.join(names) or 'nothing, it is empty'}. Received: {key!r}."
    )
