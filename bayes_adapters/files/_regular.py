"""Reading a file of somebody else's: regular files only, and never more bytes than announced."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bayes_adapters.errors import AdapterFileError, ConfigError, described

_POINTER = b"version https://git-lfs.github.com/spec/"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def read_regular(path: Path, least: int, most: int, because: str) -> bytes:
    """Return the bytes of a regular file, or of one behind a symbolic link.

    A pipe or a device, which may never end, is not even opened. The size is looked at before a byte is read, so that a
    file with a hole of many GiB costs nothing.

    Args:
        path: the file.
        least: smallest size, bytes.
        most: largest size, bytes.
        because: what the limits come from, for the message.

    Raises:
        OSError: the file is absent or cannot be opened.
        AdapterFileError: it is no regular file, a pointer of Git LFS, of another size, or cannot be held in memory.
    """
    with _opened(path) as (file, size):
        if not least <= size <= most:
            raise AdapterFileError(
                f"{str(path)!r} has {size:,} bytes; {least:,} to {most:,} are possible for {because}. It "
                "was cut off, altered, or comes from another save; copy the whole folder again, or save it again."
            )
        return file.read(size)


def regular_start(path: Path, count: int) -> tuple[bytes, int]:
    """Return the first ``count`` bytes of a regular file, or fewer, and its size; see :func:`read_regular`."""
    with _opened(path) as (file, size):
        return file.read(min(count, size)), size


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    try:
        _require_regular(path, os.stat(path).st_mode)
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(path, flags), "rb") as file:
            found = os.fstat(file.fileno())
            _require_regular(path, found.st_mode)  # another file may have come into its place
            if file.read(len(_POINTER)) == _POINTER:
                raise AdapterFileError(
                    f"{str(path)!r} is not the file itself but a pointer of Git LFS to it. Fetch the file with "
                    "`git lfs pull`, or download it from where it is stored."
                )
            file.seek(0)
            yield file, found.st_size
    except ValueError as error:
        if isinstance(error, AdapterFileError):
            raise
        raise AdapterFileError(f"{str(path)!r} is no path of a file: {error}.") from error
    except MemoryError as error:
        raise AdapterFileError(f"{str(path)!r} does not fit into the memory of this machine.") from error


def as_folder(directory: str | Path) -> Path:
    """Return ``directory`` as a path.

    Raises:
        ConfigError: it is no path.
        AdapterFileError: no file system can have such a path, or it may not be looked at.
    """
    if not isinstance(directory, str | os.PathLike):
        raise ConfigError(f"A folder is given as a text or a Path; got {described(directory)}.")
    folder = Path(directory)
    try:
        os.stat(folder)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AdapterFileError(
            f"The folder {str(folder)[:200]!r} cannot be used: {reason}. Check the path and its permissions."
        ) from error
    return folder


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turn what the system says of looking into ``folder`` into :class:`AdapterFileError`."""
    try:
        yield
    except OSError as error:
        raise AdapterFileError(
            f"Cannot look into {str(folder)!r}: {error}. Check its permissions, or choose another folder."
        ) from error


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise AdapterFileError(
            f"{str(path)!r} is {kind}; an adapter consists of regular files. Give the folder that the adapter was "
            "saved to."
        )
