"""Memory and end of a process together with all that it started, read from /proc.

Invariant: children in sessions of their own, as the TFLite converter is, count and end too. Left out: systems without
/proc, on which `require_proc` says so; a limit on address space is no way out, since TensorFlow reserves far more than
it uses.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def require_proc() -> None:
    """Ends the program with a clear word where memory cannot be watched."""
    if not (_PROC / "self" / "statm").is_file():
        sys.exit("The zoo watches its workers' memory through /proc, which this system doesn't have. Run it on Linux.")


def tree(pid: int) -> list[int]:
    """The process and all its living descendants."""
    children: dict[int, list[int]] = {}
    for path in _PROC.iterdir():
        if path.name.isdigit():
            # A process may end between listing and reading.
            with contextlib.suppress(OSError):
                # The name in brackets may hold spaces and brackets of its own.
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(path.name))
    found = [pid]
    for parent in found:
        found.extend(children.get(parent, ()))
    return found


def resident_gb(pid: int) -> float:
    """Resident memory of the process and its descendants, in GB."""
    total = 0
    for process in tree(pid):
        with contextlib.suppress(OSError):
            total += int((_PROC / str(process) / "statm").read_text().split()[1]) * _PAGE
    return total / 1e9


def end(pid: int) -> None:
    """Ends the process and all its descendants at once."""
    for process in tree(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
