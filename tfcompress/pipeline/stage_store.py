"""The folder of a run: what each stage left there, and whether it can be used again.

Invariant: a stage is finished exactly when its `stage.json` exists, since that is written last; a finished stage is
used again only under its own key, which covers everything that its result depends on. Left out: what a stage does.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable
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
        if found != self.key:
            if found is not None and not overwrite:
                raise RecipeError(
                    f"{str(self.path)!r} holds the result of another recipe, data set or version. Pass --overwrite to "
                    "replace it (stages before it that have not changed are kept), or choose another --out."
                )
            # Also without a key: an earlier removal may have been interrupted half way.
            if self.path.exists():
                shutil.rmtree(self.path)
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


def refuse_other_stages(folder: Path, names: Iterable[str], overwrite: bool) -> None:
    """Makes sure that `folder` has no stage that the recipe doesn't have, which would pass for one of its results.

    Args:
        folder: `DIR/stages`.
        names: Names of the recipe's stages.
        overwrite: Whether to remove such stages.

    Raises:
        RecipeError: If there is one and `overwrite` is false.
    """
    own = {stage_path(folder, name) for name in names}
    others = sorted(key.parent for key in folder.glob("*/key") if key.parent not in own)
    if others and not overwrite:
        raise RecipeError(
            f"{str(folder)!r} holds stages that this recipe does not have: {', '.join(path.name for path in others)}. "
            "Pass --overwrite to remove them, or choose another --out."
        )
    for path in others:
        shutil.rmtree(path)


def stage_path(folder: Path, name: str) -> Path:
    """The folder of a stage in `DIR/stages`; teacher and student come before the numbered ones."""
    return folder / (name if name[0].isdigit() else f"00-{name}")
