"""The tables in ``docs/`` say what the records in ``results/`` say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bayes_adapters.analysis.intervals import seeds_and_units
from bayes_adapters.analysis.records import Record, read_records
from examples.av_events import tables as av
from examples.av_events.records import Result as AvResult
from examples.av_events.task import Task as AvTask
from examples.generation.corpus import INSIDE
from examples.generation.experiment import Result as GenerationResult
from examples.generation.results import COLUMNS as GENERATION
from examples.multiple_choice.experiment import Answered
from examples.multiple_choice.results import TABLES as CHOICE
from examples.multiple_choice.results import means as choice_means
from examples.studies import seeds
from examples.studies.backbones import differences
from examples.studies.backbones.results import means as encoder_means
from examples.studies.body_signals.results import COLUMNS as BODY
from examples.studies.comparison import mean_table, rewrite
from examples.studies.few_labels.active import means as active_means
from examples.studies.few_labels.experiment import Result as FewResult
from examples.studies.few_labels.results import COLUMNS as FEW
from examples.studies.meld.records import Result as MeldResult
from examples.studies.meld.results import COLUMNS as MELD
from examples.studies.speaking_time.records import TEST
from examples.studies.speaking_time.records import Result as TimeResult
from examples.studies.speaking_time.tables import COLUMNS as TIME
from examples.studies.verify_prompts import picture, tables
from examples.studies.wander import tables as wander
from examples.studies.wander.records import Result as WanderResult
from tests.refusals import refuses

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"


def records(name: str, kind: type[Record] = Record) -> list[Record]:
    return read_records(RESULTS / f"{name}.json", kind)


def choices(marker: str) -> list[str]:
    """Return a table of the page on multiple choice; it is empty until something is measured."""
    measured = (RESULTS / "multiple_choice.json").is_file()
    return choice_means(records("multiple_choice", Answered), CHOICE[marker]) if measured else []


def ablated() -> list[WanderResult]:
    """Return the records of the page on Wander; none until something is measured."""
    measured = (RESULTS / "wander_ablation.json").is_file()
    return read_records(RESULTS / "wander_ablation.json", WanderResult) if measured else []


def ablation(make: Callable[[list[WanderResult]], list[str]]) -> list[str]:
    """Return a table of the page on Wander; it is empty until something is measured."""
    return make(found) if (found := ablated()) else []


def heard_and_seen(task: AvTask) -> list[str]:
    """Return a table of the page on audio-visual events, which says so until something is measured."""
    measured = (RESULTS / "av_events.json").is_file()
    return av.means(read_records(RESULTS / "av_events.json", AvResult) if measured else [], task)


MEANS = {
    ("av-events", "av_events"): lambda: heard_and_seen(AvTask.EVENTS),
    ("av-events", "av_masks"): lambda: heard_and_seen(AvTask.MASKS),
    ("body-signals", "body_signals"): lambda: mean_table(records("body_signals"), BODY, "method", reference="all"),
    ("few-labels", "active"): lambda: active_means(records("few_labels_active", FewResult)),
    ("few-labels", "few_labels"): lambda: mean_table(records("few_labels", FewResult), FEW, "method"),
    ("multiple-choice", "multiple_choice"): lambda: choices("multiple_choice"),
    ("multiple-choice", "multiple_choice_selected"): lambda: choices("multiple_choice_selected"),
    ("sentiment", "meld"): lambda: mean_table(records("meld", MeldResult), MELD, "method"),
    ("wander", "wander_means"): lambda: ablation(wander.means),
    ("wander", "wander_gradients"): lambda: ablation(wander.gradients),
    ("wander", "wander_streams"): lambda: wander.streams(
        ablated(), json.loads((RESULTS / "wander_cost.json").read_text(encoding="utf-8"))
    ),
    ("speaking-time", "speaking_time"): lambda: mean_table(
        records("speaking_time", TimeResult), TIME, "method", reference=TEST
    ),
    ("generation", "generation"): lambda: mean_table(
        records("generation", GenerationResult), GENERATION, "method", reference=INSIDE
    ),
}
MEANS = {key: make for key, make in MEANS.items() if key[1] != "generation" or (RESULTS / "generation.json").is_file()}


@pytest.mark.parametrize(("page", "marker"), MEANS)
def test_the_means_of_a_page_are_those_of_the_records(page: str, marker: str) -> None:
    text = (ROOT / "docs" / "results" / f"{page}.md").read_text(encoding="utf-8")
    assert rewrite(text, marker, MEANS[page, marker]()) == text


def test_the_tables_of_encoders_are_those_of_their_records() -> None:
    text = (ROOT / "docs" / "results" / "other-encoders.md").read_text(encoding="utf-8")
    said = {marker: ["Not measured yet."] for marker in ("backbones", "backbones_wins", "backbones_differences")}
    if (RESULTS / "backbones.json").is_file():
        found = differences.read(RESULTS / "backbones_differences.json")
        said = {"backbones": encoder_means(records("backbones"))} | differences.tables(found)
    for marker, lines in said.items():
        assert rewrite(text, marker, lines) == text, marker


def test_make_results_changes_nothing_that_is_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {tables.main: ROOT / "docs/results/script-verification.md", seeds.main: ROOT / "docs/claims.md"}
    for command, page in pages.items():
        copy = shutil.copy(page, tmp_path)
        monkeypatch.setattr("sys.argv", ["command", "--results", str(RESULTS), "--page", str(copy)])
        assert command() == 0
        assert Path(copy).read_text(encoding="utf-8") == page.read_text(encoding="utf-8"), page


def test_the_picture_shows_the_means_over_seeds() -> None:
    figure = picture.draw(records("verify_prompts"))
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].get_lines()}
    for metric, label in picture.LINES.items():
        own = [
            getattr(r, metric) for r in records("verify_prompts") if (r.method, r.condition) == ("caliber-x", "clean")
        ]
        assert len(own) == 5
        assert lines[label][0] == pytest.approx(sum(own) / 5)
    total = lines[picture.LINES["total"]]
    assert total == sorted(total), "the caption says that it rises"


def test_a_difference_that_every_seed_shows_excludes_zero() -> None:
    rows = [
        {"method": method, "seed": seed, "condition": "clean", "nll": value + 0.001 * seed}
        for method, value in (("a", 1.0), ("b", 0.5))
        for seed in range(5)
    ]
    pair = seeds.Pair("", "a", "b", "clean", "nll", "NLL")
    found = seeds.difference(rows, pair)
    assert (found.mean, found.seeds) == (pytest.approx(0.5), 5)
    assert not found.includes_zero
    with refuses(seeds.DataError, "1 common seeds"):
        seeds.difference(rows[:1] + rows[5:], pair)


def test_units_widen_an_interval_and_never_narrow_it() -> None:
    rng = np.random.default_rng(0)
    seed_effect, unit_effect = 0.1 * rng.standard_normal((5, 1)), rng.standard_normal((1, 60))
    table = torch.from_numpy(0.4 + seed_effect + unit_effect + 0.5 * rng.standard_normal((5, 60)))
    rows = [
        {"method": method, "seed": seed, "condition": "clean", "nll": value}
        for seed, mean in enumerate(table.mean(1).tolist())
        for method, value in (("a", mean), ("b", 0.0))
    ]
    mean, error = float(table.mean()), float(table.mean(0).std()) / 60**0.5
    units = (mean - 1.96 * error, mean + 1.96 * error)
    found = seeds.difference(rows, seeds.Pair("", "a", "b", "clean", "nll", "NLL", units))
    exact = seeds_and_units(table)
    half = (exact.high - exact.low) / 2
    assert found.over_both == pytest.approx(half, rel=0.05)  # σ_both² / (R n) twice, the units' variance as known
    assert found.over_seeds < found.over_both / 2
    tight = seeds.difference(rows, seeds.Pair("", "a", "b", "clean", "nll", "NLL", (mean - 1e-3, mean + 1e-3)))
    alone = seeds.difference(rows, seeds.Pair("", "a", "b", "clean", "nll", "NLL"))
    assert (tight.over_both, tight.p_value) == (alone.over_both, alone.p_value)
