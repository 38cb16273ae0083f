"""The commands of script verification refuse wrong options and devices that are not there."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

from examples.studies.verify_prompts import ablation, demo, results

pytestmark = pytest.mark.usefixtures("offline")

MAINS: dict[str, Callable[[], int]] = {
    "demo": demo.main,
    "results": results.ScriptVerification().main,
    "ablation": ablation.Ablation().main,
}


@pytest.mark.parametrize("name", list(MAINS))
@pytest.mark.parametrize(
    ("device", "message"),
    [
        pytest.param(
            "cuda",
            "The device 'cuda' cannot be used",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU"),
        ),
        ("nonsense", "The device 'nonsense' cannot be used"),
    ],
)
def test_a_device_that_is_not_there(
    name: str, device: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--device", device])
    assert MAINS[name]() == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert "Take 'cpu', 'cuda' or 'auto'" in error


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("demo", ["--methods", "caliber-y"]),
        ("results", ["--methods", "caliber-y"]),
        ("results", ["--jobs", "0"]),
        ("ablation", ["--variants", "caliber-y"]),
    ],
)
def test_wrong_options(
    name: str, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, *options])
    with pytest.raises(SystemExit) as stopped:
        MAINS[name]()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert ("invalid choice: 'caliber-y'" in error and "choose from" in error) or "--jobs and --seeds" in error
