"""Dev utterances choose the weight of the KL."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from examples.studies.meld import kl_weights, methods
from examples.studies.meld.experiment import train_member
from examples.studies.meld.methods import KL_WEIGHTS, METHODS, Build
from examples.studies.meld.task import Settings, Task
from tests.studies.meld.parts import SETTINGS, Tokenizer, backbone, write


def test_dev_utterances_choose_the_kl_weight(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    original = METHODS["blob"].build

    def build(parts: Any) -> Any:
        built = original(parts)
        seen.append(built.training.kl_weight)
        return built

    monkeypatch.setitem(METHODS, "blob", replace(METHODS["blob"], build=build))
    built = kl_weights.weighted("blob", 0.25)(Build(backbone(), num_data=60, steps=8, rank=2))
    assert (built.training.kl_weight, seen) == (0.25, [KL_WEIGHTS["blob"]])
    monkeypatch.setattr(methods, "PRUNE_THRESHOLD", -50.0)
    settings = replace(SETTINGS, epochs=2, dev_samples=2)
    bare = replace(task, test=None, foreign=None)  # type: ignore[arg-type]
    nll, kept = kl_weights.dev_nll(bare, "bayeslora-2026", 1e-2, 3, settings)
    _, history, _ = train_member(task, kl_weights.weighted("bayeslora-2026", 1e-2), 3, settings)
    assert [epoch["kl_weight"] for epoch in history] == pytest.approx([1e-2, 1e-2])
    assert (nll, kept) == (min(epoch["val_nll"] for epoch in history), 1.0)

    found: list[tuple[str, float, int, int | None, float]] = []

    def spy(made: Task, name: str, weight: float, seed: int, chosen: Settings) -> tuple[float, float]:
        nll, ranks = dev_nll(made, name, weight, seed, chosen)
        found.append((name, weight, len(made.train), chosen.train_size, nll))
        return nll, ranks

    dev_nll = kl_weights.dev_nll
    monkeypatch.setattr(kl_weights, "dev_nll", spy)
    monkeypatch.setattr(kl_weights, "text_backbone", lambda: (backbone(), Tokenizer()))
    monkeypatch.setattr(kl_weights, "backbone", backbone)
    monkeypatch.setattr(kl_weights, "Settings", partial(Settings, dev_size=20, rank=2))
    command = ["--data", str(write(tmp_path)), "--methods", "scalabl", "--weights", "1", "0.1", "--train-size", "40"]
    assert kl_weights.main(command) == 0
    assert [entry[:4] for entry in found] == [("scalabl", 1.0, 40, 40), ("scalabl", 0.1, 40, 40)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [f"| scalabl | {entry[1]:g} | {entry[4]:.4f} | 2.00 |" for entry in found]
