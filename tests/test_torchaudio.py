"""Text models and recordings beside a torchaudio that cannot be loaded, or that is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bayes_adapters.backbones import _torchaudio, cache_folder

ROOT = Path(__file__).resolve().parents[1]
TEXT = """
import sys
from bayes_adapters.backbones import text_backbone

model, tokenizer = text_backbone()
assert model(**tokenizer("hello", return_tensors="pt")).last_hidden_state.shape == (1, 3, 384)
"""
SPEECH = """
import torch
import soundfile
from bayes_adapters.backbones import speech_encoder
from bayes_adapters.speech.audio import read_audio

soundfile.write(sys.argv[1], torch.randn(8_000).numpy() * 0.1, 8_000)
assert speech_encoder()([read_audio(sys.argv[1])]).values.shape == (1, 50, 384)
"""
OWN = """
assert "torchaudio" not in sys.modules
try:
    import torchaudio
except BaseException as error:
    print(type(error).__name__, error)
"""


def broken(folder: Path, source: str) -> Path:
    """A folder with a torchaudio whose import runs ``source``."""
    (folder / "torchaudio").mkdir(parents=True)
    (folder / "torchaudio" / "__init__.py").write_text(source)
    (folder / "torchaudio-9.8.7.dist-info").mkdir()
    (folder / "torchaudio-9.8.7.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchaudio\nVersion: 9.8.7\n"
    )
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with the models of the usual one, and no answers."""
    folder = tmp_path / "cache"
    folder.mkdir()
    for name in ("wheels", "models"):
        (cache_folder() / name).mkdir(exist_ok=True)
        (folder / name).symlink_to(cache_folder() / name)
    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(folder))
    return folder


def run(program: str, path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = os.environ | {"PYTHONPATH": str(path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=clean, cwd=ROOT, timeout=300)


def check(done: subprocess.CompletedProcess[str], cache: Path, reason: str, lines: int, own: str | None) -> None:
    """``reason`` is in so many lines of the error stream, and in the cache; torchaudio's ``own`` error is its own."""
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (own or "").strip()
    said = [line for line in done.stderr.splitlines() if "9.8.7" in line]
    assert len(said) == lines
    assert all(reason in line for line in said)
    (answer,) = json.loads((cache / "torchaudio.json").read_text().replace("null", '"none"')).values()
    assert reason in answer


def test_text_and_speech_beside_a_torchaudio_that_cannot_be_loaded(tmp_path: Path, cache: Path) -> None:
    """The second process asks the cache."""
    path = broken(tmp_path / "path", "raise OSError('undefined symbol: abc')")
    for lines in (1, 0):
        done = run(TEXT + SPEECH + OWN, path, str(tmp_path / "a.wav"))
        check(done, cache, "undefined symbol: abc", lines, "OSError undefined symbol: abc")


@pytest.mark.parametrize(
    ("source", "own", "reason"),
    [
        ("raise RuntimeError('CUDA 13.0 beside 13.2')", "RuntimeError CUDA 13.0 beside 13.2", "CUDA 13.0 beside 13.2"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt ", "KeyboardInterrupt"),
        ("import os, sys; 'elsewhere' in sys.modules or os.abort()", None, "-6"),
    ],
)
def test_every_way_in_which_a_torchaudio_cannot_be_loaded(
    tmp_path: Path, cache: Path, source: str, own: str | None, reason: str
) -> None:
    """Its own import still gives its own error."""
    path = broken(tmp_path / "path", source)
    check(run(TEXT if own is None else TEXT + OWN, path), cache, reason, 1, own)


def test_the_command_line_beside_a_broken_torchaudio(tmp_path: Path, cache: Path) -> None:
    path = broken(tmp_path / "path", "raise OSError('undefined symbol: abc')")
    program = "import sys; from bayes_adapters.cli import main; sys.exit(main(sys.argv[1:]))"
    done = run(program, path, "targets", "sentence-transformers/all-MiniLM-L6-v2")
    assert done.returncode == 0, done.stderr
    assert "12 layers of BertModel" in done.stdout


def test_transformers_that_does_not_forget(tmp_path: Path, cache: Path) -> None:
    """Where its check keeps its answer, the error names both versions, the cause and what to do."""
    path = broken(tmp_path / "path", "raise OSError('undefined symbol: abc')")
    program = """
import functools, importlib.util
import transformers.utils
transformers.utils.is_torchaudio_available = lambda: True
from bayes_adapters.backbones import text_backbone
try:
    text_backbone()
except RuntimeError as error:
    print(type(error).__name__, error)
"""
    done = run(program, path)
    assert done.returncode == 0, done.stderr
    import torch

    for word in ("MissingResourceError", "9.8.7", torch.__version__.split("+")[0], "undefined symbol: abc"):
        assert word in done.stdout
    assert "pip uninstall torchaudio" in done.stdout
    assert "bayes-adapters[" not in done.stdout


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(_torchaudio, "_load_elsewhere", lambda: "OSError: no")
    monkeypatch.setattr(_torchaudio, "say", lambda message: None)
    assert _torchaudio._why_not.__wrapped__() == "OSError: no"


def test_a_torchaudio_that_loads_or_is_absent_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import is_torchaudio_available

    before = is_torchaudio_available()
    monkeypatch.setattr(_torchaudio, "_why_not", lambda: None)
    _torchaudio.settle_torchaudio()
    monkeypatch.setattr(_torchaudio.importlib.util, "find_spec", lambda name: None)
    _torchaudio.settle_torchaudio()
    assert is_torchaudio_available() is before
