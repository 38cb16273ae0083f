"""The two files of a saved adapter: written whole or not at all, and read strictly.

Whatever is read is checked in this order: regular files of a possible size, the sections of the description, its
checksum, the size and the checksum of the weights. Only then is anything looked up or built that the files name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from torch import Tensor

from bayes_adapters.errors import AdapterFileError
from bayes_adapters.files._checks import (
    FORMAT,
    FORMAT_VERSION,
    bytes_of,
    kind,
    require_description,
    require_same,
)
from bayes_adapters.files._file_checks import finite, no_number, occupied, unreadable, unwritable
from bayes_adapters.files._folder_checks import (
    no_description,
    no_json,
    not_json,
    not_safetensors,
    require_described,
    require_no_file,
    require_short,
    require_unaltered,
)
from bayes_adapters.files._lock import locked, steady
from bayes_adapters.files._regular import as_folder, read_regular
from bayes_adapters.files._whole_file import remove_leftovers, replace_file, sync_folder

WEIGHTS, DESCRIPTION = "adapter.safetensors", "adapter.json"
_TEMPORARY = ".adapter"  # how the names of files begin that an interrupted save leaves behind
_PENDING = f"{_TEMPORARY}-next.json"  # the description of a save that has not ended
_FILES = (_PENDING, WEIGHTS, DESCRIPTION)

_LONGEST = 2**28  # bytes of a description
_HEADER = 8 + 100_000_000  # most bytes before the tensors in a safetensors file


def describe(directory: str | Path) -> dict[str, Any]:
    """Return the checked contents of ``adapter.json``; the tensors are not read.

    Raises:
        AdapterFileError: the file is absent, no adapter's description, altered after saving, or of a newer format.
    """
    folder = as_folder(directory)
    return steady(folder, _FILES, lambda: _description(folder))


def read_adapter(directory: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the contents of ``adapter.json`` and the tensors, both of one save.

    Raises:
        AdapterFileError: a file is absent, altered, or the tensors are others than the description says.
    """
    folder = as_folder(directory)
    about, data = steady(folder, _FILES, lambda: _both(folder))
    path = folder / WEIGHTS
    try:
        tensors = tensors_from_bytes(data)
    except (SafetensorError, KeyError) as error:
        raise not_safetensors(path, error) from error
    require_same(path, "described", about["weights"]["tensors"], {name: kind(t) for name, t in tensors.items()})
    return about, tensors


def verified(directory: str | Path) -> dict[str, Any]:
    """Return the contents of ``adapter.json`` after both files were found unaltered.

    Raises:
        AdapterFileError: see :func:`read_adapter`.
    """
    return read_adapter(directory)[0]


def to_json(content: dict[str, Any]) -> str:
    """Return ``content`` as JSON, with a checksum of it.

    Raises:
        ConfigError: a section holds something else than strings, finite numbers, lists and dictionaries, or all of it
            is longer than would be read again.
    """
    for section, value in content.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise no_json(section, error) from error
    text = json.dumps(content | {"checksum": _checksum(content)}, indent=1, allow_nan=False) + "\n"
    require_short(text, _LONGEST)
    return text


def require_free(folder: Path) -> None:
    """Raise :class:`AdapterFileError` unless an adapter may be written to ``folder``: new, empty, or an older one."""
    if not folder.is_dir():
        require_no_file(folder)
        return
    others = [p.name for p in folder.iterdir() if not p.name.startswith(_TEMPORARY)]
    if others and _pending(folder) is None and not _is_ours(folder / DESCRIPTION):
        raise occupied(folder, others, f"{DESCRIPTION} of this library", "a new or empty folder")


def _is_ours(path: Path) -> bool:
    """Whether this is a description, even a damaged one, of a format that this library may replace."""
    try:
        about = json.loads(read_regular(path, 0, _LONGEST, "a description"))
    except (OSError, ValueError, RecursionError):
        return False
    number = about.get("format_version") if isinstance(about, dict) and about.get("format") == FORMAT else None
    return isinstance(number, int) and number <= FORMAT_VERSION


def write(folder: Path, weights: bytes, description: str) -> None:
    """Write both files, each whole or not at all, while no other process does.

    The description is written first, beside the old one: after a crash the folder holds the old adapter or the new one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            require_free(folder)  # again: another process may have been here
            if _pending(folder) is not None:
                _end(folder)  # a save that was interrupted
            remove_leftovers(folder, (WEIGHTS, DESCRIPTION, _PENDING))
            replace_file(folder / _PENDING, description.encode())
            try:
                replace_file(folder / WEIGHTS, weights)
            except OSError:
                (folder / _PENDING).unlink(missing_ok=True)
                raise
            _end(folder)
    except OSError as error:
        raise unwritable(folder, error) from error


def _both(folder: Path) -> tuple[dict[str, Any], bytes]:
    about = _description(folder)
    return about, _weights(folder, about)


def _description(folder: Path) -> dict[str, Any]:
    """Read what describes the weights: ``adapter.json``, or what an interrupted save left to replace it."""
    pending = _pending(folder)
    if pending is not None:
        return pending
    path = folder / DESCRIPTION
    try:
        return _parsed(path)
    except OSError as error:
        raise no_description(folder, path, error) from error


def _pending(folder: Path) -> dict[str, Any] | None:
    """Return the description that an interrupted save left, if the weights are already the ones it describes."""
    try:
        about = _parsed(folder / _PENDING)
        _weights(folder, about)
    except (OSError, AdapterFileError):
        return None
    return about


def _parsed(path: Path) -> dict[str, Any]:
    """Return a description whose sections and checksum were found right; older ones have no checksum."""
    data = read_regular(path, 0, _LONGEST, "a description")
    try:
        found = json.loads(data, parse_constant=no_number, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise not_json(path, error) from error
    about = require_description(path, found)
    if "checksum" in about:
        require_unaltered(path, about["checksum"], _checksum(about))
    return about


def _weights(folder: Path, about: Mapping[str, Any]) -> bytes:
    """Return the bytes of the weights that ``about`` describes."""
    path = folder / WEIGHTS
    size = sum(bytes_of(kind) for kind in about["weights"]["tensors"].values())
    try:
        data = read_regular(path, size, size + _HEADER, f"the tensors that {DESCRIPTION} describes")
    except OSError as error:
        raise unreadable(path, error, "Copy the whole folder again.") from error
    require_described(path, len(data), hashlib.sha256(data).hexdigest(), about, DESCRIPTION)
    return data


def _checksum(content: Mapping[str, Any]) -> str:
    described = json.dumps({key: value for key, value in content.items() if key != "checksum"})
    return hashlib.sha256(json.dumps(json.loads(described), sort_keys=True).encode()).hexdigest()


def _end(folder: Path) -> None:
    with suppress(FileNotFoundError):
        os.replace(folder / _PENDING, folder / DESCRIPTION)
        sync_folder(folder)
