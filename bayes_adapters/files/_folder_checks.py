"""What is refused in the two files of a saved adapter as they are read and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayes_adapters.errors import AdapterFileError, ConfigError


def require_short(text: str, most: int) -> None:
    """Raise :class:`ConfigError` if a description has more than the ``most`` characters that are read again."""
    if len(text) > most:
        raise ConfigError(
            f"The description has {len(text):,} bytes and at most {most:,} are read again. Shorten the task, or "
            "take a prior with fewer numbers of its own."
        )


def require_no_file(folder: Path) -> None:
    """Raise :class:`AdapterFileError` if there is something at ``folder`` that is no folder."""
    if folder.exists() and not folder.is_dir():
        raise AdapterFileError(f"{str(folder)!r} is a file; an adapter is saved as a folder. Choose another name.")


def require_unaltered(path: Path, stated: object, checksum: str) -> None:
    """Raise :class:`AdapterFileError` unless the checksum that a description states is the one of its entries."""
    if stated != checksum:
        raise AdapterFileError(
            f"{str(path)!r} was altered after saving: its checksum differs, and another option or "
            "number can mean other predictions. Copy the whole folder again, or save the adapter again; who altered it "
            "on purpose takes its entry 'checksum' out."
        )


def require_described(path: Path, size: int, digest: str, about: Mapping[str, Any], description: str) -> None:
    """Raise :class:`AdapterFileError` unless weights have the SHA-256 that their description says.

    Args:
        path: the weights' file.
        size: of that file, bytes.
        digest: its SHA-256, 64 hexadecimal digits.
        about: the description.
        description: name of the description's file, for the message.
    """
    if digest != about["weights"]["sha256"]:
        raise AdapterFileError(
            f"{str(path)!r} ({size} bytes) is not the file that {description} describes: its checksum differs. "
            "It was cut off, altered, or comes from another save; copy the whole folder again, or save it again."
        )


def no_json(section: str, error: Exception) -> ConfigError:
    """Build the error for a section that JSON cannot say."""
    return ConfigError(
        f"The {section} cannot be written as JSON: {error}. Use strings, finite numbers, lists and dicts."
    )


def not_json(path: Path, error: Exception) -> AdapterFileError:
    """Build the error for a description that is not JSON."""
    return AdapterFileError(
        f"{str(path)!r} is not JSON ({error}). Copy the whole folder again, or save the adapter again."
    )


def not_safetensors(path: Path, error: Exception) -> AdapterFileError:
    """Build the error for weights that are not in the format of safetensors."""
    return AdapterFileError(f"{str(path)!r} is not a safetensors file: {error}. Save the adapter again.")


def no_description(folder: Path, path: Path, error: OSError) -> AdapterFileError:
    """Build the error for a folder whose description, at ``path``, is absent or cannot be read."""
    where = path if folder.is_dir() else folder
    absent = isinstance(error, FileNotFoundError | NotADirectoryError) and not folder.is_file()
    what = "does not exist" if absent else f"cannot be read ({error.strerror or error})"
    return AdapterFileError(f"{str(where)!r} {what}. Give the folder that bayes_adapters.save wrote.")
