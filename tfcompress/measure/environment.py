"""Where results were measured: versions, processor, threads.

Invariant: nothing here identifies a person or a machine by name. Left out: load, which latency has to live with.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import tensorflow as tf

_PACKAGES = (
    "tfcompress",
    "tensorflow",
    "keras",
    "tensorflow-model-optimization",
    "ai-edge-litert",
    "tensorflow-datasets",
    "numpy",
)


def describe_environment() -> dict[str, str | int]:
    """Versions, operating system, processor, usable threads and GPUs, as JSON can hold them.

    Returns:
        Name to version for Python and each installed package; `system`, `cpu`, `threads`, and `gpus`.

    Example:
        >>> describe_environment()["threads"] >= 1
        True
    """
    found: dict[str, str | int] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # Not installed, so it had no part in the results.
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["cpu"] = _cpu_name()
    found["threads"] = _usable_threads()
    found["gpus"] = ", ".join(str(gpu.get("device_name", "GPU")) for gpu in gpus) or "none"
    return found


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _usable_threads() -> int:
    # A container may own fewer than the machine has; not every system can tell.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
