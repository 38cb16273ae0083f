"""The demo refuses what it could not save before it fetches anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bayes_adapters.errors import MissingResourceError
from examples.studies.verify_prompts import demo
from examples.studies.verify_prompts.corpus import Corpus
from examples.studies.verify_prompts.methods import METHODS

HEARS = [name for name, method in METHODS.items() if method.hears]


def ended(methods: list[str], out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of the command line where nothing can be fetched."""

    def load() -> Corpus:
        raise MissingResourceError("fetching")

    monkeypatch.setattr(Corpus, "load", load)
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(out), "--device", "cpu", "--methods", *methods])
    return demo.main()


@pytest.mark.parametrize("method", HEARS)
def test_what_verify_cannot_serve_is_refused_before_anything_is_fetched(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended([method, "c-lora"], tmp_path / "out", monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: The demo saves the adapter of the first method")
    assert f"{method} adapts the speech encoder" in said
    assert f"--methods caliber-x {method}." in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("methods", [["caliber-x", *HEARS], ["lora-text"]])
def test_what_is_only_compared_may_hear(
    methods: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(methods, tmp_path / "out", monkeypatch) == 2
    assert capsys.readouterr().err == "error: fetching\n"
    assert len(HEARS) == 3
