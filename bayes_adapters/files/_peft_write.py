"""A PEFT folder that is replaced in one step.

PEFT reads its two files by their names, so they cannot be replaced at once where they are. The new ones are written to
a folder beside them, and one rename says that they count; then they are copied to their places. After a crash
:func:`source` finds the old adapter or the new one, and PEFT itself finds one of them or no configuration: the old one
is taken away first wherever it differs.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from bayes_adapters.files._file_checks import occupied, unwritable
from bayes_adapters.files._lock import LOCK, locked
from bayes_adapters.files._peft_config import CONFIG
from bayes_adapters.files._peft_tensors import WEIGHTS
from bayes_adapters.files._regular import read_regular
from bayes_adapters.files._whole_file import remove_leftovers, replace_file, sync_folder

HEAD = "bayes_adapters_head.safetensors"
_NEXT = ".bayes_adapters-next"
_WORK = re.compile(r"\.bayes_adapters-[0-9a-f]{16}")
_FILES = (WEIGHTS, HEAD, CONFIG)
STATE = (_NEXT, *(f"{_NEXT}/{name}" for name in _FILES), *_FILES)
"""Whatever changes while a folder is replaced."""


def source(folder: Path) -> Path:
    """Return the folder whose files count: ``folder``, or the one in it that an interrupted write has left."""
    pending = folder / _NEXT
    return pending if pending.is_dir() else folder


def replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make ``files`` the adapter in ``folder``, whole or not at all, while no other process does.

    Args:
        folder: made when absent. Files of other names are left alone.
        files: name → bytes; what is missing is removed there.

    Raises:
        AdapterFileError: the folder holds other things, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            _require_none(folder, _others(folder))
            if (folder / _NEXT).is_dir():
                _finish(folder)
            _clean(folder)
            work = folder / f".bayes_adapters-{secrets.token_hex(8)}"
            try:
                work.mkdir()
                for name, data in files.items():
                    replace_file(work / name, data)
                os.rename(work, folder / _NEXT)
                sync_folder(folder)
            except OSError:
                shutil.rmtree(work, ignore_errors=True)
                raise
            _finish(folder)
    except OSError as error:
        raise unwritable(folder, error) from error


def require_free(folder: Path) -> None:
    """Raise :class:`AdapterFileError` unless an adapter may be written: the folder is new, empty or one of PEFT's.

    While another process replaces the adapter there, the folder is none for a moment: its end is waited for.
    """
    others = _others(folder)
    if {_NEXT, *_FILES} & {*others}:
        with suppress(OSError), locked(folder):  # nobody replaces anything in a folder that cannot be written
            others = _others(folder)
    _require_none(folder, others)


def _require_none(folder: Path, others: list[str]) -> None:
    if others:
        raise occupied(folder, others, f"{CONFIG} of PEFT", "a new folder")


def _others(folder: Path) -> list[str]:
    """The names in a folder that is none of PEFT's; what an interrupted write left makes it one."""
    if not folder.is_dir() or (folder / _NEXT).is_dir():
        return []
    others = [p.name for p in folder.iterdir() if p.name != LOCK and not _WORK.fullmatch(p.name)]
    return [] if _is_pefts(folder / CONFIG) else others


def _is_pefts(path: Path) -> bool:
    try:
        about = json.loads(read_regular(path, 0, 2**26, "a configuration"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(about, dict) and "peft_type" in about


def _finish(folder: Path) -> None:
    """Copy the files that count to their places, the configuration last; then they count there."""
    pending = folder / _NEXT
    new = {name: (pending / name).read_bytes() for name in _FILES if (pending / name).is_file()}
    config = folder / CONFIG
    if config.is_file() and config.read_bytes() != new[CONFIG]:
        config.unlink()  # PEFT must not read the new weights with the old scale
    for name in _FILES:
        if name in new:
            replace_file(folder / name, new[name])
        else:
            (folder / name).unlink(missing_ok=True)
    work = folder / f".bayes_adapters-{secrets.token_hex(8)}"
    os.rename(pending, work)
    shutil.rmtree(work, ignore_errors=True)


def _clean(folder: Path) -> None:
    remove_leftovers(folder, _FILES)
    for path in folder.iterdir():
        if _WORK.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
