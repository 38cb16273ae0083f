"""Tables, differences and the picture of λ, from rows that are made here."""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import pytest

from bayes_adapters.errors import DataError
from examples.grounding import picture, tables
from examples.grounding.records import Gain, Row
from examples.grounding.results import Groundings, page
from examples.grounding.scores import METRICS, scored
from examples.studies.rows import write_rows
from tests.refusals import refuses

NAMES = ("late-fusion-longer.both", "cola.both", "bayesian-cola.both", "cola.rec", "cola.res")


def rows(method: str, seed: int, better: float = 0.0) -> list[Row]:
    rng = random.Random(f"{seed}/{method}")
    found = []
    for condition in ("test", "kinds", "drawer"):
        for key in range(24):
            base = random.Random(f"{key}/{condition}").random()
            iou = min(1.0, max(0.0, 0.2 + 0.5 * base + better + rng.gauss(0, 0.02)))
            box = {
                "box_iou": iou, "box_nll": -iou, "covered": 1.0, "box_total": rng.random(),
                "box_epistemic": rng.random() if method.startswith("bayesian") else 0.0,
            }  # fmt: skip
            mask = {
                "mask_iou": iou, "mask_nll": 1 - iou, "shared": iou * 90, "union": 90.0, "ause": 0.2, "pavpu": 0.8,
                "mask_total": rng.random(), "mask_epistemic": 0.0,
            }  # fmt: skip
            own = (box if "res" not in method else {}) | (mask if "rec" not in method else {})
            found.append(Row(method, seed, condition, key, key // 2, "size" if key % 3 else "side", **own))
    return found


@pytest.fixture(scope="module")
def everything() -> list[Row]:
    ahead = {"cola.both": 0.2, "cola.rec": 0.1}
    return [row for name in NAMES for seed in range(3) for row in rows(name, seed, ahead.get(name, 0.0))]


def records(said: list[Row]) -> list:
    found = []
    for name in NAMES:
        for seed in range(3):
            own = [r for r in said if r.method == name and r.seed == seed]
            test = [r for r in own if r.condition == "test"]
            for condition in ("test", "kinds", "drawer"):
                part = test if condition == "test" else [r for r in own if r.condition == condition]
                found.append(scored(part, test, samples=1, seconds=1.0))
    return found


def test_scores(everything: list[Row]) -> None:
    found = {(r.method, r.condition, r.seed): r for r in records(everything)}
    test = found["cola.both", "test", 0]
    own = [r for r in everything if (r.method, r.condition, r.seed) == ("cola.both", "test", 0)]
    assert test.accuracy == sum(r.box_iou >= 0.5 for r in own) / len(own)
    assert test.overall_iou == pytest.approx(sum(r.shared for r in own) / sum(r.union for r in own))
    assert math.isnan(test.auroc_ood)
    assert math.isfinite(found["cola.both", "drawer", 0].auroc_ood_total)
    assert found["cola.both", "drawer", 0].auroc_ood == test.auroc_error_epistemic == 0.5  # a point says nothing
    assert math.isnan(found["cola.res", "test", 0].accuracy)
    assert math.isnan(found["cola.rec", "test", 0].mask_iou)


def test_a_difference_has_its_sign_and_size(everything: list[Row]) -> None:
    said = tables.said_of(everything)
    found = tables.difference(said, tables.Pair("cola.both", "late-fusion-longer.both", "mIoU"), draws=100)
    assert found is not None
    assert found.difference == pytest.approx(0.2, abs=0.02)
    assert 0 < found.low < found.difference < found.high
    assert tables.difference(said, tables.Pair("wander.both", "cola.both", "mIoU")) is None
    assert set(METRICS) >= {pair.metric for pair in tables.PAIRS}


def test_the_report_fills_the_page(everything: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.differences, "__defaults__", (20,))
    text = Path("docs/results/grounding.md").read_text(encoding="utf-8")
    (tmp_path / "grounding.md").write_text(text, encoding="utf-8")
    paths = []
    for name in NAMES:
        for seed in range(3):
            paths.append(tmp_path / f"{name}-{seed}.csv")
            write_rows(paths[-1], Row, [r for r in everything if r.method == name and r.seed == seed])
            if name == "cola.both":
                gains = [Gain(name, seed, e, d, "query", 0.5 + seed) for e in ("vision", "text") for d in range(3)]
                write_rows(paths[-1].with_name(f"{name}-{seed}-gains.csv"), Gain, gains)
    arguments = argparse.Namespace(page=tmp_path / "grounding.md", out=tmp_path / "grounding.json")
    Groundings().report(arguments, records(everything), paths)
    filled = (tmp_path / "grounding.md").read_text(encoding="utf-8")
    for table in page(records(everything), everything):
        between = filled.split(f"<!-- {table} -->")[1].split(f"<!-- /{table} -->")[0]
        assert "| cola.both" in between or "cola.both − " in between, table
    assert (tmp_path / "grounding-gains.svg").stat().st_size > 1000
    assert len(picture.read_gains(tmp_path / "grounding_gains.json")) == 3 * 2 * 3


def test_curves_of_gains() -> None:
    gains = [
        Gain("cola.both", seed, "vision", depth, linear, depth + seed + (linear == "key"))
        for seed in (0, 1) for depth in (1, 0) for linear in ("query", "key")
    ]  # fmt: skip
    assert picture.by_depth(gains) == {"vision": {"query": [0.5, 1.5], "key": [1.5, 2.5]}}
    with refuses(DataError, "cola.rec", "cola.both"):
        picture.by_depth(gains, "cola.rec")
