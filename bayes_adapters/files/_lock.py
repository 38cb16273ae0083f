"""Several processes at one folder: writers one after the other, readers that do not see half of a change."""

from __future__ import annotations

import errno
import importlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from bayes_adapters.errors import AdapterFileError
from bayes_adapters.files._file_checks import held_up, unsteady

LOCK = ".adapter-lock"
_PATIENCE = 60.0  # seconds; a save holds the lock for as long as the disk takes
_ATTEMPTS = 8  # of reading, before waiting for the lock
_BUSY = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_T = TypeVar("_T")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the context no other process or thread is within the same context for ``folder``.

    The operating system lets go of a lock when its process ends, however it ends: a lock file that was left behind
    holds nobody up. The file is gone after the context.

    Raises:
        AdapterFileError: another one has held the lock for a minute.
        OSError: no file can be made in ``folder``.

    Warns:
        UserWarning: the file system has no locks; the context is entered without one.
    """
    path = folder / LOCK
    end = time.monotonic() + _PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        held = False
        try:
            held = _acquired(descriptor, path) and _is_there(descriptor, path)
            if held:
                yield
                return
        finally:
            if held:
                # Still locked: one that waits for this very file sees afterwards that it is no longer the folder's.
                with suppress(OSError):
                    path.unlink()
            os.close(descriptor)
        if time.monotonic() > end:
            raise held_up(folder, _PATIENCE)
        time.sleep(0.01)


def _acquired(descriptor: int, path: Path) -> bool:
    try:
        _lock(descriptor)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno not in _UNSUPPORTED:
            raise
        warnings.warn(
            f"The file system of {str(path.parent)!r} has no locks ({error.strerror}): two processes that save to this "
            "folder at once can spoil it.",
            stacklevel=5,
        )
    return True


def _lock(descriptor: int) -> None:
    """Lock the file, or raise OSError at once if another one has it."""
    if os.name == "nt":
        windows: Any = importlib.import_module("msvcrt")
        windows.locking(descriptor, windows.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_there(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def steady(folder: Path, names: Sequence[str], read: Callable[[], _T], *, whole: bool = False) -> _T:
    """Call ``read``, and call it again if it failed, or ``whole`` is wanted, while another process was saving.

    Args:
        folder: where ``read`` reads.
        names: the files that it reads.
        read: raises :class:`AdapterFileError` if what it finds does not belong together.
        whole: ``read`` cannot tell by itself whether it has read files of one save.

    Returns:
        What ``read`` returned.

    Raises:
        AdapterFileError: ``read`` raised it, and no file changed meanwhile.
    """
    for attempt in range(_ATTEMPTS):
        before = _state(folder, names)
        try:
            found = read()
        except AdapterFileError:
            # File systems tell times to some milliseconds, so the first failures may be a change that does not show.
            if before == _state(folder, names) and attempt >= 2:
                raise
        else:
            if not whole or before == _state(folder, names):
                return found
        time.sleep(min(0.005 * 2**attempt, 0.2))
    try:
        with locked(folder):  # another process saves without a pause
            return read()
    except OSError as error:
        raise unsteady(folder, error) from error


def _state(folder: Path, names: Sequence[str]) -> list[tuple[int, ...] | None]:
    found: list[tuple[int, ...] | None] = []
    for name in names:
        try:
            about = os.stat(folder / name)
            found.append((about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns))
        except (OSError, ValueError):
            found.append(None)
    return found
