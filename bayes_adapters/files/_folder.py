"""The two files of a saved adapter: written whole or not at all, and read strictly."""

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

from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files._whole_file import replace_file

FORMAT = "bayes-adapters"
FORMAT_VERSION = 1
WEIGHTS, DESCRIPTION = "adapter.safetensors", "adapter.json"
_TEMPORARY = ".adapter"  # how the names of files begin that an interrupted save leaves behind
_PENDING = f"{_TEMPORARY}-next.json"  # the description of a save that has not ended

_SECTIONS: dict[str, type | tuple[type, ...]] = {
    "versions": dict,
    "model": dict,
    "model.structure": str,
    "model.config": dict,
    "model.config.targets": list,
    "model.prior_dtype": (str, type(None)),
    "likelihood": dict,
    "likelihood.name": str,
    "likelihood.config": dict,
    "prior": dict,
    "guide": dict,
    "guide.name": str,
    "guide.config": dict,
    "num_data": (int, type(None)),
    "base": dict,
    "base.class": str,
    "base.name_or_path": str,
    "base.dtype": str,
    "base.parameters": int,
    "base.fingerprint": str,
    "weights": dict,
    "weights.sha256": str,
    "weights.tensors": dict,
    "task": (dict, type(None)),
}


def describe(directory: str | Path) -> dict[str, Any]:
    """Return the checked contents of ``adapter.json``; the tensors are not read.

    Raises:
        AdapterFileError: the file is absent, no adapter's description, or of a newer format.
    """
    folder = Path(directory)
    path = _description(folder)
    try:
        about = json.loads(path.read_bytes())
    except OSError as error:
        where = path if folder.is_dir() else folder
        what = f"cannot be read ({error.strerror or error})" if where.exists() else "does not exist"
        raise AdapterFileError(f"{str(where)!r} {what}. Give the folder that bayes_adapters.save wrote.") from error
    except (ValueError, RecursionError) as error:
        raise AdapterFileError(
            f"{str(path)!r} is not JSON ({error}). Copy the whole folder again, or save the adapter again."
        ) from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise AdapterFileError(
            f"{str(path)!r} is JSON but describes no adapter of this library (its 'format' is not {FORMAT!r}). "
            "Give the folder that bayes_adapters.save wrote."
        )
    number = about.get("format_version")
    if not isinstance(number, int) or not 1 <= number <= FORMAT_VERSION:
        raise AdapterFileError(
            f"{str(path)!r} has format version {number!r}; this library reads versions 1 to {FORMAT_VERSION}. "
            "A newer bayes-adapters wrote it: update this one."
        )
    wrong = [key for key, kind in _SECTIONS.items() if not isinstance(_at(about, key), kind)]
    if wrong:
        raise AdapterFileError(
            f"{str(path)!r} lacks or misstates {', '.join(wrong)}. It was altered after saving; save the adapter again."
        )
    return about


def read_tensors(folder: Path, about: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the tensors that ``about`` describes.

    Raises:
        AdapterFileError: the file is absent, altered, or holds other tensors than ``about`` says.
    """
    path = folder / WEIGHTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AdapterFileError(
            f"{str(path)!r} cannot be read ({error.strerror or error}). Copy the whole folder again."
        ) from error
    if hashlib.sha256(data).hexdigest() != about["weights"]["sha256"]:
        raise AdapterFileError(
            f"{str(path)!r} ({len(data)} bytes) is not the file that {DESCRIPTION} describes: its checksum differs. "
            "It was cut off, altered, or comes from another save; copy the whole folder again, or save it again."
        )
    try:
        tensors = tensors_from_bytes(data)
    except (SafetensorError, KeyError) as error:
        raise AdapterFileError(f"{str(path)!r} is not a safetensors file: {error}. Save the adapter again.") from error
    require_same(path, "described", about["weights"]["tensors"], {name: kind(t) for name, t in tensors.items()})
    return tensors


def require_same(path: Path, what: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise :class:`AdapterFileError` listing every tensor that is missing, surplus, or of another shape or dtype."""
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is surplus" for name in found if name not in expected]
    wrong += [
        f"{name} is {found[name]} where {kind} is {what}"
        for name, kind in expected.items()
        if name in found and kind != found[name]
    ]
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise AdapterFileError(
            f"{str(path)!r} does not fit: {'; '.join(wrong[:8])}{more}. It was altered after saving, or the code that "
            "builds the adapter changed; copy the whole folder again, or save the adapter again."
        )


def kind(tensor: Tensor) -> str:
    """Say a tensor's dtype and shape, for example ``float32[8, 384]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def to_json(content: dict[str, Any]) -> str:
    """Return ``content`` as JSON, with a checksum of it.

    Raises:
        ConfigError: a section holds something else than strings, finite numbers, lists and dictionaries.
    """
    for section, value in content.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"The {section} cannot be written as JSON: {error}. Use strings, finite numbers, lists and dicts."
            ) from error
    return json.dumps(content | {"checksum": _checksum(content)}, indent=1, allow_nan=False) + "\n"


def require_unaltered(folder: Path, about: Mapping[str, Any]) -> None:
    """Raise :class:`AdapterFileError` if ``about`` is not what :func:`to_json` wrote; older files have no checksum."""
    if "checksum" in about and about["checksum"] != _checksum(about):
        raise AdapterFileError(
            f"{str(folder / DESCRIPTION)!r} was altered after saving: its checksum differs, and another option or "
            "number can mean other predictions. Copy the whole folder again, or save the adapter again; who altered it "
            "on purpose takes its entry 'checksum' out."
        )


def _checksum(content: Mapping[str, Any]) -> str:
    described = json.dumps({key: value for key, value in content.items() if key != "checksum"})
    return hashlib.sha256(json.dumps(json.loads(described), sort_keys=True).encode()).hexdigest()


def require_free(folder: Path) -> None:
    """Raise :class:`AdapterFileError` unless an adapter may be written to ``folder``: new, empty, or an older one."""
    if not folder.is_dir():
        if folder.exists():
            raise AdapterFileError(f"{str(folder)!r} is a file; an adapter is saved as a folder. Choose another name.")
        return
    others = [p.name for p in folder.iterdir() if p.name != WEIGHTS and not p.name.startswith(_TEMPORARY)]
    if not others:
        return
    try:
        describe(folder)
    except AdapterFileError as error:
        raise AdapterFileError(
            f"The folder {str(folder)!r} is not empty (it holds {', '.join(sorted(others)[:4])}) and has no "
            "readable adapter; nothing was written. Choose a new or empty folder."
        ) from error


def write(folder: Path, weights: bytes, description: str) -> None:
    """Write both files, each whole or not at all.

    The description is written first, beside the old one: after a crash the folder holds the old adapter or the new one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _description(folder).name == _PENDING:
            _end(folder)  # a save that was interrupted
        replace_file(folder / _PENDING, description.encode())
        try:
            replace_file(folder / WEIGHTS, weights)
        except OSError:
            (folder / _PENDING).unlink(missing_ok=True)
            raise
        _end(folder)
    except OSError as error:
        raise AdapterFileError(
            f"Cannot write the adapter to {str(folder)!r}: {error}. Is the disk full, or the folder read-only?"
        ) from error


def _description(folder: Path) -> Path:
    """The file that describes the weights: ``adapter.json``, or the one that an interrupted save left to replace it."""
    pending = folder / _PENDING
    try:
        checksum = json.loads(pending.read_bytes())["weights"]["sha256"]
        with (folder / WEIGHTS).open("rb") as weights:
            same = hashlib.file_digest(weights, "sha256").hexdigest() == checksum
    except (OSError, ValueError, LookupError, TypeError):
        return folder / DESCRIPTION
    return pending if same else folder / DESCRIPTION


def _end(folder: Path) -> None:
    with suppress(FileNotFoundError):  # another process has just put it there
        os.replace(folder / _PENDING, folder / DESCRIPTION)


def _at(about: Any, key: str) -> Any:
    """The value at a dotted key; an Ellipsis, which is of no JSON type, where there is none."""
    for part in key.split("."):
        about = about.get(part, ...) if isinstance(about, dict) else ...
    return about
