"""The folder of a run: what each stage left there, and whether it can be used again.

Invariant: a stage is finished exactly when its `stage.json` exists, since that is written last; a finished stage is
used again only under its own key, which covers everything that its result depends on. Left out: what a stage does.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import keras

from tfcompress import files
from tfcompress.errors import RecipeError


@dataclasses.dataclass(frozen=True)
class StageStore:
    """One stage's folder.

    Args:
        path: `DIR/stages/NN-name`.
        key: The `content_key` of everything that the stage's result depends on.
    """

    path: Path
    key: str

    @property
    def checkpoint(self) -> Path:
        """Where the stage's training is kept while it runs."""
        return self.path / "training.npz"

    @property
    def model_path(self) -> Path:
        return self.path / "model.keras"

    def open(self, overwrite: bool) -> None:
        """Makes the folder ready for this stage.

        Raises:
            RecipeError: If it holds another stage's result or training and `overwrite` is false.
        """
        found = self._found_key()
        if found not in (None, self.key):
            if not overwrite:
                raise RecipeError(
                    f"{str(self.path)!r} holds the result of another recipe, data set or version. Pass --overwrite to "
                    "replace it (stages before it that have not changed are kept), or choose another --out."
                )
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        files.write_text(self.path / "key", self.key + "\n")

    def load(self) -> dict[str, Any] | None:
        """What `save` recorded, or `None` if the stage is not finished."""
        record = self.path / "stage.json"
        return json.loads(record.read_text()) if record.exists() else None

    def load_model(self) -> keras.Model:
        """The stage's model."""
        return keras.saving.load_model(self.model_path, compile=False, safe_mode=True)

    def save_model(self, model: keras.Model) -> None:
        """Writes the stage's model, whole."""
        with files.atomic_path(self.model_path) as temporary:
            model.save(temporary)

    def save(self, record: dict[str, Any]) -> None:
        """Finishes the stage with what it measured."""
        files.write_json(self.path / "stage.json", record)
        self.checkpoint.unlink(missing_ok=True)

    def _found_key(self) -> str | None:
        key = self.path / "key"
        return key.read_text().strip() if key.exists() else None
