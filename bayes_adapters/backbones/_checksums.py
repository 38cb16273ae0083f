"""SHA-256 of what was fetched, against digests known to be good; and small facts kept in the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path

from bayes_adapters.errors import MissingResourceError

_VERIFIED = "verified"


def files_below(folder: Path, skip: Collection[str] = ()) -> dict[str, Path]:
    """Return relative path → file of every file below ``folder``, without compiled Python and ``skip``."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path for name, path in found.items() if "__pycache__" not in path.parts and name not in skip}


def digest(files: Mapping[str, Path]) -> str:
    """Return ``SHA-256(name₁ 0 SHA-256(file₁) name₂ 0 …)``, 64 hexadecimal digits, names in order."""
    whole = hashlib.sha256()
    for name, path in sorted(files.items()):
        with path.open("rb") as file:
            whole.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def check_files(files: Mapping[str, Path], known: Collection[str], what: str, fix: str, memory: Path) -> None:
    """Raise unless the files have one of the ``known`` digests.

    Files of unchanged names, sizes and times are not read again: ``memory`` says which those are.

    Args:
        files: name → file.
        known: digests of :func:`digest`.
        what: the files are, for the error.
        fix: what can be done, for the error.
        memory: the cache folder.

    Raises:
        MissingResourceError: another digest; the message names both.
    """
    stats = [(name, path.stat()) for name, path in sorted(files.items())]
    stamp = json.dumps([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats] + sorted(known))
    stamp = hashlib.sha256(stamp.encode()).hexdigest()
    key = os.path.commonpath(map(str, files.values())) if files else what
    if recall(memory, _VERIFIED).get(key) == stamp:
        return
    found = digest(files)
    if found not in known:
        raise MissingResourceError(
            f"{what}: the {len(files)} files have SHA-256 {found}; {' or '.join(sorted(known))} is expected. They are "
            f"damaged, altered, or of another version. {fix}"
        )
    remember(memory, _VERIFIED, key, stamp)


def recall(memory: Path, kind: str) -> dict[str, str | None]:
    """Return what is remembered of a kind, name → text; nothing where it cannot be read."""
    try:
        facts = json.loads((memory / f"{kind}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    fine = isinstance(facts, dict) and all(value is None or isinstance(value, str) for value in facts.values())
    return facts if fine else {}


def remember(memory: Path, kind: str, name: str, fact: str | None) -> None:
    """Remember a fact for later processes; where the folder cannot be written, nobody does."""
    try:
        temporary = memory / f".{kind}-{secrets.token_hex(8)}.tmp"  # not mkstemp's: others may read a shared cache
        with temporary.open("x", encoding="utf-8") as file:
            json.dump(recall(memory, kind) | {name: fact}, file, indent=1)
        temporary.replace(memory / f"{kind}.json")
    except OSError:
        return
