"""Predictions in files, differences between methods with intervals over people, and tables."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from bayes_adapters.analysis.metrics import auc
from bayes_adapters.errors import ConfigError, DataError
from examples.studies.body_signals import results
from examples.studies.body_signals.differences import differences, mean_auc
from examples.studies.body_signals.experiment import WITHHELD, condition_of
from examples.studies.body_signals.records import Row
from examples.studies.rows import read_rows, write_rows
from tests.refusals import refuses
from tests.studies.body_signals.parts import record


def made_up(method: str, seed: int, shift: float, people: int = 3) -> list[Row]:
    """Two windows of rest and two of stress a person; ``shift`` raises stress, and fold 1 says more of everything."""
    said = []
    for withheld in WITHHELD:
        for person in range(people):
            for i, label in enumerate((0, 1, 0, 1)):
                p = 0.2 + 0.1 * ((3 * person + i) % 4) + shift * label + 0.2 * (seed % 2)
                key, group = f"{seed}-{person}/{i}", f"{seed}-{person}"
                said.append(Row(method, seed, condition_of(withheld), key, group, label, p, 0.5, 0.5, 0.0))
    return said


def test_predictions_survive_a_file(tmp_path: Path) -> None:
    rows = made_up("m", 4, 0.123456789)
    write_rows(tmp_path / "m.csv", Row, rows)
    for old, new in zip(rows, read_rows(tmp_path / "m.csv", Row), strict=True):
        assert new == old._replace(probability=pytest.approx(old.probability, abs=1e-9))
    (tmp_path / "m.csv").write_text("method,seed\n")
    with refuses(DataError, tmp_path / "m.csv", ",".join(Row._fields)):
        list(read_rows(tmp_path / "m.csv", Row))


def test_the_mean_auc_is_that_of_metrics_with_ties() -> None:
    probs, labels = torch.randint(0, 5, (40, 3)).double() / 5, torch.arange(40).double() % 2
    wanted = sum(auc(column, labels.long()) for column in probs.T) / 3
    assert mean_auc(probs, labels) == pytest.approx(wanted)
    assert math.isnan(mean_auc(probs, torch.ones(40, dtype=torch.float64)))


def test_differences_are_means_over_folds_with_intervals_over_people() -> None:
    rows = [row for seed in (0, 1) for m, s in (("concat-lora", 0.0), ("better", 0.25)) for row in made_up(m, seed, s)]
    found = differences(rows, folds=2, draws=50)
    assert list(found) == ["better"]
    assert list(found["better"]) == ["AUC", "NLL", "ECE", *(f"AUC, {k} withheld" for k in (1, 2, 3, 4))]

    def within(method: str) -> float:
        said = [[r for r in rows if (r.method, r.seed, r.condition) == (method, s, "all")] for s in (0, 1)]
        scores = [auc(torch.tensor([r.probability for r in f]), torch.tensor([r.label for r in f])) for f in said]
        return sum(scores) / 2

    for name, (difference, low, high) in found["better"].items():
        assert low <= difference <= high, name
        if name.startswith("AUC"):
            assert difference == pytest.approx(within("better") - within("concat-lora"))
            assert low < high
    assert found["better"]["NLL"].high < 0.0


def test_differences_need_whole_partitions_and_all_sets() -> None:
    rows = [row for seed in (0, 1, 2) for m in ("concat-lora", "m") for row in made_up(m, seed, 0.1)]
    whole = differences(rows, folds=2, draws=20)
    assert whole == differences([r for r in rows if r.seed < 2], folds=2, draws=20)
    assert whole["m"]["AUC"] == (0.0, 0.0, 0.0)
    assert differences([r for r in rows if (r.method, r.seed) != ("m", 1)], folds=2) == {}
    assert differences([], folds=2) == {}
    with refuses(DataError, "m seed 0"):
        differences([r for r in rows if (r.method, r.condition) != ("m", "without-EDA")], folds=2)
    with refuses(ConfigError, "'concat-lora'", "m"):
        differences([r for r in rows if r.method == "m"], folds=2)


def test_tables_have_differences_when_a_partition_is_whole(tmp_path: Path) -> None:
    paths = [tmp_path / f"{m}-{s}.csv" for m in ("concat-lora", "m") for s in (0, 1)]
    for path in paths:
        method, seed = path.stem.rsplit("-", 1)
        write_rows(path, Row, made_up(method, int(seed), 0.1))
    records = [record(method=m, seed=s, parameters=70.0) for m in ("concat-lora", "m") for s in (0, 1)]
    found = results.tables(records, paths, folds=2)
    assert found["body_signals"][0].startswith("| method | seeds | trained | AUC |")
    assert "| m | 2 | 70 |" in found["body_signals"][3]
    assert found["body_signals_differences"][2].startswith("| m − concat-lora | +.000 [+.000, +.000] |")
    assert list(results.tables(records, paths, folds=5)) == ["body_signals"]
    assert list(results.tables(records[2:], paths, folds=2)) == ["body_signals"]
