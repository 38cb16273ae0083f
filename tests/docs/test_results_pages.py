"""The tables in ``docs/`` say what the records in ``results/`` say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bayes_adapters.analysis.records import Record, read_records
from examples.studies import seeds
from examples.studies.body_signals.results import COLUMNS as BODY
from examples.studies.comparison import mean_table, rewrite
from examples.studies.meld.records import Result as MeldResult
from examples.studies.meld.results import COLUMNS as MELD
from examples.studies.speaking_time.records import TEST
from examples.studies.speaking_time.records import Result as TimeResult
from examples.studies.speaking_time.tables import COLUMNS as TIME
from examples.studies.verify_prompts import picture, tables
from tests.refusals import refuses

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"


def records(name: str, kind: type[Record] = Record) -> list[Record]:
    return read_records(RESULTS / f"{name}.json", kind)


MEANS = {
    ("body-signals", "body_signals"): lambda: mean_table(records("body_signals"), BODY, "method", reference="all"),
    ("sentiment", "meld"): lambda: mean_table(records("meld", MeldResult), MELD, "method"),
    ("speaking-time", "speaking_time"): lambda: mean_table(
        records("speaking_time", TimeResult), TIME, "method", reference=TEST
    ),
}


@pytest.mark.parametrize(("page", "marker"), MEANS)
def test_the_means_of_a_page_are_those_of_the_records(page: str, marker: str) -> None:
    text = (ROOT / "docs" / "results" / f"{page}.md").read_text(encoding="utf-8")
    assert rewrite(text, marker, MEANS[page, marker]()) == text


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
    found = seeds.over_seeds(rows, pair)
    assert (found.mean, found.seeds) == (pytest.approx(0.5), 5)
    assert not found.includes_zero
    with refuses(seeds.DataError, "1 common seeds"):
        seeds.over_seeds(rows[:1] + rows[5:], pair)
