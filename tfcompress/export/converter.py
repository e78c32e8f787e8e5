"""TFLite conversion in a process of its own, kept alive and reused.

The converter can crash, hang, or print pages from C++. Here each of these is one `ExportError` with its cause, and the
caller's process, terminal and standard input are untouched.

Invariant: after any failure the next conversion works, in a fresh worker if need be, and no file of the failed one is
left. Left out: what to convert and whether the result is right; see `tflite.py` and `audit.py`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from tfcompress.errors import ExportError
from tfcompress.export.modes import MODES, file_io

WORKER_SCRIPT = Path(__file__).with_name("worker.py")
# TensorFlow's import takes 3 to 10 seconds, more on a machine that reads it for the first time.
START_TIMEOUT_SECONDS = 300.0
CONVERSION_TIMEOUT_SECONDS = 900.0
_KILLED_REMEDY = "remedy: something ended the converter from outside, often the system for lack of memory"
_CRASH_REMEDY = (
    "remedy: leave out what it cannot do; it crashes on int8 of recurrent layers, for example, unless they are made "
    "with unroll=True"
)
# What the worker is doing, and who refuses, in words, by the task of a job.
_DOING = {"convert": "convert the model", "requantize": "quantize the model", "invoke": "run the file in LiteRT"}
_REFUSED = {"invoke": "LiteRT refused the file"}
_CAUSE_LINES = 6
_CAUSE_WIDTH = 400
# What the libraries print on any run, stack frames, and carets under source lines: never the cause.
_NOISE = re.compile(
    r"^([IW]\d{4} |\d{4}-\d\d-\d\d .*: [IW] |WARNING|INFO:|Traceback|Thread 0x|Current thread|Extension modules"
    r"|\[[a-z_]+\.cc|  ?File \"|\s+(File|~|\^)|<unknown>:0: note|.*note: (loc|called from|see current operation)"
    r"|\s{4}|To enable the following|\s*$)"
)


class ConverterProcess:
    """One worker process for TFLite conversions: started lazily, reused, replaced after a crash.

    Safe to call from several threads (one conversion at a time) and after a fork (the child starts its own).

    Args:
        command: What to start instead of our worker script.
        start_timeout: Seconds that the worker may take to import TensorFlow.

    Example:
        >>> converter = ConverterProcess()
        >>> converter.pid is None   # nothing runs before it is needed
        True
        >>> converter.close()
    """

    def __init__(self, command: Sequence[str] | None = None, *, start_timeout: float = START_TIMEOUT_SECONDS):
        self._command = list(command or (sys.executable, "-u", str(WORKER_SCRIPT)))
        self._start_timeout = start_timeout
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._owner = os.getpid()
        self._ready = False

    @property
    def pid(self) -> int | None:
        """The worker's process id, or None while none runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Starts the worker if none runs, and returns at once: TensorFlow is imported while the caller goes on."""
        with self._lock:
            if self._owner != os.getpid():
                # After a fork the worker belongs to the parent process: forget it, without closing it.
                self._process, self._log, self._owner = None, None, os.getpid()
            if self.pid is not None:
                return
            self.close()
            # Open as long as the worker; it has no name, so nothing is left even if this process is killed.
            self._log = tempfile.TemporaryFile(prefix="tfcompress-converter-")  # noqa: SIM115
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=_worker_environment(),
                # Ctrl-C is for the caller, who then ends the worker.
                start_new_session=True,
            )
            self._ready = False

    def convert(
        self,
        saved_model: str | os.PathLike,
        *,
        signature: str,
        mode: str,
        io: str | None = None,
        calibration: str | os.PathLike | None = None,
        calibrate_only: bool = False,
        sparse: bool = False,
        timeout: float = CONVERSION_TIMEOUT_SECONDS,
    ) -> bytes:
        """Converts one endpoint of a SavedModel.

        Args:
            saved_model: Its folder.
            signature: The endpoint to convert.
            mode: A key of `MODES`.
            io: Type of inputs and outputs; by default the mode's own.
            calibration: An `.npz` file with one array `(samples, ...)` per input, called `input:<name>`; None where
                the model has fake-quant operations. Modes of floats don't read it.
            calibrate_only: Whether to stop before the quantization, at a float file with ranges for `requantize`.
            sparse: Whether zeros of the weights may be left out of the file.
            timeout: Seconds until the conversion counts as hung.

        Returns:
            The content of the `.tflite` file.

        Raises:
            ExportError: If the converter fails, crashes or hangs; the causes are the last meaningful lines it wrote.
        """
        job = {
            "task": "convert",
            "saved_model": os.fspath(saved_model),
            "signature": signature,
            "settings": MODES[mode].converter_settings(file_io(mode, io)),
            "calibration": os.fspath(calibration) if calibration and MODES[mode].needs_calibration else None,
            "calibrate_only": calibrate_only,
            "sparse": sparse,
        }
        return self._work(job, timeout)

    def requantize(
        self,
        calibrated: str | os.PathLike,
        *,
        keep_float: Sequence[str] = (),
        io: str = "float32",
        timeout: float = CONVERSION_TIMEOUT_SECONDS,
    ) -> bytes:
        """Quantizes a float file with ranges to int8, but for some of its nodes.

        Args:
            calibrated: The file that `convert(..., calibrate_only=True)` gave.
            keep_float: Nodes to leave in float, by the names of their first results.
            io: Type of inputs and outputs: "int8" or "float32".
            timeout: Seconds until the work counts as hung.

        Returns:
            The content of the `.tflite` file.

        Raises:
            ExportError: If the converter fails, crashes or hangs.
        """
        job = {"task": "requantize", "calibrated": os.fspath(calibrated), "keep_float": list(keep_float), "io": io}
        return self._work(job, timeout)

    def invoke(self, content: bytes, resolver: str, *, timeout: float = CONVERSION_TIMEOUT_SECONDS) -> None:
        """Runs a file once on zeros in the worker, so that a crash of the runtime is an error too.

        Args:
            content: The bytes of the `.tflite` file.
            resolver: Name of LiteRT's `OpResolverType`, such as "AUTO".
            timeout: Seconds until the run counts as hung.

        Raises:
            ExportError: If LiteRT cannot load or run it, crashes or hangs.
        """
        with tempfile.TemporaryDirectory(prefix="tfcompress-invoke-") as folder:
            file = Path(folder) / "model.tflite"
            file.write_bytes(content)
            self._work({"task": "invoke", "file": str(file), "resolver": resolver}, timeout)

    def _work(self, job: dict[str, Any], timeout: float) -> bytes:
        """What the worker writes at `output` when it has done `job`."""
        with self._lock, tempfile.TemporaryDirectory(prefix="tfcompress-convert-") as folder:
            self.start()
            self._await_ready()
            log_start = self._log_size()
            output = Path(folder) / "model.tflite"
            job = {**job, "folder": folder, "output": str(output), "timeout": timeout}
            answer = self._ask(job, timeout, log_start, _DOING[job["task"]])
            if not answer["ok"]:
                causes = meaningful_lines(answer["message"]) or meaningful_lines(self._log_text(log_start))
                refused = _REFUSED.get(job["task"], "The TFLite converter refused the model")
                raise ExportError(f"{refused} ({answer['kind']}).", causes)
            return output.read_bytes()

    def close(self) -> None:
        """Ends the worker. The next conversion starts a new one."""
        with self._lock:
            process, log = self._process, self._log
            self._process, self._log, self._ready = None, None, False
            if process is not None and self._owner == os.getpid():
                process.kill()
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        _close_quietly(pipe)
            if log is not None:
                log.close()

    def _await_ready(self) -> None:
        if not self._ready:
            self._receive(self._start_timeout, 0, "start")
            self._ready = True

    def _ask(self, job: dict[str, Any], timeout: float, log_start: int, doing: str) -> dict[str, Any]:
        assert self._process is not None and self._process.stdin is not None
        # A broken pipe: the worker is dead, and the empty answer tells how it died.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        return self._receive(timeout, log_start, doing)

    def _receive(self, timeout: float, log_start: int, task: str) -> dict[str, Any]:
        """Reads one line of JSON; a worker that ends, or is silent for `timeout` seconds, is an ExportError."""
        assert self._process is not None and self._process.stdout is not None
        try:
            line = _read_line(self._process.stdout.fileno(), timeout)
        except BaseException as interruption:
            # Whatever comes next on this pipe would be the answer to the abandoned job.
            causes = meaningful_lines(self._log_text(log_start))
            self.close()
            if isinstance(interruption, TimeoutError):
                raise ExportError(
                    f"The TFLite converter did not {task} within {timeout:g} s and was ended.",
                    [*causes, "remedy: convert a smaller model, or allow more time"],
                ) from None
            raise
        if line:
            return json.loads(line)
        code = self._process.wait()
        causes = meaningful_lines(self._log_text(log_start))
        self.close()
        who, remedy = "The TFLite converter", _CRASH_REMEDY
        if task == _DOING["invoke"]:
            who, remedy = "LiteRT", "remedy: see whether mode='float32' runs; if so, leave out what this mode adds"
        remedy = _KILLED_REMEDY if code == -signal.SIGKILL else remedy
        raise ExportError(f"{who} crashed ({_exit_name(code)}) when it should {task}.", [*causes, remedy])

    def _log_size(self) -> int:
        assert self._log is not None
        return os.fstat(self._log.fileno()).st_size

    def _log_text(self, start: int) -> str:
        assert self._log is not None
        # pread: the worker writes through the same open file, so that seeking would move where it writes.
        size = self._log_size() - start
        return os.pread(self._log.fileno(), size, start).decode(errors="replace")


@functools.cache
def shared_converter() -> ConverterProcess:
    """The process that all exports of this interpreter share; it ends with the interpreter."""
    converter = ConverterProcess()
    atexit.register(converter.close)
    return converter


def meaningful_lines(text: str) -> list[str]:
    """The last lines of a log that say something about a failure, the newest last and long ones shortened."""
    lines: list[str] = []
    for line in text.splitlines():
        cleaned = line.strip()
        if not _NOISE.match(line) and cleaned not in lines:
            lines.append(cleaned if len(cleaned) <= _CAUSE_WIDTH else cleaned[: _CAUSE_WIDTH - 3] + "...")
    return lines[-_CAUSE_LINES:]


def _worker_environment() -> dict[str, str]:
    environment = dict(os.environ)
    # The worker finds the same packages, also where the caller extended its path.
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    # Conversion runs on the CPU; a second process must not reserve the memory of the caller's GPU.
    environment["CUDA_VISIBLE_DEVICES"] = "-1"
    # What is left in the log are errors, so that its last lines are the cause.
    environment["TF_CPP_MIN_LOG_LEVEL"] = "1"
    environment["PYTHONWARNINGS"] = "ignore"
    return environment


def _read_line(descriptor: int, timeout: float) -> bytes:
    """One line from a pipe, b"" at its end; TimeoutError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    received = b""
    # Not `select.select`, which refuses descriptors above 1023.
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while not received.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise TimeoutError
            chunk = os.read(descriptor, 65536)
            if not chunk:
                return b""
            received += chunk
    return received


def _exit_name(code: int) -> str:
    try:
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"


def _close_quietly(pipe: IO[bytes]) -> None:
    # A broken pipe: an unsent job for a worker that is dead already.
    with contextlib.suppress(BrokenPipeError):
        pipe.close()
