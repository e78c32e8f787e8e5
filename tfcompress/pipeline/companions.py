"""What a run writes beside an exported file: its description, and the folder for a target.

Invariant: all of it is of the file that is there now; a folder of an earlier run is replaced. Left out: the labels,
which the export itself writes.
"""

from __future__ import annotations

import shutil

from tfcompress import files
from tfcompress.data import Dataset
from tfcompress.export import ExportResult, write_bundle
from tfcompress.export.sidecar import describe_file


def write_companions(exported: ExportResult, target: str | None, data: Dataset) -> None:
    """Writes `<stem>.json` beside a file, and `<stem>_<target>` where there is a target.

    Args:
        exported: The file.
        target: A target of `write_bundle`, or None.
        data: The data, whose range and class names the file has.

    Raises:
        ExportError: If the target cannot run the file.
    """
    path = exported.path
    described = describe_file(path.read_bytes(), path.name, class_names=data.class_names, input_range=data.input_range)
    files.write_json(path.with_suffix(".json"), described)
    if target is None:
        return
    folder = path.with_name(f"{path.stem}_{target}")
    # The folder of an earlier run goes only once there is a new one.
    fresh = folder.with_name(f".{folder.name}-new")
    shutil.rmtree(fresh, ignore_errors=True)
    write_bundle(exported, fresh, target, input_range=data.input_range)
    if folder.exists():
        shutil.rmtree(folder)
    fresh.rename(folder)
