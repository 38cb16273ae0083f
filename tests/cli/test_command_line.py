"""Every command: usage errors, tracebacks on demand, devices, terminals without Unicode."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bayes_adapters.cli import main
from bayes_adapters.devices import pick_device
from bayes_adapters.errors import AdapterFileError, ConfigError, DataError
from tests.cli.parts import Run
from tests.refusals import refuses


def test_debug_shows_the_traceback(home: Path) -> None:
    with refuses(DataError, "'absent.wav'", "wav"):
        main(["verify", "absent.wav", "one", "--adapter", str(home / "adapter"), "--debug"])
    with pytest.raises(AdapterFileError):
        main(["show", str(home / "text"), "--debug"])


def test_devices() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with refuses(ConfigError, "'cuda'", "'cpu'", "'auto'"):
            pick_device("cuda")


def test_output_survives_a_terminal_without_unicode(home: Path) -> None:
    for command in (["show", str(home / "adapter")], ["targets", str(home / "text")]):
        done = subprocess.run(
            [sys.executable, "-c", "from bayes_adapters.cli import main; raise SystemExit(main())", *command],
            capture_output=True, env={"PYTHONIOENCODING": "ascii", "PATH": ""}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [(), ("verfy",), ("verify", "a.wav"), ("targets", "x", "--rank", "many")])
def test_usage_errors(run: Run, arguments: tuple[str, ...]) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert "usage: bayes-adapters" in err
    assert run("--help")[0] == 0
