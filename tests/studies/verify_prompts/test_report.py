"""The report says what the numbers say: every claim is checked by changing the number behind it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from bayes_adapters.analysis import metrics, plots
from bayes_adapters.analysis.bootstrap import paired_bootstrap
from bayes_adapters.analysis.plots import COLOURS
from bayes_adapters.analysis.records import Record, read_records, score
from bayes_adapters.errors import DataError
from examples.studies.rows import read_rows, write_rows
from examples.studies.verify_prompts import figures
from examples.studies.verify_prompts.comparisons import REFERENCE, auc_difference, differences
from examples.studies.verify_prompts.figures import _groups
from examples.studies.verify_prompts.methods import METHODS
from examples.studies.verify_prompts.predictions import Prediction
from examples.studies.verify_prompts.report import COLUMNS, CONDITIONS, write_report
from tests.refusals import refuses

if TYPE_CHECKING:
    from matplotlib.figure import Figure

pytest.importorskip("matplotlib")
PARTS = metrics.Decomposition._fields


def _record(method: str, condition: str, seed: int = 0, **values: float) -> Record:
    """A record whose total uncertainty rises along the ladder of noise and whose NLL is fine everywhere."""
    level = {"clean": 0, "missing": 6} | {
        f"{n}@{s}": i + 1 for n in ("white", "babble") for i, s in enumerate((20, 10, 5, 0, -5))
    }
    base = dict.fromkeys((*COLUMNS, "aleatoric", "epistemic"), 0.5) | {"total": 0.1 + 0.09 * level.get(condition, 3)}
    return Record(method, seed, "test", condition, 40, **(base | values), samples=10, seconds=1.0)  # type: ignore[arg-type]


def _pairs(method: str, condition: str, seed: int, skill: float, scripts: int = 20) -> list[Prediction]:
    rng = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(2 * scripts):
        label = i % 2 if not condition.startswith("ood") else 1
        p = float(torch.sigmoid(skill * (2 * label - 1) + 0.8 * torch.randn((), generator=rng)))
        total = float(metrics.binary_entropy(torch.tensor(p)))
        rows.append(
            Prediction(
                method, seed, "test", condition, f"r{i}", f"s{i // 2}", label, p, total, total * 0.8, total * 0.2
            )
        )
    return rows


def _audio(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return text[text.index("## Does the uncertainty know the audio?") : text.index("## Results by condition")]


def _written(folder: Path, records: list[Record]) -> str:
    return _audio(write_report(folder, records, [], setup={}))


def _all(change: Callable[[Record], Record] = lambda r: r) -> list[Record]:
    return [change(_record("caliber-x", c)) for c in CONDITIONS]


def test_folder_holds_the_data_the_figures_and_links_that_work(tmp_path: Path) -> None:
    predictions = [
        row
        for seed in (0, 1)
        for method, skill in (("lora-text", 0.2), ("caliber-x", 1.5))
        for condition in ("clean", "white@5", "babble@0", "missing", "ood-es")
        for row in _pairs(method, condition, seed, skill / (1 if condition == "clean" else 2))
    ]
    records = [
        score(
            m, seed, "test", c, torch.tensor([r.probability for r in some]), torch.tensor([r.label for r in some]),
            metrics.Decomposition(*(torch.tensor([getattr(r, k) for r in some]) for k in PARTS)),
            samples=10, seconds=1.0,
        )
        for m, c, seed in dict.fromkeys((r.method, r.condition, r.seed) for r in predictions)
        for some in [[r for r in predictions if (r.method, r.condition, r.seed) == (m, c, seed)]]
    ]  # fmt: skip
    path = write_report(tmp_path / "new", records, predictions, setup={"backbone": "a|b"}, draws=40)
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links == ["figures/reliability.png", "figures/risk_coverage.png", "figures/uncertainty.png"]
    assert all((path.parent / link).read_bytes().startswith(b"\x89PNG") for link in links)
    assert len(read_records(path.parent / "metrics.json")) == len(records)
    back = list(read_rows(path.parent / "predictions.csv", Prediction))
    assert [r[:7] for r in back] == [r[:7] for r in predictions]
    assert [r.probability for r in back] == pytest.approx([r.probability for r in predictions], rel=1e-8)
    assert "a\\|b" in text
    assert "2 seeds (0, 1)" in text
    assert " ± " in text
    # in the OOD condition there is one class only: AUC is an en dash, in the table and in the difference
    ood = text[text.index("### ood-es") :]
    assert re.search(r"\| caliber-x \| 40 \| [\d.]+ ± [\d.]+ \| – \|", ood)
    assert re.search(r"\| lora-text − caliber-x \| [-+\d.]+ \[[^]]+\] \| – \|", ood)
    # the difference shown is the one of the numbers
    shown = re.search(r"### clean.*?lora-text − caliber-x \| \S+ \[\S+ \S+\] \| (\S+) \[", text, re.DOTALL)
    aucs = {m: [r.auc for r in records if (r.method, r.condition) == (m, "clean")] for m in ("lora-text", "caliber-x")}
    assert shown
    assert float(shown[1]) == pytest.approx(sum(aucs["lora-text"]) / 2 - sum(aucs["caliber-x"]) / 2, abs=6e-4)
    for line_a, line_b in zip(text.splitlines(), text.splitlines()[1:], strict=False):
        if line_b.startswith("| ---"):  # every row of a table is as wide as its head
            assert line_a.count(" |") == line_b.count(" |")


@pytest.mark.parametrize("noises", [(), ("white",), ("babble",), ("white", "babble")])
def test_only_noises_that_were_measured_are_spoken_of_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noises: tuple[str, ...]
) -> None:
    drawn: list[list[str]] = []

    def draw(values: object, **options: Any) -> Figure:
        figure = plots.uncertainty_by_condition(values, **options)  # type: ignore[arg-type]
        drawn.append([axes.get_title() for axes in figure.axes[: len(options["noises"])]])
        assert all(np.isfinite(line.get_ydata()).sum() > 2 for axes in figure.axes for line in axes.lines[-1:])
        return figure

    monkeypatch.setattr(figures, "plots", SimpleNamespace(**(vars(plots) | {"uncertainty_by_condition": draw})))
    conditions = ["clean", *(f"{noise}@-5" for noise in noises), "missing"]
    records = [_record("caliber-x", condition) for condition in conditions]
    predictions = [row for condition in conditions for row in _pairs("caliber-x", condition, 0, 1.0)]
    path = write_report(tmp_path, records, predictions, setup={}, draws=20)
    said = _audio(path)
    for noise in ("white", "babble"):
        (line,) = [line for line in said.splitlines() if line.startswith(f"* Total uncertainty, {noise} noise")]
        assert line.endswith("not measured.") is (noise not in noises)
        assert ("never falls" in line) is (noise in noises)
    assert drawn == ([[f"{noise} noise" for noise in noises]] if noises else [])
    assert (tmp_path / "figures" / "uncertainty.png").is_file() is bool(noises)


def test_further_methods_are_compared_with_their_own_baselines() -> None:
    skills = {"lora-fusion": 1.5, "cola": 1.0, "bayesian-cola": 0.5}
    rows = {(m, "clean"): _pairs(m, "clean", 0, skill) for m, skill in skills.items()}
    lines = differences(rows, list(skills), "clean", 20)
    cells = [line.removeprefix("| ").split(" | ") for line in lines if "[" in line]
    assert [row[0] for row in cells] == ["cola − lora-fusion", "bayesian-cola − cola"]
    answers = [[torch.tensor([getattr(r, k) for r in own]) for k in ("probability", "label")] for own in rows.values()]
    fusion, cola, _ = (metrics.auc(*answer) for answer in answers)
    assert float(cells[0][2].split()[0]) == pytest.approx(cola - fusion, abs=6e-4)


def test_good_numbers_give_good_sentences(tmp_path: Path) -> None:
    text = _written(tmp_path, _all())
    assert "NLL stays at or below 0.713 in all 13 corruptions; highest 0.500" in text
    assert text.count("never falls and rises by 0.540 nats (clean 0.100 → missing 0.640)") == 2
    assert "es 0.500, fr 0.500, it 0.500, ru 0.500; above one half by more than chance" in text
    assert "in 0 of 4 languages" in text
    assert "Clean AUC: 0.500" in text


def test_each_bad_number_is_named(tmp_path: Path) -> None:
    def worse(r: Record) -> Record:
        if r.condition == "white@0":
            return replace(r, nll=0.72)
        if r.condition == "babble@5":
            return replace(r, total=0.2)
        if r.condition == "ood-fr":
            return replace(r, auroc_ood=0.8)
        if r.condition == "ood-it":
            return replace(r, auroc_ood=0.55)
        return replace(r, nll=9.0) if r.condition in ("hard", "ood-ru") else r  # no corruption: not held against it

    text = _written(tmp_path, _all(worse))
    assert "NLL exceeds 0.713 in 1 of 13 corruptions: white@0 0.720." in text
    assert "babble noise: not monotone, it falls at babble@10 0.280 → babble@5 0.200" in text
    assert "white noise: never falls" in text
    assert "in 1 of 4 languages" in text  # 0.55 is within chance for 40 + 40 examples


def test_the_margin_is_inclusive_of_noise_but_not_of_more(tmp_path: Path) -> None:
    def at(nll: float) -> str:
        return _written(tmp_path, _all(lambda r: replace(r, nll=nll)))

    assert "stays at or below" in at(math.log(2) + 0.0199)
    assert "exceeds" in at(math.log(2) + 0.0201)


def test_level_uncertainty_is_not_called_rising(tmp_path: Path) -> None:
    text = _written(tmp_path, _all(lambda r: replace(r, total=0.4)))
    assert text.count("is level: it does not react (clean 0.400 → missing 0.400)") == 2
    assert "rises by" not in text


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    text = _written(tmp_path, [_record("c-lora", "clean", auc=math.nan), _record("c-lora", "white@5")])
    assert "Clean AUC: undefined or not measured" in text
    assert "in the one corruption measured" in text
    assert "(not measured: white@20, white@10, white@0, white@-5, missing)" in text
    assert "babble noise: not measured" in text
    assert "Epistemic AUROC for foreign speech: not measured" in text


def test_seeds_are_averaged_and_methods_keep_their_order(tmp_path: Path) -> None:
    records = [_record(m, "clean", s, auc=a) for m in ("caliber-x", "lora-text") for s, a in ((0, 0.7), (1, 0.9))]
    text = write_report(tmp_path, records, [], setup={}).read_text(encoding="utf-8")
    assert "Clean AUC: 0.800" in text
    assert "0.800 ± 0.141" in text
    assert text.index("**lora-text**") < text.index("**caliber-x**")
    assert "## Pictures" not in text  # no predictions, no figures, no dead links


def test_wrong_splits_and_doubled_records_are_refused(tmp_path: Path) -> None:
    record = _record("c-lora", "clean")
    with refuses(DataError, "c-lora", "clean"):
        write_report(tmp_path, [record, record], [], setup={})
    with refuses(DataError, "a, b"):
        write_report(tmp_path, [replace(record, split="a"), replace(record, split="b")], [], setup={})
    with refuses(DataError, "none"):
        write_report(tmp_path, [], [], setup={})
    both = [record, replace(record, split="valid", auc=0.123)]
    assert "0.123" in write_report(tmp_path, both, [], setup={}, split="valid").read_text(encoding="utf-8")


def test_the_fast_auc_difference_is_the_paired_bootstrap() -> None:
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(2, (60,), generator=rng)
    a, b = ((torch.rand(60, 2, generator=rng, dtype=torch.float64) * 9).round() / 9 for _ in range(2))  # with ties
    scripts = [f"s{i // 3}" for i in range(60)]

    def over_seeds(p: torch.Tensor, targets: torch.Tensor) -> float:
        return (metrics.auc(p[:, 0], targets) + metrics.auc(p[:, 1], targets)) / 2

    slow = paired_bootstrap(over_seeds, (a, y), (b, y), groups=scripts, draws=40, seed=3)
    assert tuple(auc_difference(a, b, y, scripts, 40, seed=3)) == pytest.approx(tuple(slow), abs=1e-6)


def test_a_foreign_csv_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "p.csv", Prediction, [])
    assert list(read_rows(tmp_path / "p.csv", Prediction)) == []
    (tmp_path / "p.csv").write_text("method,probability\n")
    with refuses(DataError, tmp_path / "p.csv", ",".join(Prediction._fields)):
        list(read_rows(tmp_path / "p.csv", Prediction))


def test_every_method_of_the_comparison_is_listed_in_its_order(tmp_path: Path) -> None:
    methods = list(METHODS)
    conditions = ("clean", "white@5", "ood-es")
    records = [_record(m, c) for m in reversed(methods) for c in conditions]
    predictions = [row for m in methods for c in conditions for row in _pairs(m, c, 0, 0.5, scripts=4)]
    path = write_report(tmp_path, records, predictions, setup={}, draws=10)
    text = path.read_text(encoding="utf-8")
    others = [m for m in methods if m != REFERENCE]
    lists = [("## Does the uncertainty", r"\*\*(\S+)\*\*", methods), ("Mean total", r"\| (\S+) \| \d", methods)]
    for condition in conditions:
        lists.append((f"### {condition}", r"\| (\S+) \| 40 \|", methods))
        lists.append((f"### {condition}", r"\| (\S+) − caliber-x \|", others))
    for start, row, expected in lists:
        assert re.findall(f"^{row}", text[text.index(start) :], re.MULTILINE)[: len(expected)] == expected


def test_more_methods_than_colours_are_more_pictures(tmp_path: Path) -> None:
    def pictures(methods: Sequence[str]) -> tuple[list[str], str]:
        rows = [row for m in methods for c in ("clean", "white@5") for row in _pairs(m, c, 0, 0.5, scripts=4)]
        folder = tmp_path / str(len(methods))
        path = write_report(folder, [_record(m, "clean") for m in methods], rows, setup={}, draws=10)
        text = path.read_text(encoding="utf-8")
        names = re.findall(r"\]\(figures/(\S+)\.png\)", text)
        assert sorted(f"{name}.png" for name in names) == sorted(p.name for p in (folder / "figures").iterdir())
        return names, text

    few, text = pictures([f"m{i}" for i in range(len(COLOURS))])
    assert few == ["reliability", "risk_coverage", "uncertainty"]
    assert "Picture 1" not in text
    many, text = pictures([f"m{i}" for i in range(2 * len(COLOURS) + 1)])
    kinds = [f"{kind}_{i}" for kind in ("risk_coverage", "uncertainty") for i in (1, 2, 3)]
    assert many == ["reliability", *kinds]
    assert text.count("\n\nMean uncertainty against noise") == text.count(" Picture 3 of 3.\n\n") + 1 == 3


@pytest.mark.parametrize("count", [1, 7, 8, 14, 15])
def test_every_method_is_in_one_picture_of_each_kind(count: int) -> None:
    names = [str(i) for i in range(count)]
    found = [group for _, _, group in _groups(names)]
    assert [name for group in found for name in group] == names
    assert max(map(len, found)) <= len(COLOURS)
