"""Looks through zip archives and HDF5 files before a loader does.

Invariant: a check reads a file in pieces, runs nothing that is in it, and needs no more memory than the file's
configuration does; what passes asks for no more memory than a hundred times its size. Independent of which of these
holes the installed Keras has closed: archives whose names lead out of their folder (CVE-2025-12060), HDF5 links and
external storage that read other files (CVE-2026-1669), and sizes that are declared but not stored (CVE-2026-0897). Left
out: what a configuration asks for (`guard_config.py`), and faults of the HDF5 library itself.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tfcompress.errors import ModelError

# A configuration of ten thousand layers takes 10 MB.
CONFIG_BYTES = 32 << 20
# Weights hardly compress; what shrinks to less than this share was made to grow.
EXPANSION = 100
# Below this nobody is hurt: biases that are all zero do compress well.
SMALL = 1 << 20
MEMBERS = 10_000
OBJECTS = 200_000
DEPTH = 64
_PIECE = 1 << 20
_WINDOWS_DRIVE = re.compile(r"^[A-Za-z]:")
_ZIP_ERRORS = (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, EOFError)
_H5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError)


def refuse(where: str, what: str, remedy: str = "Load models from sources that you trust only.") -> ModelError:
    """The error for a file that is not loaded."""
    return ModelError(f"{where} is not loaded: {what}. {remedy}")


def damaged(where: str, error: Exception) -> ModelError:
    """The error for a file that cannot be read to its end."""
    return ModelError(f"{where} is damaged: {error or type(error).__name__}. Copy or download it anew.")


def check_zip(path: Path) -> dict[str, int]:
    """Checks a zip archive: its names, the sizes that it claims, and that every byte of it is as it was written.

    Args:
        path: The archive.

    Returns:
        The size of each member in bytes.

    Raises:
        ModelError: If a name leads out of the archive or comes twice, if it would grow beyond what models do, or if it
            is truncated or altered.
    """
    where = repr(str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(where, members, path.stat().st_size)
            for member in members:
                _read_through(where, archive, member)
    except _ZIP_ERRORS as error:
        if isinstance(error, ModelError):
            raise
        raise damaged(where, error) from error
    return {member.filename: member.file_size for member in members}


def _check_members(where: str, members: list[zipfile.ZipInfo], size: int) -> None:
    if len(members) > MEMBERS:
        raise refuse(where, f"an archive of a model has at most {MEMBERS} members. Received: {len(members)}")
    names = [member.filename for member in members]
    for name in names:
        if _leads_out(name):
            raise refuse(where, f"its member {name!r} would be written outside of its folder")
    if len({name.casefold() for name in names}) < len(names):
        raise refuse(where, "two of its members have the same name")
    for member in members:
        if member.flag_bits & 1:
            raise refuse(where, f"its member {member.filename!r} is encrypted", "Save it without a password.")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refuse(where, f"its member {member.filename!r} is compressed in a way that Keras does not use")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise refuse(where, f"its member {member.filename!r} is a link")
        if member.file_size > SMALL + EXPANSION * member.compress_size:
            raise refuse(
                where,
                f"its member {member.filename!r} has {member.compress_size:,} bytes, and would grow to "
                f"{member.file_size:,}",
            )
    # Members that overlap count their bytes several times.
    if sum(member.compress_size for member in members) > size:
        raise refuse(where, f"its members claim more bytes than the {size:,} of the file")
    total = sum(member.file_size for member in members)
    if total > SMALL + EXPANSION * size:
        raise refuse(where, f"it would grow from {size:,} to {total:,} bytes")


def _leads_out(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return not name or "\0" in name or parts[0] == "" or ".." in parts or bool(_WINDOWS_DRIVE.match(name))


def _read_through(where: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Reads a member in pieces, so that its checksum is compared."""
    total = 0
    with archive.open(member) as file:
        while piece := file.read(_PIECE):
            total += len(piece)
    if total != member.file_size:
        raise refuse(where, f"its member {member.filename!r} has {total:,} bytes, and says {member.file_size:,}")


def read_member(path: Path, name: str, limit: int = CONFIG_BYTES) -> bytes:
    """A small member of an archive that `check_zip` has passed."""
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo(name).file_size
        if size > limit:
            raise refuse(repr(str(path)), f"{name} may have {limit:,} bytes. Received: {size:,}")
        return archive.read(name)


@contextlib.contextmanager
def open_member(path: Path, name: str) -> Iterator[BinaryIO]:
    """A member of an archive that `check_zip` has passed, to read anywhere in it.

    A member that is stored as it is, as Keras does, is read in place.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        member = archive.getinfo(name)
        if member.compress_type != zipfile.ZIP_STORED:
            yield io.BytesIO(archive.read(name))
            return
        # The header in front of the data repeats the name, and its extra field may have another length.
        file.seek(member.header_offset + 26)
        lengths = file.read(4)
        start = member.header_offset + 30 + sum(int.from_bytes(lengths[at : at + 2], "little") for at in (0, 2))
        yield io.BufferedReader(_Part(file, start, member.file_size))


class _Part(io.RawIOBase):
    """The bytes `start` to `start + size` of a file, as a file."""

    def __init__(self, file: BinaryIO, start: int, size: int):
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._start + self._at)
        buffer[:count] = self._file.read(count)
        self._at += count
        return count


@contextlib.contextmanager
def open_h5(source: Path | BinaryIO, where: str, mode: str = "r") -> Iterator[Any]:
    """Opens an HDF5 file, to read unless `mode` says so; what the library raises on a broken one is a `ModelError`."""
    import h5py

    try:
        with h5py.File(source, mode) as file:
            yield file
    except _H5_ERRORS as error:
        if isinstance(error, ModelError):
            raise
        raise damaged(where, error) from error


def check_h5(file: Any, where: str, file_bytes: int) -> int:
    """Checks an HDF5 file: that all is in the file itself, and that it holds what it declares.

    Args:
        file: An open `h5py.File`.
        where: What to call it in errors.
        file_bytes: Its size.

    Returns:
        The number of values in all of its data sets.

    Raises:
        ModelError: If it has links other than to its own parts, data in other files, data that is no numbers, or
            declares more than it holds.
    """
    import h5py

    values = total = objects = 0
    seen = set()
    waiting = [("", file, 0)]
    while waiting:
        name, group, depth = waiting.pop()
        address = h5py.h5o.get_info(group.id).addr
        if depth > DEPTH or address in seen:
            raise refuse(where, f"its group {name!r} is part of itself, or more than {DEPTH} deep")
        seen.add(address)
        for key in group:
            path = f"{name}/{key}"
            objects += 1
            if objects > OBJECTS:
                raise refuse(where, f"it has more than {OBJECTS:,} objects")
            part = _own_part(group, key, path, where)
            if isinstance(part, h5py.Group):
                waiting.append((path, part, depth + 1))
            else:
                _check_data_set(part, path, where)
                values, total = values + int(part.size or 0), total + int(part.nbytes or 0)
    if total > SMALL + EXPANSION * file_bytes:
        raise refuse(where, f"its data sets declare {total:,} bytes, and the file has {file_bytes:,}")
    return values


def _own_part(group: Any, key: str, path: str, where: str) -> Any:
    import h5py

    link = group.get(key, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise refuse(where, f"{path!r} is a link ({type(link).__name__}), and the weights of a model are in one file")
    part = group[key]
    if not isinstance(part, (h5py.Group, h5py.Dataset)):
        raise refuse(where, f"{path!r} is a {type(part).__name__}, and weights are data sets")
    return part


def _check_data_set(data: Any, path: str, where: str) -> None:
    if data.is_virtual or data.id.get_create_plist().get_external_count() > 0:
        raise refuse(where, f"the data of {path!r} is in other files, and the weights of a model are in one file")
    if data.dtype.kind not in "biufcVS" or data.dtype.hasobject:
        raise refuse(where, f"{path!r} holds {data.dtype}, and weights are numbers")
    stored = data.id.get_storage_size()
    if data.nbytes > SMALL + EXPANSION * stored:
        raise refuse(where, f"{path!r} declares {data.nbytes:,} bytes, and holds {stored:,}")


def h5_attribute(file: Any, name: str, where: str) -> bytes:
    """A text attribute of an HDF5 file, such as the configuration of a model."""
    import h5py

    identifier = h5py.h5a.open(file.id, name.encode())
    if identifier.shape != () or identifier.get_storage_size() > CONFIG_BYTES:
        raise refuse(where, f"its attribute {name!r} may be one text of {CONFIG_BYTES:,} bytes")
    value = file.attrs[name]
    encoded = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
    if len(encoded) > CONFIG_BYTES:
        raise refuse(where, f"its {name} may have {CONFIG_BYTES:,} bytes. Received: {len(encoded):,}")
    return encoded
