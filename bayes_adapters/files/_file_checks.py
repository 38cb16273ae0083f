"""What is refused of files and folders as such: their paths, kinds and sizes, and what the system says of them."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from bayes_adapters.errors import AdapterFileError, ConfigError, described

POINTER = b"version https://git-lfs.github.com/spec/"
"""How a pointer of Git LFS begins."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def require_path(directory: object) -> None:
    """Raise :class:`ConfigError` unless ``directory`` is a text or a path."""
    if not isinstance(directory, str | os.PathLike):
        raise ConfigError(f"A folder is given as a text or a Path; got {described(directory)}.")


def require_regular(path: Path, mode: int) -> None:
    """Raise :class:`AdapterFileError` unless ``mode``, of ``os.stat``, is that of a regular file."""
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise AdapterFileError(
            f"{str(path)!r} is {kind}; an adapter consists of regular files. Give the folder that the adapter was "
            "saved to."
        )


def require_no_pointer(path: Path, start: bytes) -> None:
    """Raise :class:`AdapterFileError` if a file's first bytes are those of a pointer of Git LFS."""
    if start == POINTER:
        raise AdapterFileError(
            f"{str(path)!r} is not the file itself but a pointer of Git LFS to it. Fetch the file with "
            "`git lfs pull`, or download it from where it is stored."
        )


def require_size(path: Path, size: int, least: int, most: int, because: str) -> None:
    """Raise :class:`AdapterFileError` unless ``least`` ≤ ``size`` ≤ ``most``, all in bytes."""
    if not least <= size <= most:
        raise AdapterFileError(
            f"{str(path)!r} has {size:,} bytes; {least:,} to {most:,} are possible for {because}. It "
            "was cut off, altered, or comes from another save; copy the whole folder again, or save it again."
        )


def no_path(path: Path, error: ValueError) -> AdapterFileError:
    """Build the error for a text that no file can have as its path."""
    return AdapterFileError(f"{str(path)!r} is no path of a file: {error}.")


def too_large(path: Path) -> AdapterFileError:
    """Build the error for a file that the memory cannot hold."""
    return AdapterFileError(f"{str(path)!r} does not fit into the memory of this machine.")


def unusable(folder: Path, error: OSError | ValueError) -> AdapterFileError:
    """Build the error for a folder that no file system can have, or that may not be looked at."""
    reason = getattr(error, "strerror", None) or error
    return AdapterFileError(
        f"The folder {str(folder)[:200]!r} cannot be used: {reason}. Check the path and its permissions."
    )


def closed(folder: Path, error: OSError) -> AdapterFileError:
    """Build the error for a folder whose contents cannot be listed or read."""
    return AdapterFileError(
        f"Cannot look into {str(folder)!r}: {error}. Check its permissions, or choose another folder."
    )


def unreadable(path: Path, error: OSError, fix: str = "") -> AdapterFileError:
    """Build the error for a file that cannot be read; ``fix`` is a sentence that says what to do."""
    return AdapterFileError(f"{str(path)!r} cannot be read ({error.strerror or error}).{' ' if fix else ''}{fix}")


def unwritable(folder: Path, error: OSError) -> AdapterFileError:
    """Build the error for a folder that an adapter cannot be written to."""
    return AdapterFileError(
        f"Cannot write the adapter to {str(folder)!r}: {error}. Is the disk full, or the folder read-only?"
    )


def occupied(folder: Path, names: Sequence[str], lacking: str, choose: str) -> AdapterFileError:
    """Build the error for a folder of other things.

    Args:
        folder: where an adapter was to be written.
        names: of what it holds.
        lacking: the file that a folder of adapters would have.
        choose: what to choose instead.
    """
    return AdapterFileError(
        f"The folder {str(folder)!r} is not empty (it holds {', '.join(sorted(names)[:4])}) and has no {lacking}; "
        f"nothing was written. Choose {choose}."
    )


def held_up(folder: Path, seconds: float) -> AdapterFileError:
    """Build the error for a folder that another process has locked for too long."""
    return AdapterFileError(
        f"Another process has been saving to {str(folder)!r} for {seconds:g} s. Wait for it, end it if it "
        "hangs, or save to another folder."
    )


def unsteady(folder: Path, error: OSError) -> AdapterFileError:
    """Build the error for a folder that another process changes all the time and that cannot be locked."""
    return AdapterFileError(
        f"Another process changes {str(folder)!r} without a pause, and it cannot be waited for: {error}. Copy the "
        "folder, or read it when the other one has ended."
    )


def no_number(text: str) -> float:
    """Refuse NaN and infinities, which JSON does not have; for ``parse_constant`` of :func:`json.loads`."""
    raise ValueError(f"{text} is no number of JSON")


def finite(text: str) -> float:
    """Return the number that ``text`` says, or refuse one that overflows; for ``parse_float`` of :func:`json.loads`."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number
