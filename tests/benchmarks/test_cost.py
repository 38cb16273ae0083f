"""The cost of families: numbers are counted right, and the page says what the records say. No test looks at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from examples.benchmarks import cost
from examples.benchmarks.families import BASE, families
from examples.benchmarks.workload import Sizes
from examples.studies.comparison import rewrite

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_writes_records_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, records = tmp_path / "page.md", tmp_path / "cost.json"
    page.write_text("before\n<!-- cost -->\n<!-- /cost -->\nafter\n")
    only = ["Delta`: a point", "all layers", "TFB"]
    assert cost.main(["--quick", "--only", *only, "--records", str(records), "--page", str(page)]) == 0
    found = json.loads(records.read_text())["families"]
    base = found[BASE]
    assert base["step"] == base["draws"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert base["step_memory"] == base["draws_memory"] == 1.0
    size = 2 * 8**2  # query and value of one layer, rank 8
    point, full, made = (
        found[name] for name in ("`Delta`: a point", "`FullGaussian`, all layers", "`bayesianise` (TFB)")
    )
    assert base["trained"] - point["trained"] == size
    assert full["trained"] - point["trained"] >= size * (size + 1) // 2
    assert full["stored"] > base["stored"] > point["stored"]
    assert made["step"] is None
    assert made["once"] > 0
    shown = page.read_text()
    assert "\n".join(cost.table(json.loads(records.read_text()))) in capsys.readouterr().out
    assert shown.startswith("before\n")
    assert "| `Delta`: a point |" in shown


def test_peak_memory_is_of_what_is_held_at_once() -> None:
    def run() -> None:
        first = torch.ones(1000)
        del first
        second, third = torch.ones(1000), torch.ones(500)
        del second, third

    assert 6000 <= cost.peak(run) < 8000


def test_every_family_is_in_the_table_of_the_page() -> None:
    record = json.loads((ROOT / "results" / "cost.json").read_text(encoding="utf-8"))
    assert set(record["families"]) == set(families())
    text = (ROOT / "docs" / "which-when.md").read_text(encoding="utf-8")
    assert rewrite(text, "cost", cost.table(record)) == text


def test_batches_hold_every_class() -> None:
    batch = cost.batch_of(Sizes(4, 6, 5))
    assert isinstance(batch.targets, torch.Tensor)
    assert sorted(set(batch.targets.tolist())) == [0, 1, 2]
