"""Where the answer goes, and interruptions."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import bayes_adapters.cli as cli
from tests.cli.parts import Run, check_refusal
from tests.files.parts import edit_json

COMMAND = [sys.executable, "-c", "from bayes_adapters.cli import main; raise SystemExit(main())"]


def test_version(run: Run) -> None:
    code, out, _ = run("--version")
    assert (code, out) == (0, "bayes-adapters 0.1.0\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_output(home: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "show", str(home / "adapter")], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    check_refusal((done.returncode, "", done.stderr), "No space left")


def test_an_output_that_nobody_reads_any_more(home: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*COMMAND, "show", str(home / "adapter")], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_an_ascii_output_escapes_what_it_lacks(
    home: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home / "adapter", tmp_path / "a")
    edit_json(tmp_path / "a", lambda about: about["base"].update(name_or_path="модель"))
    for encoding, shown in (("ascii", r"\u043c\u043e\u0434\u0435\u043b\u044c"), ("utf-8", "модель")):
        found = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(found, encoding))
        assert cli.main(["show", str(tmp_path / "a")]) == 0
        assert shown in found.getvalue().decode(encoding)


def test_an_interruption_is_no_error(run: Run, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    def interrupted(options: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_show", interrupted)
    assert run("show", home / "adapter") == (130, "", "")


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_ctrl_c_while_a_command_runs(tmp_path: Path) -> None:
    (tmp_path / "wait.py").write_text(
        "import signal, sys, time\nimport bayes_adapters.cli as cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs start without it
        "def wait(options):\n    print('ready', flush=True)\n    time.sleep(600)\n"
        "cli._show = wait\nsys.exit(cli.main(['show', 'x']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "wait.py")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert (process.returncode, errors) == (130, "")


@pytest.mark.parametrize("samples", [10**9, 10**30])
def test_more_draws_than_fit(samples: int, home: Path, run: Run) -> None:
    answer = run("verify", home / "good.wav", "one", "--adapter", home / "adapter", "--samples", samples)
    check_refusal(answer, "--samples", str(samples))


def test_code_of_a_models_folder_is_not_run(tmp_path: Path, run: Run) -> None:
    """`yes | bayes-adapters targets FOLDER` ran it."""
    (tmp_path / "config.json").write_text(
        '{"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}'
    )
    (tmp_path / "evil.py").write_text(
        "import pathlib\nfrom transformers import PretrainedConfig\n"
        f"pathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass Config(PretrainedConfig): model_type = 'mine'\n"
    )
    done = subprocess.run(
        [*COMMAND, "targets", str(tmp_path)], input="y\n" * 20, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("pattern", ["(([a-z]|[a-z0-9.])+)+!", "(a|a)*!", "(", "(?P<a>.)(?P=a)"])
def test_patterns_take_bounded_time(pattern: str, home: Path, run: Run) -> None:
    """Two of them would take years."""
    check_refusal(run("targets", home / "text", "--pattern", pattern), "matches" if "!" in pattern else pattern)
