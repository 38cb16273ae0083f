"""Every set of streams withheld is measured, kept row by row, and averaged."""

from __future__ import annotations

import math

import pytest
import torch

from bayes_adapters.analysis.metrics import auc
from bayes_adapters.errors import DataError
from examples.studies.body_signals.data import MODALITIES
from examples.studies.body_signals.experiment import CONDITIONS, average, evaluate
from examples.studies.body_signals.methods import fit
from examples.studies.body_signals.task import Task
from tests.information import of_labels
from tests.refusals import refuses
from tests.studies.body_signals.parts import SETTINGS, SMALL, WINDOWS, record


def test_conditions_average_over_every_set_of_withheld_streams(task: Task) -> None:
    fitted = fit("late-average", task, SETTINGS)
    records = {r.condition: r for r in evaluate(fitted, task, "late-average", 0)[0]}
    assert tuple(records) == CONDITIONS
    assert {(r.method, r.seed, r.split, r.n, r.samples) for r in records.values()} == {
        ("late-average", 0, "test", len(task.signals["test"]), 1)
    }
    for metric in ("auc", "nll", "ece", "accuracy"):
        for count, kind in (("without-1", "without"), ("without-4", "only")):
            single = [getattr(records[f"{kind}-{name}"], metric) for name in MODALITIES]
            assert getattr(records[count], metric) == pytest.approx(sum(single) / 5)
    labels = task.signals["test"].labels
    assert records["only-EDA"].auc == auc(fitted.draws("test", ["EDA"])[0], labels)
    assert records["without-EDA"].auc == auc(fitted.draws("test", ["BVP", "ACC", "TEMP", "HR"])[0], labels)
    assert records["all"].auc > records["without-EDA"].auc
    assert math.isnan(records["all"].auroc_ood)
    assert records["all"].epistemic == 0.0


def test_every_window_is_kept_with_every_set_of_streams_withheld(task: Task) -> None:
    fitted, people = fit("late-average", task, SETTINGS), task.signals["test"].people
    rows = evaluate(fitted, task, "late-average", 3)[1]
    windows = len(task.signals["test"])
    assert len(rows) == 31 * windows
    assert len({(r.condition, r.key) for r in rows}) == len(rows)
    assert {(r.method, r.seed) for r in rows} == {("late-average", 3)}
    without = [r for r in rows if r.condition == "without-BVP+EDA"]
    assert [r.probability for r in without] == fitted.draws("test", ["ACC", "TEMP", "HR"])[0].tolist()
    assert [r.label for r in without] == task.signals["test"].labels.tolist()
    assert [r.group for r in without] == [str(p) for p in people.tolist()]
    assert [r.key for r in without if r.group == str(int(people[0]))] == [f"{people[0]}/{i}" for i in range(WINDOWS)]
    split = of_labels(torch.tensor([[r.probability for r in rows]]).double())  # one draw
    assert [r.total for r in rows] == pytest.approx(split.total.tolist(), rel=1e-4)
    assert [(r.aleatoric, r.epistemic) for r in rows] == [(r.total, 0.0) for r in rows]


def test_what_was_fitted_is_counted(task: Task) -> None:
    each = 2 * SMALL.width + 1  # mean and deviation of every feature, and a bias
    counts = {"single-best": 5 * each, "late-average": 5 * each, "late-weighted": 5 * each + 5}
    counts |= {"linear-all": 5 * (each - 1) + 1, "linear-hand": 7 * 7 + 1}
    for method, count in counts.items():
        fitted = fit(method, task, SETTINGS)
        assert fitted.parameters == count, method
        assert {r.parameters for r in evaluate(fitted, task, method, 0)[0]} == {count}


def test_the_average_leaves_out_what_is_not_defined() -> None:
    mean = average([record(auc=0.5, auroc_error=math.nan), record(auc=0.7, auroc_error=0.9)])
    assert mean.auc == pytest.approx(0.6)
    assert mean.auroc_error == 0.9
    assert math.isnan(mean.total)
    with refuses(DataError, 5):
        average([record(), record(n=5)])
