"""Runs cells: each model in a worker process of its own, watched for memory and time, several models in parallel.

Invariant: every cell that was asked for gets a result, whatever its process does: one that dies, hangs or grows too
large is ended, its cell is a failure with the reason, and a new worker goes on with the cells that are left. Left out:
which cells, and where results are kept; see `command.py`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from zoo import memory
from zoo.store import Result
from zoo.worker import FAIL, first_lines

_POLL_SECONDS = 0.2
_LAST_LINES = 30


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a cell may use.

    Args:
        memory_gb: Resident memory of the worker and its children, in GB.
        timeout: Seconds for one cell, the building of the model included.
        start_timeout: Seconds until the worker begins its first cell.
    """

    memory_gb: float = 8.0
    timeout: float = 900.0
    start_timeout: float = 120.0


@dataclasses.dataclass(frozen=True)
class Tables:
    """The modules whose `MODELS` and `COLUMNS` the workers look names up in."""

    models: str = "zoo.models"
    columns: str = "zoo.columns"


class Stopped(Exception):
    """The matrix was interrupted."""


def run_matrix(
    cells: Mapping[str, Sequence[str]],
    on_result: Callable[[Result], None],
    *,
    tables: Tables = Tables(),
    limits: Limits = Limits(),
    jobs: int = 1,
    on_environment: Callable[[dict[str, Any]], None] = lambda environment: None,
) -> None:
    """Runs the cells of each model in order, `jobs` models at a time.

    Args:
        cells: The columns to run, by model.
        on_result: Called with each result as it comes, from one thread at a time; seconds and memory are set, the key
            is not.
        tables: Where workers find models and columns.
        limits: What a cell may use.
        jobs: Models at a time.
        on_environment: Called with what a worker found out about the machine.
    """
    lock, stop = threading.Lock(), threading.Event()

    def report(item: Result | dict[str, Any]) -> None:
        with lock:
            (on_result if isinstance(item, Result) else on_environment)(item)

    def run_model(model: str) -> None:
        pending = list(cells[model])
        while pending:
            for item in _Worker(model, pending, tables, limits, stop).items():
                if isinstance(item, Result):
                    pending.remove(item.column)
                report(item)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run_model, model) for model in cells]
        try:
            for future in futures:
                future.result()
        except BaseException:
            # An interrupt, or a fault of ours: the workers would go on for hours.
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class _Worker:
    """One worker process and the cells that it is to do."""

    def __init__(self, model: str, columns: Sequence[str], tables: Tables, limits: Limits, stop: threading.Event):
        self._model = model
        self._columns = list(columns)
        self._tables = tables
        self._limits = limits
        self._stop = stop
        self._column: str | None = None  # The cell that runs.
        self._peak_gb = 0.0
        self._since = time.monotonic()

    def items(self) -> Iterator[Result | dict[str, Any]]:
        """The results of the cells, up to the first that ends the process, and what was found out about the machine."""
        with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
            log = Path(folder) / "log.txt"
            readable, writable = os.pipe()
            with log.open("wb") as output:
                process = self._start(writable, output, folder)
            try:
                yield from self._follow(process, readable, log)
            finally:
                memory.end(process.pid)
                process.wait()
                os.close(readable)

    def _start(self, writable: int, output: Any, folder: str) -> subprocess.Popen[bytes]:
        job = {**dataclasses.asdict(self._tables), "model": self._model, "cells": self._columns, "report_to": writable}
        environment = {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            # All that the cells leave goes with this folder, also where their process is killed.
            "TMPDIR": folder,
        }
        try:
            process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "zoo.worker"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[writable],
                env=environment,
                # Ctrl-C is for this process, which then ends the worker.
                start_new_session=True,
            )
        finally:
            os.close(writable)
        assert process.stdin is not None
        process.stdin.write(json.dumps(job).encode())
        process.stdin.close()
        return process

    def _follow(self, process: subprocess.Popen[bytes], readable: int, log: Path) -> Iterator[Result | dict[str, Any]]:
        unread, open_ = b"", True
        while open_:
            if select.select([readable], [], [], _POLL_SECONDS)[0]:
                chunk = os.read(readable, 1 << 16)
                open_ = bool(chunk)
                *lines, unread = (unread + chunk).split(b"\n")
                for line in lines:
                    yield from self._event(json.loads(line))
            if self._stop.is_set():
                raise Stopped
            reason = self._excess(process.pid) if open_ else None
            if reason is not None:
                memory.end(process.pid)
                process.wait()
                yield self._failure(reason, log)
                return
        code = process.wait()
        if self._columns:
            yield self._failure(_how_it_ended(code), log)

    def _event(self, event: dict[str, Any]) -> Iterator[Result | dict[str, Any]]:
        kind = event.pop("event")
        if kind == "environment":
            yield event["environment"]
            return
        if kind == "begin":
            self._column, self._peak_gb = event["column"], 0.0
        else:
            self._columns.remove(event["column"])
            self._column = None
            yield Result(self._model, peak_gb=self._peak_gb, **event)
        self._since = time.monotonic()

    def _excess(self, pid: int) -> str | None:
        """Which limit is exceeded, in words, if any is."""
        used = memory.resident_gb(pid)
        self._peak_gb = max(self._peak_gb, used)
        if used > self._limits.memory_gb:
            return f"out of memory: {used:.2f} GB, where {self._limits.memory_gb:g} GB are allowed"
        limit = self._limits.timeout if self._column is not None else self._limits.start_timeout
        if time.monotonic() - self._since > limit:
            return f"timed out after {limit:g} s"
        return None

    def _failure(self, reason: str, log: Path) -> Result:
        """The result of the cell that the process died in; of its first one, if it died before it began any."""
        column = self._column or self._columns[0]
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        where = "" if self._column is not None else " before the cell began"
        seconds = time.monotonic() - self._since
        details = "\n".join(lines)
        return Result(self._model, column, FAIL, first_lines(reason + where), seconds, self._peak_gb, details=details)


def _how_it_ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed from outside (SIGKILL), often by the system for lack of memory"
    if code < 0:
        return f"crashed: {signal.Signals(-code).name}"
    return f"the process ended with status {code}"
