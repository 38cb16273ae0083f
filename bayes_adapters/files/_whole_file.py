"""A file that is replaced in one step."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: a reader finds the old file or the new one, never half of either, even after a crash.

    Meanwhile the new one lies beside it under a name that begins with a dot and the file's own name.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    temporary = path.with_name(f".{path.name.lstrip('.')}-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Have the names in ``folder`` on the disk, so that a power cut brings no old ones back; Windows cannot."""
    if os.name != "posix":
        return
    with suppress(OSError):  # some file systems cannot; the file itself is there
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder: Path, names: Sequence[str]) -> None:
    """Remove what killed calls of :func:`replace_file` have left of these files; no other call may be at work."""
    pattern = re.compile("|".join(rf"\.{re.escape(name.lstrip('.'))}-[0-9a-f]{{16}}" for name in names))
    for path in folder.iterdir():
        if pattern.fullmatch(path.name):
            path.unlink(missing_ok=True)
