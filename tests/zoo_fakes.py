"""Models and columns without TensorFlow, for tests of the zoo's runner: each column ends in a way of its own."""

import dataclasses
import os
import subprocess
import sys
import time

from zoo.columns import Column

from tfcompress.errors import ModelError


@dataclasses.dataclass(frozen=True)
class Fake:
    """An entry that is its own case."""

    size: int
    group: str = "ours"


def passes(case):
    return f"size {case.size}"


def refuses(case):
    raise ModelError(f"Layer 'x' of {case.size} | cannot.\n  - remedy: *another* layer")


def fails(case):
    raise KeyError("lost")


def crashes(case):
    print("last words", flush=True)
    os.abort()


def eats(case, child=False):
    """Takes memory until it is ended, in a child process of its own session if asked, as the converter is."""
    if child:
        code = "held = [bytearray(b'x' * 20_000_000) for _ in range(500) if not __import__('time').sleep(0.02)]"
        subprocess.run([sys.executable, "-c", code], start_new_session=True)
        return "was let"
    held = []
    for _ in range(500):
        held.append(bytearray(b"x" * 20_000_000))
        time.sleep(0.02)
    return "was let"


def sleeps(case):
    time.sleep(60)


MODELS = {"small": Fake(1), "large": Fake(2)}
COLUMNS = {
    "passes": Column(check="zoo_fakes:passes"),
    "refuses": Column(check="zoo_fakes:refuses"),
    "fails": Column(check="zoo_fakes:fails"),
    "crashes": Column(check="zoo_fakes:crashes"),
    "eats": Column(check="zoo_fakes:eats"),
    "child_eats": Column(check="zoo_fakes:eats", arguments={"child": True}),
    "sleeps": Column(check="zoo_fakes:sleeps"),
    "passes_too": Column(check="zoo_fakes:passes"),
    "missing": Column(check="zoo_fakes:nothing_of_that_name"),
}
