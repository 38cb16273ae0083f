"""The grid runs and continues; tables answer the questions from records and predictions."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bayes_adapters.analysis.records import read_records, write_records
from bayes_adapters.errors import ConfigError
from examples.studies import grid
from examples.studies.wander import results, tables
from examples.studies.wander.records import Result, Row
from examples.studies.wander.variants import TASKS, VARIANTS, rows
from tests.refusals import refuses
from tests.studies.wander.parts import Product, result


def said(method: str, seeds: int, right: float) -> list[Row]:
    """Six people, two a seed; the first window of each is a yes, said with ``right`` and as much doubt of a no."""
    return [
        Row(method, seed, "all", f"{person}/{window}", str(person), int(window == 0), right if not window else 0.5)
        for seed in range(seeds)
        for person in range(2 * seed, 2 * seed + 2)
        for window in range(3)
    ]


def test_answers_are_differences_over_people_once_all_folds_are_done() -> None:
    both = said("stress.beside", 5, 0.9) + said("stress.linear", 5, 0.1)
    table = tables.answers(both, [], draws=20)
    line = next(row for row in table if "beside − linear" in row)
    assert "| stress | +1.000 [+1.000, +1.000] |" in line  # an AUC of 1 against one of 0
    unfinished = tables.answers(said("stress.beside", 4, 0.9) + said("stress.linear", 4, 0.1), [], draws=20)
    assert next(row for row in unfinished if "beside − linear" in row).endswith("| stress | – | – |")


def test_answers_on_scripts_are_over_seeds_too() -> None:
    both = [
        Row(f"script.{name}", seed, "clean", f"{script}/{label}", str(script), label, p if label else 0.5)
        for name, p in (("beside", 0.9), ("linear", 0.6))
        for seed in range(3)
        for script in range(4)
        for label in (0, 1)
    ]
    records = [
        result(f"script.{name}", seed, "clean", auc=0.8 + shift * seed, nll=0.5)
        for name, shift in (("beside", 0.1), ("linear", 0.0))
        for seed in range(3)
    ]
    line = next(row for row in tables.answers(both, records, draws=20) if "beside − linear" in row)
    assert "| script | +.100 [−.148, +.348] |" in line  # d = 0, .1, .2: 4.303 · .1 / √3


def test_every_question_can_be_asked_somewhere_and_every_row_exists() -> None:
    asked = {task: set(own) for task, own in TASKS.items()}
    for question in tables.QUESTIONS:
        assert any({question.variant, question.other} <= own for own in asked.values()), question
    assert all(name in VARIANTS for own in TASKS.values() for name in own)
    assert len(set(rows())) == len(list(rows()))
    assert set(VARIANTS) == {name for own in TASKS.values() for name in own}


def test_tables_have_a_row_for_what_was_measured() -> None:
    records = [
        result("stress.beside", 0, gate=0.2, feature=0.5, rate=2e-3),
        result("stress.beside", 0, "without-1", auc=0.55),
        result("stress-2.beside", 0, auc=0.7),
        result("script.linear", 0, "clean", auc=0.5),
    ]
    means = tables.means(records)
    assert means[2].startswith("| stress | beside | 1 | 10 | 0.002 | .600 |")
    assert means[2].endswith("| .550 | – |")
    assert [row.split(" | ")[:2] for row in tables.gradients(records)[2:]] == [["| stress", "beside"]]
    cost = {"2.beside": {"ratio": 2.5, "mebibytes": 3.25, "parameters": 4561.0}}
    streams = tables.streams(records, cost)
    assert streams[2] == "| beside | 2 | .700 | .600 | – | 2.50 | 3.2 | 4,561 |"
    assert streams[3].startswith("| beside | 5 | .600 |")


def test_the_grid_runs_continues_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "problem", lambda task, seed, data: Product(task))
    monkeypatch.setattr(results, "load", lambda data: None)

    def inside(module: str, methods: list[str], seeds: range, folder: Path, **options: object) -> int:
        assert module == "examples.studies.wander.results"
        for name in methods:
            for seed in seeds:
                if name != results.PRETRAIN and not (folder / f"{name}-{seed}.json").is_file():
                    results.run_one(name, seed, None, folder)
        return 0

    for place in (grid, results):
        monkeypatch.setattr(place, "run_grid", inside)
    runs, out, page = tmp_path / "runs", tmp_path / "all.json", tmp_path / "page.md"
    markers = ("wander_answers", "wander_means", "wander_gradients", "wander_streams")
    page.write_text("".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in markers))
    options = ["--seeds", "1", "--only", "stress-2", "--variants", "stress-2.linear", "stress-2.beside"]
    command = ["results", *options, "--runs", str(runs), "--out", str(out), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", command)
    assert results.WanderAblation().main() == 0
    assert {r.method for r in read_records(out, Result)} == {"stress-2.linear", "stress-2.beside"}
    assert "| stress-2 | beside | 1 |" in page.read_text()
    assert "beside − linear" in capsys.readouterr().out
    done = (runs / "stress-2.beside-0.json").stat().st_mtime_ns
    assert results.WanderAblation().main() == 0
    assert (runs / "stress-2.beside-0.json").stat().st_mtime_ns == done
    (own,) = read_records(runs / "stress-2.linear-0.json", Result)[:1]
    write_records(runs / "stress-2.linear-0.json", [replace(own, rate=2e-4)])
    results.run_one("stress-2.linear", 1, None, runs)  # another seed takes the first one's rate
    assert {record.rate for record in read_records(runs / "stress-2.linear-1.json", Result)} == {2e-4}
    with refuses(ConfigError, "stress-2.sum-0.json", "stress-2.sum 0"):
        results.run_one("stress-2.sum", 1, None, runs)
