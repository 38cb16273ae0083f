"""Both examples and the grid on a part of the real prompts: records, predictions and tables agree."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters.analysis.records import read_records
from bayes_adapters.surgery.pruning import read_log
from examples.studies import grid
from examples.studies.rows import read_rows
from examples.studies.speaking_time import bayeslora_2025, bayeslora_2026, experiment, results
from examples.studies.speaking_time.data import Data
from examples.studies.speaking_time.experiment import LINE, QUICK, Settings, evaluate, run
from examples.studies.speaking_time.intervals import spearman
from examples.studies.speaking_time.records import TEST, Result, Row
from examples.studies.speaking_time.task import Task

pytestmark = pytest.mark.usefixtures("offline")

TINY = replace(QUICK, epochs=1, rows=48, texts=2)
SHORT = replace(QUICK, epochs=4, rows=48)
"""Twelve steps: the fewest after which some ranks are taken out and some are left."""
MARKERS = ("speaking_time", "speaking_time_differences", "speaking_time_variance")


@pytest.fixture(scope="module")
def part(prompts: Data) -> Data:
    """The prompts with two other kinds of texts."""
    return replace(prompts, elsewhere={kind: prompts.elsewhere[kind] for kind in ("en-long", "docstrings")})


@pytest.fixture(scope="module")
def few(part: Data) -> Task:
    return TINY.task(part)


def on_test(records: list[Result]) -> dict[str, Result]:
    return {r.method: r for r in records if r.condition == TEST}


def check(records: list[Result], rows: list[Row]) -> None:
    """Every record says what can be counted in the predictions."""
    for r in records:
        own = [row for row in rows if (row.method, row.seed, row.condition) == (r.method, r.seed, r.condition)]
        assert len(own) == r.n
        variances = torch.tensor([row.variance for row in own], dtype=torch.float64)
        assert r.variance == pytest.approx(float(variances.mean()))
        near = next(x for x in records if (x.method, x.seed, x.condition) == (r.method, r.seed, TEST))
        if r.condition != TEST:
            assert all(math.isnan(v) for row in own for v in (row.log_seconds, row.nll))
            assert all(math.isnan(v) for v in (r.rmse, r.nll, r.spearman))
            assert r.variance_ratio == pytest.approx(r.variance / near.variance) if near.variance else True
            assert math.isnan(r.variance_ratio) == (near.variance == 0)
            continue
        errors = torch.tensor([row.mean - row.log_seconds for row in own], dtype=torch.float64)
        assert r.rmse == pytest.approx(float(errors.square().mean().sqrt()))
        assert r.nll == pytest.approx(sum(row.nll for row in own) / r.n)
        assert r.spearman == pytest.approx(spearman(variances, errors.abs()), nan_ok=True)
        lengths = torch.tensor([float(row.characters) for row in own])
        assert r.spearman_length == pytest.approx(spearman(lengths, variances), nan_ok=True)
        assert (r.variance > 0) == r.method.startswith("bayes")


def written(folder: Path, records: list[Result], rows: list[Row]) -> None:
    assert [str(r) for r in read_records(folder / "metrics.json", Result)] == [str(r) for r in records]
    assert [r[:6] for r in read_rows(folder / "predictions.csv", Row)] == [r[:6] for r in rows]


def test_bayeslora_2025(part: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    records, rows = bayeslora_2025.main(SHORT, out=folder, data=part)
    names = [*bayeslora_2025.METHODS, LINE]
    assert list(on_test(records)) == names
    assert [r.condition for r in records if r.method == "lora"] == [TEST, *part.elsewhere]
    check(records, rows)
    written(folder, records, rows)
    tests = on_test(records)
    assert len({r.rmse for r in tests.values()}) == 4
    assert [r.samples for r in tests.values()] == [1, 2, 2, 1]
    assert tests["lora"].ranks == 12 * 64
    printed = capsys.readouterr().out
    for name in names:
        assert f"| {name} | 1 | " in printed
    assert "| bayeslora-2025-global − lora | " in printed
    assert (folder / "scatter.png").read_bytes().startswith(b"\x89PNG")


def test_bayeslora_2026(part: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    records, rows = bayeslora_2026.main(SHORT, out=folder, data=part)
    check(records, rows)
    written(folder, records, rows)
    tests = on_test(records)
    assert set(tests) == {*bayeslora_2026.METHODS, *bayeslora_2026.CONTROLS.values(), LINE}
    none, some = tests["bayeslora-2026-kl-0"], tests["bayeslora-2026-kl-1e-4"]
    assert none.ranks == tests["lora-2026"].ranks == 96 > some.ranks > 0
    assert none.bytes > some.bytes
    assert none.export_bytes > some.export_bytes
    assert none.parameters == some.parameters == tests["lora-2026"].parameters + 96, "a variance a rank"
    for own in (none, some):
        assert own.export_difference < 1e-4
    printed = capsys.readouterr().out
    for pruned, control in bayeslora_2026.CONTROLS.items():
        assert tests[control].ranks == tests[pruned].ranks
        assert tests[control].rmse != tests[pruned].rmse
        assert f"| {pruned} − {control} | " in printed
    log = read_log(folder / "bayeslora-2026-kl-1e-4" / "pruning.json")
    assert sum(log[-1].after.values()) == some.ranks
    assert [record.step for record in log] == list(range(6, 10)), "from the middle of 12 steps to four fifths"
    assert (folder / "bayeslora-2026-kl-1e-4" / "ranks.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "bayeslora-2026-kl-0" / "adapter" / "adapter.safetensors").is_file()


def test_a_seed_changes_initial_values_order_and_draws(few: Task) -> None:
    still = replace(TINY, lr=0.0)
    first = [bayeslora_2025.train("lora", few, still, seed)["lora"].model.state_dict() for seed in (0, 0, 1)]
    name = next(k for k in first[0] if k.endswith("A"))
    assert torch.equal(first[0][name], first[1][name])
    assert not torch.equal(first[0][name], first[2][name])
    orders = [[b.targets for b in few.batches(few.data.train, 16, seed)] for seed in (0, 1)]
    assert any(not torch.equal(a, b) for a, b in zip(*orders, strict=True))
    for method in ("bayeslora-2025", "bayeslora-2025-global"):
        trained = bayeslora_2025.train(method, few, TINY, 0)[method]
        assert (trained.seed is None) == (method == "bayeslora-2025"), "tokens share torch's generator"
        said = []
        for seed in (0, 0, 1):
            drawn = trained if trained.seed is None else replace(trained, seed=seed)
            said.append([row.mean for row in evaluate(few, drawn, method, seed, TINY)[1]])
        assert said[0] == said[1] != said[2]


def test_a_control_has_the_ranks_of_each_layer(few: Task) -> None:
    settings = replace(TINY, epochs=3, threshold=2.5)
    found = bayeslora_2026.train("bayeslora-2026-kl-1e-4", few, settings, 0)
    pruned, control = found.values()
    assert dict(control.model.ranks) == dict(pruned.model.ranks)
    assert len(set(pruned.model.ranks.values())) > 1, "not the same everywhere"
    assert pruned.removals
    assert not control.removals


def call(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["results", *options])
    return results.SpeakingTime().main()


def test_the_grid_runs_and_continues(
    part: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runs, out, page = tmp_path / "runs", tmp_path / "all.json", tmp_path / "page.md"
    page.write_text("".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in MARKERS))
    for place in (experiment, results):
        monkeypatch.setattr(place, "load", lambda: part)
    passed: list[Any] = []

    def inside(module: str, methods: list[str], seeds: range, folder: Path, **options: Any) -> int:
        assert module == "examples.studies.speaking_time.results"
        passed.append(options["arguments"])
        for seed in seeds:
            for name in methods:
                if not (folder / f"{name}-{seed}.json").is_file():
                    results.run_one(name, seed, TINY, folder)
        return 0

    monkeypatch.setattr(grid, "run_grid", inside)
    methods = ["lora", "bayeslora-2025-global", "bayeslora-2026-kl-3e-5", LINE]
    options = ["--methods", *methods, "--seeds", "2", "--runs", str(runs), "--out", str(out), "--page", str(page)]
    assert call(monkeypatch, *options) == 0
    records = read_records(out, Result)
    named = [*methods[:3], "lora-2026-ranks-3e-5", LINE]
    assert list(on_test(records)) == named
    assert sorted((r.method, r.seed) for r in records if r.condition == TEST) == sorted(product(named, (0, 1)))
    rows = [row for path in sorted(runs.glob("*.csv")) for row in read_rows(path, Row)]
    check(records, rows)
    by_seed = [{r.method: r.rmse for r in records if (r.condition, r.seed) == (TEST, s)} for s in (0, 1)]
    # least squares rounds differently from one place in memory to another
    assert [m for m in named if by_seed[0][m] == pytest.approx(by_seed[1][m], rel=1e-9)] == [LINE]
    split = [{(r.key, r.log_seconds) for r in rows if (r.condition, r.seed) == (TEST, s)} for s in (0, 1)]
    assert split[0] == split[1], "the split is the same for every seed"
    text = page.read_text()
    for name in named:
        assert f"| {name} | 2 | " in text
        assert name == "lora" or f"| {name} − lora | " in text
    assert "| bayeslora-2026-kl-3e-5 − lora-2026-ranks-3e-5 | " in text
    assert text.split("<!-- speaking_time_variance -->")[1].count("\n| bayeslora") == 2
    assert "| bayeslora-2025-global − lora | " in capsys.readouterr().out
    assert passed == [["--runs", str(runs)]]

    done = (runs / "lora-1.json").stat().st_mtime_ns
    (runs / "lora-0.json").unlink()
    assert call(monkeypatch, *options) == 0
    assert (runs / "lora-1.json").stat().st_mtime_ns == done
    assert (runs / "lora-0.json").is_file()
    assert call(monkeypatch, *options, "--quick") == 2
    assert "were made with other settings (epochs: 8 there, 3 now" in capsys.readouterr().err
    with monkeypatch.context() as changed:
        changed.setitem(bayeslora_2026.METHODS, "bayeslora-2026-kl-3e-5", 0.5)
        assert call(monkeypatch, *options) == 2
    assert "were made with other settings (kl_weights: " in capsys.readouterr().err
    other = replace(part, test=part.test[1:])
    monkeypatch.setattr(results, "load", lambda: other)
    assert call(monkeypatch, *options) == 2
    assert "were made with other settings (data: " in capsys.readouterr().err


def test_one_run_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ["--quick", "--methods", LINE, "--seeds", "1", "--jobs", "1", "--runs", str(tmp_path)]
    code = call(monkeypatch, *options, "--out", str(tmp_path / "all.json"))
    assert code == 0, "\n".join(path.read_text() for path in tmp_path.glob("*.log"))
    (record,) = read_records(tmp_path / "all.json", Result)
    assert (record.method, record.n) == (LINE, 32), "--quick is passed on"


def test_every_method_of_the_grid_belongs_to_an_example(few: Task) -> None:
    assert set(results.SpeakingTime.methods) == {*bayeslora_2025.METHODS, *bayeslora_2026.METHODS, LINE}
    records, rows = run(few, LINE, bayeslora_2025.train, Settings(), 5)
    assert [(r.method, r.seed, r.rmse) for r in records] == [(LINE, 5, pytest.approx(records[0].rmse))]
    check(records, rows)
