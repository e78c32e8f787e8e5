"""The process that does all cells of one model, in order, and reports each as it begins and as it ends.

Reads one job, a JSON object, from standard input, and writes JSON lines to the file descriptor named in it: standard
output belongs to the libraries. Invariant: a cell that raises is reported like any other, and the next one begins
with a model of its own. Left out: limits, and what becomes of a process that dies; see `run.py`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tfcompress.errors import TFCompressError

PASS, STATED, FAIL = "pass", "stated", "FAIL"


def main() -> None:
    """Runs the job that standard input holds."""
    job = json.load(sys.stdin)
    with os.fdopen(job["report_to"], "w", encoding="utf-8") as report:

        def tell(**event: Any) -> None:
            report.write(json.dumps(event) + "\n")
            report.flush()

        models, columns = (importlib.import_module(job[table]) for table in ("models", "columns"))
        entry = models.MODELS[job["model"]]
        for name in job["cells"]:
            tell(event="begin", column=name)
            tell(event="end", column=name, **run_cell(job["model"], entry, columns.COLUMNS[name]))
        if "tensorflow" in sys.modules:
            from tfcompress.measure.environment import describe_environment

            tell(event="environment", environment=describe_environment())


def run_cell(model: str, entry: Any, column: Any) -> dict[str, Any]:
    """One cell: its status, its figure or reason, the seconds that the check took, and a traceback of a failure."""
    folder = Path(tempfile.mkdtemp(prefix="zoo-"))
    started = time.perf_counter()
    details = ""
    try:
        # Imports and building are not what the column is about.
        case, check = make_case(model, entry, folder), column.load()
        started = time.perf_counter()
        status, text = PASS, check(case)
    except TFCompressError as error:
        status, text = STATED, f"{type(error).__name__}: {first_lines(str(error))}"
    except Exception as error:  # noqa: BLE001  # Whatever it is, it is this cell's result.
        status, text = FAIL, f"{type(error).__name__}: {first_lines(str(error))}"
        details = traceback.format_exc()
    seconds = time.perf_counter() - started
    shutil.rmtree(folder, ignore_errors=True)
    forget()
    return {"status": status, "text": text, "seconds": seconds, "details": details}


def make_case(model: str, entry: Any, folder: Path) -> Any:
    """The `Case` of an entry with its model built; an entry that has no builder is its own case, as in tests."""
    if not hasattr(entry, "builder"):
        return entry
    from zoo.case import Case

    case = Case(model, entry, folder)
    _ = case.model
    return case


def forget() -> None:
    """Frees what the last cell left in Keras and TensorFlow."""
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session()
    gc.collect()


def first_lines(message: str, width: int = 600) -> str:
    """The lines of a message that say something, as one, cut at `width`."""
    text = " ".join(line.strip() for line in message.splitlines() if line.strip())
    return text if len(text) <= width else text[: width - 1] + "…"


if __name__ == "__main__":
    main()
