"""Files appear whole or not at all, and are known by their content.

Invariant: a path that these functions were asked to write holds either its old content or the complete new one, also
when the process is killed half way. Left out: locking; two processes that write one path leave one of both contents.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# How the names begin that files and folders are written under. One that was killed leaves them.
UNFINISHED = ".writing-"


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write a file or a folder at, and renames it to `path` at the end.

    The temporary name keeps the suffix of `path`, since many writers choose a format by it. If the block raises, or
    writes nothing, `path` stays as it was.

    Args:
        path: Where the finished file or folder shall be. Its parent folder is made.

    Yields:
        The path to write at.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=path.parent))
    try:
        temporary = scratch / path.name
        yield temporary
        if temporary.is_dir() and path.is_dir():
            os.replace(path, scratch / "replaced")
        if temporary.exists():
            os.replace(temporary, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes `content` at `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike, content: str) -> None:
    """Writes `content` at `path` in UTF-8, whole or not at all."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: str | os.PathLike, content: object) -> None:
    """Writes `content` as indented JSON at `path`, whole or not at all; NaN is refused with a `ValueError`."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def gzip_size(path: str | os.PathLike) -> int:
    """Bytes of the file at `path` after gzip at level 9 (what an app store or an update sends)."""
    return len(gzip.compress(Path(path).read_bytes(), compresslevel=9, mtime=0))


def content_key(*parts: object) -> str:
    """A short key that is equal only for equal `parts`: the first 16 hex digits of a SHA-256.

    Args:
        *parts: Bytes, or values that JSON can hold.

    Example:
        >>> content_key({"b": 1, "a": 2}) == content_key({"a": 2, "b": 1})
        True
    """
    digest = hashlib.sha256()
    for part in parts:
        encoded = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()[:16]


def file_key(path: str | os.PathLike) -> str:
    """The `content_key` of the file's bytes."""
    return content_key(Path(path).read_bytes())


def folder_key(path: str | os.PathLike) -> str:
    """The `content_key` of all files in a folder and of where in it they lie."""
    folder = Path(path)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return content_key([[file.relative_to(folder).as_posix(), file_key(file)] for file in files])
