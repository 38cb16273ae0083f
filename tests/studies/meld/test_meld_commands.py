"""The commands that choose KL weights, on a folder without data: a line for the user, no traceback."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from examples.studies.meld import fewest_ranks, kl_weights


@pytest.mark.parametrize("command", [fewest_ranks, kl_weights])
def test_a_folder_without_data(command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} has no train_sent_emo.csv")
