"""The grid runs what is missing, refuses other settings; comparisons are paired; tables say what was measured."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bayes_adapters.analysis import metrics
from bayes_adapters.analysis.bootstrap import PairedDifference
from bayes_adapters.analysis.records import Record, read_records
from bayes_adapters.errors import ConfigError, DataError
from examples.studies.comparison import cell, difference_table, markdown, mean_table, paired_differences, short
from examples.studies.grid import _stop, claim_folder, gather, run_grid
from tests.refusals import refuses

MODULE = """
import json, sys, time
from pathlib import Path
_, method, seed, _, runs = sys.argv[1:6]
seed, runs = int(seed), Path(runs)
print("running", method, seed)
(runs / f"begun-{method}-{seed}").touch()
if method == "crash":
    raise SystemExit(3)
if method == "both":  # both runs of the pair must be there at the same time
    for _ in range(6000):
        if (runs / f"begun-both-{1 - seed}").exists():
            break
        time.sleep(0.05)
    else:
        raise SystemExit("alone")
if method != "silent":
    names = {"method": method, "seed": seed, "split": "test", "condition": "clean", "n": 4, "samples": 1}
    record = dict.fromkeys(FIELDS, 0.5) | names
    (runs / f"{method}-{seed}.json").write_text(json.dumps([record]))
""".replace("FIELDS", repr([f.name for f in fields(Record)]))


@dataclass(frozen=True)
class Settings:
    epochs: int = 3
    mix: tuple[str, ...] = ("a", "b")
    device: str = "cpu"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "fake_runs.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    return "fake_runs"


def test_what_is_done_is_not_repeated_and_failures_are_counted(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    claim_folder(runs, Settings())
    (runs / "good-0.json").write_text("[]")
    options = ["--runs", str(runs)]
    methods = ["good", "crash", "silent"]
    assert run_grid(module, methods, [0, 1], runs, jobs=2, arguments=options) == 4
    said = capsys.readouterr().err
    assert f"crash seed 1: FAILED, see {runs / 'crash-1.log'}" in said
    assert f"silent seed 0: FAILED, see {runs / 'silent-0.log'}" in said, "exit 0 without records is no success"
    assert "good seed 1: done" in said
    assert not (runs / "begun-good-0").exists()
    assert (runs / "crash-0.log").read_text().split() == ["running", "crash", "0"]
    (runs / "begun-good-1").unlink()
    assert run_grid(module, ["good"], [0, 1], runs, jobs=2, arguments=options) == 0
    assert not (runs / "begun-good-1").exists()


def test_jobs_run_side_by_side(module: str, tmp_path: Path) -> None:
    assert run_grid(module, ["both"], [0, 1], tmp_path, jobs=2, arguments=["--runs", str(tmp_path)]) == 0
    assert len(gather(["both"], [0, 1], tmp_path, tmp_path / "all.json")) == 2


def test_runs_left_behind_are_ended(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    _stop([process], patience=0.2)
    assert process.returncode not in (None, 0), "it was ended, not waited for"


def test_gather_keeps_the_order_of_methods_and_skips_what_is_missing(module: str, tmp_path: Path) -> None:
    assert run_grid(module, ["b", "a"], [0, 1], tmp_path, jobs=2, arguments=["--runs", str(tmp_path)]) == 0
    (tmp_path / "b-1.json").unlink()
    out = tmp_path / "deep" / "all.json"
    found = gather(["b", "a"], [0, 1], tmp_path, out)
    assert [(r.method, r.seed) for r in found] == [("b", 0), ("a", 0), ("a", 1)]
    assert [(r.method, r.seed) for r in read_records(out)] == [("b", 0), ("a", 0), ("a", 1)]


def test_records_of_methods_that_did_not_run_may_stay(module: str, tmp_path: Path) -> None:
    out, first, second = tmp_path / "all.json", tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    assert run_grid(module, ["a", "b"], [0, 1], first, jobs=2, arguments=["--runs", str(first)]) == 0
    gather(["a", "b"], [0, 1], first, out)
    assert run_grid(module, ["a"], [0], second, jobs=1, arguments=["--runs", str(second)]) == 0
    found = gather(["b", "a"], [0, 1], second, out, keep=True)
    assert [(r.method, r.seed) for r in found] == [("a", 0)]
    assert [(r.method, r.seed) for r in read_records(out)] == [("b", 0), ("b", 1), ("a", 0)]
    gather(["a"], [0], second, out, keep=True)  # b is no method any more
    assert [(r.method, r.seed) for r in read_records(out)] == [("a", 0), ("b", 0), ("b", 1)]


def test_runs_of_other_settings_or_data_are_refused(tmp_path: Path) -> None:
    claim_folder(tmp_path, Settings(), data="abc")
    claim_folder(tmp_path, Settings(device="cuda"), data="abc")
    with refuses(ConfigError, "epochs: 3 there", "4 now", "--runs"):
        claim_folder(tmp_path, Settings(epochs=4), data="abc")
    with refuses(ConfigError, "data: abc there", "abd now"):
        claim_folder(tmp_path, Settings(), data="abd")
    with refuses(ConfigError, "data: abc there", "not set now"):
        claim_folder(tmp_path, Settings())
    (tmp_path / "settings.json").write_text('{"epochs": 3,')
    with refuses(ConfigError, tmp_path / "settings.json", "JSON"):
        claim_folder(tmp_path, Settings(), data="abc")


def right(rows: Tensor) -> Tensor:
    return rows[:, 0]


def outputs(shift: float, seeds: tuple[int, ...] = (0, 1), noise: int = 0) -> dict[int, dict[tuple[int, int], tuple]]:
    """Forty examples in ten groups; the first number is ``shift`` more than a random one shared by all."""
    base = torch.rand(40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = {}
    for s in seeds:
        own = torch.randn(40, generator=torch.Generator().manual_seed(10 * noise + s), dtype=torch.float64)
        values = (base + shift * (s + 1) + own * s * (noise > 0)).tolist()
        found[s] = {(i, i // 4): (values[i], float(i % 2)) for i in range(40)}
    return found


def test_a_constant_difference_has_no_width_and_is_averaged_over_common_seeds() -> None:
    found = paired_differences(
        {"ref": outputs(0.0), "a": outputs(0.2), "b": outputs(0.2, (1, 2)), "c": outputs(0.2, (7,))},
        "ref",
        {"mean": right},
        group=lambda key: key[1],
        draws=50,
    )
    assert list(found) == ["a", "b"], "no seed in common with c"
    assert found["a"]["mean"] == pytest.approx((0.3, 0.3, 0.3))
    assert found["b"]["mean"] == pytest.approx((0.4, 0.4, 0.4))


def test_examples_are_matched_by_key_and_not_by_place() -> None:
    shuffled = {s: dict(reversed(rows.items())) for s, rows in outputs(0.1).items()}
    found = paired_differences(
        {"ref": outputs(0.0), "a": shuffled}, "ref", {"m": right}, group=lambda k: k[1], draws=50
    )
    assert found["a"]["m"] == pytest.approx((0.15, 0.15, 0.15))


def test_groups_widen_the_interval_when_their_members_agree() -> None:
    ref = outputs(0.0, (0,))
    signs = [1, -1, 1, 1, -1, 1, -1, -1, 1, -1]
    other = {0: {k: (v[0] + signs[k[1]], v[1]) for k, v in ref[0].items()}}
    widths = []
    for group in (lambda key: key[1], lambda key: key):
        d = paired_differences({"ref": ref, "a": other}, "ref", {"m": right}, group=group, draws=400)["a"]["m"]
        assert d.difference == pytest.approx(0.0)
        assert d.low < 0 < d.high
        widths.append(d.high - d.low)
    assert 1.6 < widths[0] / widths[1] < 2.4  # groups of four that agree: sqrt(4)


def test_a_metric_that_is_no_mean_is_computed_per_seed() -> None:
    def auroc(rows: Tensor) -> float:
        return metrics.auroc(rows[:, 0], rows[:, 1])

    both = {"ref": outputs(0.0, noise=1), "a": outputs(0.0, noise=2)}
    found = paired_differences(both, "ref", {"auroc": auroc}, group=lambda key: key[1], draws=100)["a"]["auroc"]
    by_seed = {m: [auroc(torch.tensor(list(o[s].values()))) for s in o] for m, o in both.items()}
    assert found.difference == pytest.approx(sum(by_seed["a"]) / 2 - sum(by_seed["ref"]) / 2)
    assert found.low < found.difference < found.high


def test_comparisons_that_cannot_be_are_refused() -> None:
    with refuses(ConfigError, "'x'", "a"):
        paired_differences({"a": outputs(0.0)}, "x", {"m": right}, group=lambda key: key)
    fewer = {s: dict(list(rows.items())[:-1]) for s, rows in outputs(0.0).items()}
    with refuses(DataError, 1, (39, 9)):
        paired_differences({"ref": outputs(0.0), "a": fewer}, "ref", {"m": right}, group=lambda key: key)


def record(method: str, seed: int, condition: str, accuracy: float) -> Record:
    return Record(method, seed, "test", condition, 4, accuracy, *[0.5] * 7, 1, 1.0)


def test_tables() -> None:
    records = [record("b", 0, "clean", 0.8), record("b", 1, "clean", 0.9), record("a", 0, "clean", math.nan)]
    columns = {"accuracy": ("clean", "accuracy"), "far": ("far", "accuracy")}
    lines = mean_table(records, columns, "method", last={"name": str.upper})
    assert lines == [
        "| method | seeds | accuracy | name |",
        "| --- | --- | --- | --- |",
        "| b | 2 | .850 ± .071 | B |",
        "| a | 1 | – | A |",
    ]
    found = {"a": {"NLL": PairedDifference(-0.013, -0.25, 1.5), "ECE": PairedDifference(*[math.nan] * 3)}}
    assert difference_table(found, "lora")[2] == "| a − lora | −.013 [−.250, +1.500] | – |"
    assert markdown(["x"], []) == ["| x |", "| --- |"]


def test_numbers() -> None:
    assert [short(v) for v in (0.5, -0.25, 1.0, 10.5, math.nan)] == [".50", "−.25", "1.00", "10.50", "–"]
    assert cell([0.5, math.nan]) == ".500"
