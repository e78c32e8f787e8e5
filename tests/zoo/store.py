"""Results of cells on disk: one JSON file for each model and column.

Invariant: a result is current only for the code that made it: the package, the zoo's checks, the entry and the column,
and the versions of the libraries. Left out: anything about how a cell is run.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import tfcompress
from tfcompress import files

STATUSES = ("pass", "stated", "FAIL", "skipped")
_PACKAGES = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "keras-hub")
# What a table of models or columns says of a cell is in the cell's own key, so that a new line spoils no other cell.
_NOT_IN_CODE = {"models.py", "columns.py", "run.py", "store.py", "table.py", "command.py", "memory.py", "__main__.py"}


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one cell.

    Args:
        model: Name of the model.
        column: Name of the column.
        status: One of `STATUSES`.
        text: The figure of a pass; the reason of anything else.
        seconds: What the check took, without imports and the building of the model.
        peak_gb: Largest resident memory seen while the cell ran, of the worker and its children, in GB.
        key: `cell_key` of the code that made it.
        details: The traceback of a failure, or the last lines of a process that died.
    """

    model: str
    column: str
    status: str
    text: str
    seconds: float = 0.0
    peak_gb: float = 0.0
    key: str = ""
    details: str = ""


class Store:
    """The results in a folder.

    Args:
        folder: Where they are; made when the first one is saved.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def save(self, result: Result) -> None:
        files.write_json(self._path(result.model, result.column), dataclasses.asdict(result))

    def load(self, model: str, column: str) -> Result | None:
        """The stored result, of whatever code, or None."""
        path = self._path(model, column)
        if not path.is_file():
            return None
        return Result(**json.loads(path.read_text(encoding="utf-8")))

    def save_all(self, path: Path) -> None:
        """Writes all results and the environment into one file."""
        found = [json.loads(one.read_text(encoding="utf-8")) for one in sorted(self.folder.glob("results/*/*.json"))]
        files.write_json(path, {"environment": self.load_environment(), "results": found})

    def fill(self, path: Path) -> None:
        """Takes what is not here yet from a file of `save_all`, if there is one."""
        if not path.is_file():
            return
        known = json.loads(path.read_text(encoding="utf-8"))
        for fields in known["results"]:
            if self.load(fields["model"], fields["column"]) is None:
                self.save(Result(**fields))
        if not self.load_environment():
            self.save_environment(known["environment"])

    def save_environment(self, environment: dict[str, Any]) -> None:
        files.write_json(self.folder / "environment.json", environment)

    def load_environment(self) -> dict[str, Any]:
        path = self.folder / "environment.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def _path(self, model: str, column: str) -> Path:
        return self.folder / "results" / model / f"{column}.json"


def code_key() -> str:
    """A key of everything that a result depends on, but for its own entry and column."""
    package, zoo = Path(tfcompress.__file__).parent, Path(__file__).parent
    sources = [path for path in sorted(package.rglob("*")) if path.suffix in (".py", ".npz")]
    sources += [path for path in sorted(zoo.glob("*.py")) if path.name not in _NOT_IN_CODE]
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    return files.content_key(versions, *[[path.name, files.file_key(path)] for path in sources])


def cell_key(code: str, entry: Any, column: Any) -> str:
    """The key of one cell: the code's, the entry's and the column's."""
    return files.content_key(code, repr(entry), repr(column))
