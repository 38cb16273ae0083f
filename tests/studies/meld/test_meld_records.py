"""Every method's run gives records and predictions that agree, and the report compares them."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bayes_adapters.analysis.records import read_records, write_records
from bayes_adapters.errors import DataError
from examples.studies.comparison import difference_table
from examples.studies.meld import results
from examples.studies.meld.experiment import CLEAN, FROZEN, OOD, run
from examples.studies.meld.methods import KL_WEIGHTS, METHODS, PRUNED
from examples.studies.meld.records import Result, Row
from examples.studies.meld.task import Task
from examples.studies.rows import read_rows, write_rows
from tests.refusals import refuses
from tests.studies.meld.parts import PROMPTS, SETTINGS, write


@pytest.fixture(scope="module")
def finished(task: Task) -> dict[str, tuple[list[Any], list[Row]]]:
    return {name: run(task, name, 3, SETTINGS) for name in (FROZEN, *METHODS)}


@pytest.mark.parametrize("name", [FROZEN, *METHODS])
def test_records_and_predictions_agree(finished: Any, task: Task, name: str) -> None:
    records, rows = finished[name]
    clean, ood = records
    assert [(r.method, r.seed, r.split, r.condition) for r in records] == [
        (name, 3, "test", CLEAN),
        (name, 3, "test", OOD),
    ]
    own = {c: [row for row in rows if row.condition == c] for c in (CLEAN, OOD)}
    assert [(r.key, r.label) for r in own[CLEAN]] == [(u.key, u.label) for u in task.test.utterances]
    assert [(r.key, r.label) for r in own[OOD]] == [(u.key, -1) for u in PROMPTS]
    probs = [(r.p_negative, r.p_neutral, r.p_positive) for r in own[CLEAN]]
    labels = [r.label for r in own[CLEAN]]
    assert clean.accuracy == pytest.approx(
        sum(p.index(max(p)) == y for p, y in zip(probs, labels, strict=True)) / clean.n
    )
    assert clean.nll == pytest.approx(-sum(math.log(p[y]) for p, y in zip(probs, labels, strict=True)) / clean.n)
    assert clean.total == pytest.approx(sum(r.total for r in own[CLEAN]) / clean.n)
    assert math.isnan(clean.auroc_ood)
    for kind, value in (("epistemic", ood.auroc_ood), ("total", ood.auroc_ood_total)):
        far, near = ([getattr(r, kind) for r in own[c]] for c in (OOD, CLEAN))
        wins = sum((a > b) + 0.5 * (a == b) for a in far for b in near)
        assert value == pytest.approx(wins / len(far) / len(near))
    for metric in ("accuracy", "auc", "nll", "brier", "ece", "auroc_error", "aurc", "auroc_error_epistemic"):
        assert math.isnan(getattr(ood, metric)), "prompts have no sentiment"
        assert name.startswith("lora") or name == FROZEN or math.isfinite(getattr(clean, metric))
    assert clean.samples == {"ensemble": 2}.get(name, 1 if name == FROZEN or name.startswith("lora") else 3)
    assert clean.parameters == ood.parameters or name == FROZEN
    assert clean.parameters > 100 or name == FROZEN
    assert clean.train_seconds > 0
    ranks = {results.CONTROL: 1, "lora-r12": 3, "lora-r20": 5}.get(name, 2)
    assert clean.ranks_kept == ranks or (name == FROZEN and math.isnan(clean.ranks_kept))
    uncertain = [r.epistemic > 0 for r in own[CLEAN]]
    assert any(uncertain) == (name != FROZEN and not name.startswith("lora"))


def test_what_is_written_is_read_again(finished: Any, tmp_path: Path) -> None:
    records, rows = finished["lora"]
    write_records(tmp_path / "a.json", records)
    again = read_records(tmp_path / "a.json", Result)
    assert [str(r) for r in again] == [str(r) for r in records]
    write_rows(tmp_path / "a.csv", Row, rows)
    found = list(read_rows(tmp_path / "a.csv", Row))
    assert [r[:6] for r in found] == [r[:6] for r in rows]
    assert [v for r in found for v in r[6:]] == pytest.approx([v for r in rows for v in r[6:]])
    broken: list[tuple[str, tuple[object, ...]]] = [
        ("[", ("JSON", "line 1")),
        ('[{"method": 1}]', ("Record 0", "seed", "split", "ranks_kept", "train_seconds")),
    ]
    for text, facts in broken:
        (tmp_path / "b.json").write_text(text)
        with refuses(DataError, tmp_path / "b.json", *facts):
            read_records(tmp_path / "b.json", Result)
    (tmp_path / "b.csv").write_text("x\n")
    with refuses(DataError, tmp_path / "b.csv", ",".join(Row._fields)):
        list(read_rows(tmp_path / "b.csv", Row))


def test_the_report_compares_finished_runs(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, runs, page = write(tmp_path / "data"), tmp_path / "runs", tmp_path / "page.md"
    runs.mkdir()
    shown = ("lora", results.CONTROL, "ensemble", PRUNED)
    for name in shown:
        write_rows(runs / f"{name}-0.csv", Row, [r._replace(seed=0) for r in finished[name][1]])
        write_records(runs / f"{name}-0.json", [replace(r, seed=0) for r in finished[name][0]])
    page.write_text("<!-- meld -->\n<!-- /meld -->\n<!-- meld_differences -->\n<!-- /meld_differences -->\n")
    monkeypatch.setattr(results, "voice_prompts", lambda: PROMPTS)
    command = [
        "results",
        "--data",
        str(folder),
        "--runs",
        str(runs),
        "--out",
        str(tmp_path / "all.json"),
        "--seeds",
        "1",
    ]
    command += ["--methods", *shown, "--device", "cpu", "--page", str(page), "--test-size", "20"]
    monkeypatch.setattr(sys, "argv", command)
    assert results.MeldSentiment().main() == 0
    assert [r.method for r in read_records(tmp_path / "all.json", Result)] == [name for name in shown for _ in range(2)]
    text = page.read_text()
    assert "| lora | 1 | " in text
    assert "| ensemble − lora | " in text
    rows = [row for name in (PRUNED, results.CONTROL) for row in finished[name][1]]
    (own,) = results.differences([r._replace(seed=0) for r in rows], results.CONTROL).values()
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {PRUNED} − {results.CONTROL} | "))
    assert line == difference_table({PRUNED: own}, results.CONTROL)[2]
    control, pruned = (finished[name][0][0].nll for name in (results.CONTROL, PRUNED))
    assert own["NLL"].difference == pytest.approx(pruned - control, abs=1e-6)
    written = (runs / "report.md").read_text()
    assert "| lora | 1 | " in written
    assert all(f"{name} {weight:g}" in written for name, weight in KL_WEIGHTS.items())
    lora, both = (finished[name][0][0] for name in ("lora", "ensemble"))
    d = results.differences([*finished["lora"][1], *finished["ensemble"][1]], draws=20)["ensemble"]
    for name, field in (("accuracy", "accuracy"), ("NLL", "nll"), ("Brier", "brier"), ("ECE", "ece")):
        assert d[name].difference == pytest.approx(getattr(both, field) - getattr(lora, field), abs=1e-6)
    assert d["AUROC error"].difference == pytest.approx(both.auroc_error - lora.auroc_error)
    ood = finished["ensemble"][0][1]
    assert d["AUROC prompts (epistemic)"].difference == pytest.approx(ood.auroc_ood - 0.5)
    monkeypatch.setattr(sys, "argv", [*command, "--train-size", "50"])
    assert results.MeldSentiment().main() == 2
    assert "train_size: 2500 there, 50 now" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setitem(KL_WEIGHTS, "blob", 0.5)
    assert results.MeldSentiment().main() == 2
    assert "kl_weights: {'blob': 0.001, " in capsys.readouterr().err


def test_the_command_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["results", "--data", str(tmp_path / "nowhere"), "--device", "cpu"])
    assert results.MeldSentiment().main() == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'nowhere'} has no train_sent_emo.csv")
    monkeypatch.setattr(sys, "argv", ["results"])
    with pytest.raises(SystemExit):
        results.MeldSentiment().main()
    assert "--data" in capsys.readouterr().err


def test_the_command_measures_as_many_seeds_as_the_table() -> None:
    measured = read_records(Path(__file__).parents[3] / "results" / "meld.json", Result)
    assert {record.seed for record in measured} == {*range(results.MeldSentiment.seeds)}
