"""Reading a file of somebody else's: regular files only, and never more bytes than announced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bayes_adapters.errors import AdapterFileError
from bayes_adapters.files._file_checks import (
    POINTER,
    closed,
    no_path,
    require_no_pointer,
    require_path,
    require_regular,
    require_size,
    too_large,
    unusable,
)


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
        require_size(path, size, least, most, because)
        return file.read(size)


def regular_start(path: Path, count: int) -> tuple[bytes, int]:
    """Return the first ``count`` bytes of a regular file, or fewer, and its size; see :func:`read_regular`."""
    with _opened(path) as (file, size):
        return file.read(min(count, size)), size


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    try:
        require_regular(path, os.stat(path).st_mode)
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(path, flags), "rb") as file:
            found = os.fstat(file.fileno())
            require_regular(path, found.st_mode)  # another file may have come into its place
            require_no_pointer(path, file.read(len(POINTER)))
            file.seek(0)
            yield file, found.st_size
    except ValueError as error:
        if isinstance(error, AdapterFileError):
            raise
        raise no_path(path, error) from error
    except MemoryError as error:
        raise too_large(path) from error


def as_folder(directory: str | Path) -> Path:
    """Return ``directory`` as a path.

    Raises:
        ConfigError: it is no path.
        AdapterFileError: no file system can have such a path, or it may not be looked at.
    """
    require_path(directory)
    folder = Path(directory)
    try:
        os.stat(folder)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise unusable(folder, error) from error
    return folder


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turn what the system says of looking into ``folder`` into :class:`AdapterFileError`."""
    try:
        yield
    except OSError as error:
        raise closed(folder, error) from error
