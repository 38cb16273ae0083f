"""What is refused of a checkpoint: a damaged one, one of another run, and a state that it cannot hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bayes_adapters.errors import AdapterFileError, ConfigError

_ADVICE = "Delete it, or pass resume=False, to start anew."


def unwritable(directory: Path, size: int, error: OSError) -> AdapterFileError:
    """Build the error for a checkpoint of ``size`` bytes that cannot be written."""
    return AdapterFileError(
        f"The checkpoint cannot be written into {directory} ({error}). Is that a folder you may write to, with "
        f"{size / 2**20:.0f} MiB free? Pass another checkpoint=."
    )


def unreadable(path: Path, error: Exception) -> AdapterFileError:
    """Build the error for a file that is no whole checkpoint."""
    return AdapterFileError(f"{path} is not a readable checkpoint ({error}). Was it cut short? {_ADVICE}")


def require_intact(path: Path, stated: object, digest: str) -> None:
    """Raise :class:`AdapterFileError` unless the SHA-256 that a checkpoint states is that of its content."""
    if stated != digest:
        raise AdapterFileError(f"{path} is corrupt: its checksum does not match its content. {_ADVICE}")


def require_format(path: Path, found: object, known: int) -> None:
    """Raise :class:`AdapterFileError` unless a checkpoint has the format ``known``."""
    if found != known:
        raise AdapterFileError(f"{path} has format {found}; this version reads {known}. {_ADVICE}")


def require_same_run(path: Path, differing: Sequence[str]) -> None:
    """Raise :class:`ConfigError` if a checkpoint's run and this one differ, listing the differences."""
    if differing:
        listed = "\n".join(f"  {line}" for line in differing)
        raise ConfigError(
            f"{path} was written by another run, so this one cannot continue it:\n{listed}\n"
            "Give this run its own directory, restore the old settings, or pass resume=False to start anew."
        )


def not_kept(path: str, value: object) -> ConfigError:
    """Build the error for a state, found at ``path``, that a checkpoint cannot hold."""
    return ConfigError(
        f"The state {path!r} is a {type(value).__name__}, which a checkpoint without pickle cannot hold. Use an "
        "optimizer and scheduler whose state is numbers and tensors, or pass checkpoint=None."
    )


def damaged(tree: object, error: Exception) -> AdapterFileError:
    """Build the error for a state that was not written by this library."""
    return AdapterFileError(f"The checkpoint's description is damaged near {str(tree)[:80]!r}: {error}.")
