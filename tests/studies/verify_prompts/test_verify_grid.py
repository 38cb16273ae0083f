"""The grid repeats no finished run and reports a crashed one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bayes_adapters.analysis.records import read_records
from examples.studies.grid import gather

pytestmark = pytest.mark.usefixtures("offline")


def test_the_grid_repeats_no_finished_run_and_reports_a_crashed_one(evaluated: Path) -> None:
    (evaluated / "checkpoints").write_text("a file where the runs want a folder")
    before = {name: (evaluated / name).read_bytes() for name in ("lora-text-0.json", "lora-text-0.csv")}
    out = evaluated / "all.json"
    command = [
        sys.executable,
        "-m",
        "examples.studies.verify_prompts.results",
        "--device",
        "cpu",
        "--seeds",
        "1",
        "--jobs",
        "1",
    ]
    command += ["--methods", "lora-text", "c-lora", "--runs", str(evaluated), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1, done.stderr
    log = evaluated / "c-lora-0.log"
    assert f"c-lora seed 0: FAILED, see {log}" in done.stderr
    assert re.search(r"^error: \[Errno .*checkpoints", log.read_text(), re.MULTILINE)
    assert not (evaluated / "lora-text-0.log").exists()
    assert before == {name: (evaluated / name).read_bytes() for name in before}
    assert {r.method for r in read_records(out)} == {"lora-text"}
    assert "lora-text" in (evaluated / "report.md").read_text()


def test_nothing_finished_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gather(["lora-text"], [0, 1], tmp_path, tmp_path / "all.json") == []
    assert not (tmp_path / "all.json").exists()
