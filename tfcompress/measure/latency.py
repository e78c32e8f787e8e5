"""How long one inference of a `.tflite` file takes on this machine.

Invariant: only the run itself is timed, with one sample, after warming up. Left out: other machines; int8 on x86 says
little about ARM, and single numbers from a shared machine say less than ratios of medians.
"""

from __future__ import annotations

import dataclasses
import os
import time

import numpy as np

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.measure.tflite_runner import TFLiteRunner


@dataclasses.dataclass(frozen=True)
class Latency:
    """Time of one inference.

    Args:
        median_ms: Half of the runs were faster, in milliseconds.
        p90_ms: Nine of ten runs were faster, in milliseconds.
        repeats: How many runs were timed.
    """

    median_ms: float
    p90_ms: float
    repeats: int


def measure_latency(
    tflite_path: str | os.PathLike | bytes, *, repeats: int = 50, warmup: int = 5, num_threads: int = 1
) -> Latency:
    """Times single runs with LiteRT's default delegate on random samples, in the batch size that the file has.

    Args:
        tflite_path: The file, or its content.
        repeats: Timed runs, at least 1.
        warmup: Runs before, at least 0.
        num_threads: Threads of the interpreter, at least 1.

    Returns:
        Median and 90th percentile.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
        ModelError: If the file is missing, or LiteRT cannot run it.
    """
    for name, value, least in (("repeats", repeats, 1), ("warmup", warmup, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidArgumentError(name, f"a whole number, at least {least}", value)
    run = TFLiteRunner(tflite_path, num_threads=num_threads).prepare_run()
    times_ms = []
    try:
        for _ in range(warmup):
            run()
        for _ in range(repeats):
            start = time.perf_counter_ns()
            run()
            times_ms.append((time.perf_counter_ns() - start) / 1e6)
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"LiteRT cannot run the file: {error}") from error
    return Latency(float(np.median(times_ms)), float(np.percentile(times_ms, 90)), repeats)
