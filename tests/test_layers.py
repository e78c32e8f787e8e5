"""The rooms of the design: who may import whom, and what may be imported only inside a function."""

import ast
from pathlib import Path

import pytest

import tfcompress

ROOT = Path(tfcompress.__file__).parent
# The line in BUILD.md, one group to a level.
ORDER = [
    {"__init__", "__main__", "cli", "command_flags", "command_help"},
    {"search", "report"},
    {"pipeline", "recipe"},
    {"techniques", "export"},
    {"training", "measure", "train_settings", "teach_settings"},
    {"graph", "bridge", "data", "models", "layers"},
    {"files", "errors"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
STRANGERS = ({"techniques", "export"},)  # rooms of one level that don't know each other
LATE = {"tensorflow_datasets", "tensorflow_model_optimization", "optuna", "matplotlib", "jinja2"}
WITHOUT_TENSORFLOW = (
    "__init__.py", "__main__.py", "cli.py", "command_flags.py", "command_help.py",
    "errors.py", "files.py", "train_settings.py", "teach_settings.py", "recipe",
)  # fmt: skip
HEAVY = {"tensorflow", "keras", "tf_keras", "ai_edge_litert", *LATE}

FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    """Dotted names that a file imports, those for type checking only left out."""
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    return found


def room(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def own_imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, without the package's name."""
    return {name.removeprefix("tfcompress.") for name in imports(path) if name.startswith("tfcompress.")}


def lines(names: set[str]) -> str:
    return ", ".join(sorted(names))


def test_every_room_has_its_place():
    assert {room(path) for path in FILES} <= set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_down(path):
    own = room(path)
    for name in own_imports(path):
        target = name.partition(".")[0]
        if target not in LEVEL:
            assert own in ORDER[0], f"{path} imports {name} through the package; import it from its module"
            continue
        assert LEVEL[target] >= LEVEL[own], f"{path} imports {name}, which is above it"
        assert not any({own, target} == pair for pair in STRANGERS), f"{path} imports {name}"


def test_rooms_do_not_import_each_other_in_circles():
    known = {name: set() for name in LEVEL}
    for path in FILES:
        known[room(path)] |= {name.partition(".")[0] for name in own_imports(path)} & set(LEVEL) - {room(path)}
    while free := [name for name, targets in known.items() if not targets & set(known)]:
        for name in free:
            del known[name]
    assert not known, f"circles among {lines(set(known))}"


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "techniques"], ids=str)
def test_techniques_do_not_import_each_other(path):
    unit = path.parts[1].removesuffix(".py")
    shared = {"base", "schedules", "constraints", "kernels", "labelled", "layer_names", "listening", "masks"}
    shared |= {"shared_values"}
    for name in own_imports(path):
        parts = name.split(".")
        if parts[0] == "techniques" and len(parts) > 1:
            assert unit == "__init__" or parts[1] in {unit, *shared}, f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_heavy_packages_are_imported_late(path):
    loaded = {name.partition(".")[0] for name in imports(path, top_only=True)}
    assert not loaded & LATE, f"{path} imports {lines(loaded & LATE)} outside of a function"
    if str(path).startswith(WITHOUT_TENSORFLOW):
        assert not loaded & HEAVY, f"{path} imports {lines(loaded & HEAVY)} outside of a function"


def test_the_walk_sees_what_it_must():
    assert "yaml" in {name.partition(".")[0] for name in imports(Path("recipe/source.py"), top_only=True)}
    assert "rich.console.Console" in imports(Path("cli.py"))
    assert "rich.console.Console" not in imports(Path("cli.py"), top_only=True)
    assert "tfcompress.data.Dataset" not in imports(Path("cli.py"))
