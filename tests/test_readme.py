"""The README's example prints what the README says, and what the README names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bayes_adapters.systems import PROCEDURES, SYSTEMS

README = Path(__file__).resolve().parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
NUMBER = re.compile(r"\d\.\d\d")


@pytest.mark.usefixtures("offline")
def test_the_example_prints_what_the_readme_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Word for word; numbers to .05, for machines add in different orders."""
    found = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None
    code, promised = found.groups()
    exec(compile(code, str(README), "exec"), {})
    printed = capsys.readouterr().out
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", promised)
    values, wanted = ([float(v) for v in NUMBER.findall(text)] for text in (printed, promised))
    assert values == pytest.approx(wanted, abs=0.05)


def test_it_is_short() -> None:
    assert len(TEXT.encode()) <= 8_000


def test_every_file_it_names_exists() -> None:
    names = re.findall(r"`([A-Za-z_]+(?:/[A-Za-z_0-9.]+)*\.(?:md|json|py|toml))`", TEXT)
    names += re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert len(names) > 10
    for name in names:
        assert name.startswith("runs/") or (README.parent / name).exists(), name


def test_every_method_it_names_exists() -> None:
    methods = TEXT.split("## Methods")[1].split("\n[Which method when]")[0]
    named = set(re.findall(r"`([a-z0-9-]+)`", methods.split("\n* ", 1)[1]))
    assert len(named) > 15
    assert named <= {*SYSTEMS, *PROCEDURES}


def test_targets_that_it_names_are_in_the_makefile() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z-]+)", TEXT)) - {"help"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
