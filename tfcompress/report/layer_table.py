"""What each layer loses by int8, as files: the table, the picture, and the file of mixed precision if one was chosen.

Invariant: table and picture say the same as the JSON beside them. Left out: measuring
(`tfcompress.export.sensitivity`).
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tfcompress import files
from tfcompress.report.plots import layer_sensitivity

if TYPE_CHECKING:
    from tfcompress.export.mixed_precision import MixedPrecision
    from tfcompress.export.sensitivity import Sensitivity


def write_sensitivity(found: Sensitivity, folder: str | os.PathLike, mixed: MixedPrecision | None = None) -> list[Path]:
    """Writes `sensitivity.json`, `.txt` and `.png`, and `mixed.tflite` if there is one, into a folder.

    Args:
        found: What `tfcompress.sensitivity` gave.
        folder: Where to write; it is made.
        mixed: What `choose` gave.

    Returns:
        The paths of the files.

    Example:
        >>> found = tfc.sensitivity(model, data)   # doctest: +SKIP
        >>> write_sensitivity(found, "sensitivity", found.choose(max_accuracy_drop=0.002))   # doctest: +SKIP
    """
    folder = Path(folder)
    content = {
        "layers": found.rows(),
        "int8": {"snr_db": found.int8.snr_db, "top1": found.int8.top1},
        "in_float_anyway": list(found.in_float_anyway),
        "mixed": None if mixed is None else mixed.to_dict(),
    }
    files.write_json(folder / "sensitivity.json", content)
    files.write_text(folder / "sensitivity.txt", f"{found.table()}\n")
    written = [folder / "sensitivity.json", folder / "sensitivity.txt"]
    figure = layer_sensitivity(found.rows(), found.int8.snr_db, () if mixed is None else mixed.float_layers)
    if figure is not None:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        files.write_bytes(folder / "sensitivity.png", buffer.getvalue())
        written.append(folder / "sensitivity.png")
    if mixed is not None:
        written.append(mixed.save(folder / "mixed.tflite"))
    return written
