"""Commands of the examples that are given what they cannot use: one line, exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.studies import training_free
from examples.studies.speaking_time import bayeslora_2025, one_seed
from examples.studies.verify_prompts import demo, features, tables

COMMANDS: dict[str, tuple[Callable[[], int], list[str], str]] = {
    "no epochs": (training_free.command, ["--epochs", "0"], "epochs must be a whole number of at least 1"),
    "no page": (tables.main, ["--page", "absent.md", "--results", "."], "No such file"),
    "no results": (tables.main, ["--page", "absent.md", "--results", "absent"], "nothing was written"),
    "unknown condition": (features.main, ["--conditions", "nope"], "Unknown condition 'nope'"),
    "out is a file": (demo.main, ["--short", "--out", "a.file"], "File exists"),
    "out is a file, before training": (
        lambda: one_seed.command(bayeslora_2025.main, None),
        ["--quick", "--out", "a.file"],
        "File exists",
    ),
}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_ends_with_a_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, arguments, says = COMMANDS[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.file").touch()
    (tmp_path / "verify_prompts.json").write_text("[]")
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    assert command() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")
