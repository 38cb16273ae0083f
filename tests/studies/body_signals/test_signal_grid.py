"""The grid runs, continues, and refuses other settings."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bayes_adapters.analysis.records import read_records
from examples.studies import grid
from examples.studies.body_signals import results
from examples.studies.body_signals.data import MODALITIES, Fold
from examples.studies.body_signals.experiment import CONDITIONS
from examples.studies.body_signals.records import Row
from examples.studies.rows import read_rows
from tests.studies.body_signals.parts import SETTINGS, arrays


def call(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["results", *options])
    return results.BodySignals().main()


def test_the_grid_runs_and_continues(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(results, "Settings", lambda: SETTINGS)
    runs, out = tmp_path / "runs", tmp_path / "all.json"
    run_one = results.run_one

    def inside(module: str, methods: list[str], seeds: range, folder: Path, **options: Any) -> int:
        assert module == "examples.studies.body_signals.results"
        for name in methods:
            for seed in seeds:
                if not (folder / f"{name}-{seed}.json").is_file():
                    run_one(name, seed, SETTINGS, file, folder)
        return 0

    for place in (grid, results):
        monkeypatch.setattr(place, "run_grid", inside)
    options = ["--data", str(file), "--seeds", "2", "--methods", "late-average", "--runs", str(runs), "--out", str(out)]
    assert call(monkeypatch, *options) == 0
    assert [(r.seed, r.condition) for r in read_records(out)] == [(s, c) for s in (0, 1) for c in CONDITIONS]
    folds = [Fold.from_json((runs / f"fold-{seed}.json").read_text()) for seed in (0, 1)]
    assert set(folds[0].test).isdisjoint(folds[1].test)
    assert "late-average   all               2" in capsys.readouterr().out
    done = (runs / "late-average-1.json").stat().st_mtime_ns
    (runs / "late-average-0.json").unlink()
    assert call(monkeypatch, *options) == 0
    assert (runs / "late-average-1.json").stat().st_mtime_ns == done
    assert len(read_records(out)) == 2 * len(CONDITIONS)
    assert {r.seed for r in read_rows(runs / "late-average-1.csv", Row)} == {1}
    other = tmp_path / "other.npz"
    np.savez(other, **(arrays() | {"y": 1 - arrays()["y"]}))
    assert call(monkeypatch, "--data", str(other), *options[2:]) == 2
    assert "were made with other settings (data: " in capsys.readouterr().err
    with monkeypatch.context() as changed:
        changed.setitem(results.ADAPTED, "wander", replace(results.ADAPTED["wander"], kl_weight=0.5))
        assert call(monkeypatch, *options) == 2
    assert "were made with other settings (kl_weights: " in capsys.readouterr().err
    (runs / "late-average-1.json").unlink()  # as if this run had been cut off while it wrote its predictions
    paths: list[Path] = []
    for place in (grid, results):
        monkeypatch.setattr(place, "run_grid", lambda *_, **__: 1)
    monkeypatch.setattr(results, "tables", lambda _records, found, _folds: paths.extend(found) or {})
    (tmp_path / "page.md").touch()
    assert call(monkeypatch, *options, "--page", str(tmp_path / "page.md")) == 1
    assert paths == [runs / "late-average-0.csv"]


def test_one_run_in_a_process_of_its_own(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path / "cache"))
    name = ["--methods", "linear-hand", "--seeds", "1", "--jobs", "1", "--runs", str(tmp_path), "--data", str(file)]
    code = call(monkeypatch, *name, "--out", str(tmp_path / "all.json"))
    assert code == 0, "\n".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert len(list((tmp_path / "cache" / "body_signals" / "encoders").glob("*.safetensors"))) == len(MODALITIES)
    best = next(r for r in read_records(tmp_path / "all.json") if r.condition == "all")
    assert best.auc > 0.75


def test_wrong_options_and_a_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(tmp_path / "no.npz"), "--runs", str(tmp_path / "runs")]
    assert call(monkeypatch, *options) == 2
    assert capsys.readouterr().err.startswith(f"error: There is no file {tmp_path / 'no.npz'}")
    assert not (tmp_path / "runs").exists()
    for wrong in (["--jobs", "0"], ["--methods", "late"]):
        with pytest.raises(SystemExit) as stopped:
            call(monkeypatch, *options, *wrong)
        assert stopped.value.code == 2
