"""Metrics against values worked out by hand, and the properties they must have."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayes_adapters.analysis import metrics
from bayes_adapters.analysis.bootstrap import paired_bootstrap
from bayes_adapters.analysis.records import Record, read_records, score, write_records
from bayes_adapters.errors import DataError
from tests.information import of_classes, of_labels
from tests.refusals import refuses

P = torch.tensor([0.9, 0.6, 0.3, 0.2])
Y = torch.tensor([1, 0, 1, 0])


def _draw(seed: int, n: int = 60) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(n, generator=rng), torch.randint(2, (n,), generator=rng)


def test_values_worked_out_by_hand() -> None:
    assert metrics.accuracy(P, Y) == 0.5
    assert metrics.nll(P, Y) == pytest.approx(-math.log(0.9 * 0.4 * 0.3 * 0.8) / 4, abs=1e-6)
    assert metrics.brier(P, Y) == pytest.approx(2 * (0.01 + 0.36 + 0.49 + 0.04) / 4, abs=1e-6)
    assert metrics.auc(P, Y) == pytest.approx(3 / 4)  # pairs (.9,.6) (.9,.2) (.3,.2) right, (.3,.6) wrong
    # 15 bins: .9 right in [.867,.933); .6 wrong and .7, .8 in bins of their own
    assert metrics.ece(P, Y) == pytest.approx((0.1 + 0.6 + 0.7 + 0.2) / 4, abs=1e-6)


def test_binary_and_two_class_probabilities_agree() -> None:
    p, y = _draw(0)
    for metric in (metrics.accuracy, metrics.nll, metrics.brier, metrics.ece, metrics.auc):
        assert metric(torch.stack([1 - p, p], -1), y) == pytest.approx(metric(p, y), abs=1e-6)


def test_three_classes_by_hand() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    y = torch.tensor([0, 1])
    assert metrics.brier(p, y) == pytest.approx((0.25 + 0.09 + 0.04 + 0.01 + 0.64 + 0.49) / 2, abs=1e-6)
    assert metrics.nll(p, y) == pytest.approx(-(math.log(0.5) + math.log(0.2)) / 2, abs=1e-6)
    assert metrics.auc(p, y, positive=2) != metrics.auc(p, y, positive=2)  # class 2 is absent: NaN


def test_nll_is_clamped_and_logs_keep_what_probabilities_lose() -> None:
    wrong = torch.tensor([0.0]), torch.tensor([1])
    assert metrics.nll(*wrong) == pytest.approx(-math.log(1e-7))
    assert metrics.nll(*wrong, clamp=0.01) == pytest.approx(-math.log(0.01))
    assert metrics.nll(torch.tensor([-1e-9]), torch.tensor([1]), log=True) == pytest.approx(1e-9, rel=1e-3)
    logs = torch.tensor([[0.2, 0.8]]).log()
    assert metrics.nll(logs, torch.tensor([0]), log=True) == pytest.approx(-math.log(0.2), abs=1e-6)
    assert metrics.nll(torch.tensor([math.log(0.2)]), torch.tensor([0]), log=True) == pytest.approx(-math.log(0.8))


def test_perfectly_calibrated_predictions_have_no_calibration_error() -> None:
    p = torch.tensor([0.6, 0.7, 0.8, 0.9]).repeat_interleave(10)
    y = torch.cat([torch.arange(10) < round(10 * q) for q in (0.6, 0.7, 0.8, 0.9)])
    assert metrics.ece(p, y) == pytest.approx(0, abs=1e-6)
    assert metrics.ece(p.square(), y) > 0.05


@given(st.integers(0, 10_000), st.integers(1, 20))
@settings(max_examples=20, deadline=None)
def test_ece_is_the_gap_of_the_reliability_bins(seed: int, bins: int) -> None:
    p, y = _draw(seed)
    p[0], p[1] = 1.0, 0.0  # certainty belongs to the last bin
    confidence, accuracy, count = metrics.reliability_bins(p, y, bins)
    assert count.shape == (bins,)
    assert int(count.sum()) == len(p)
    gap = (count * (accuracy - confidence).abs()).nansum() / len(p)
    assert metrics.ece(p, y, bins) == pytest.approx(float(gap), abs=1e-9)


def test_auroc_is_the_share_of_ordered_pairs_at_any_scale() -> None:
    score_, positives = torch.tensor([1e6, 1e6 + 1, 1e6 + 1, -3.0]), torch.tensor([0, 1, 0, 0])
    assert metrics.auroc(score_, positives) == pytest.approx(2.5 / 3)
    # far below 0 a sigmoid is 0 for all of them: the order must survive
    assert metrics.auroc(torch.tensor([-900.0, -800.0, -700.0]), torch.tensor([0, 1, 0])) == 0.5
    assert metrics.auroc(torch.tensor([-900.0, -800.0, -700.0]), torch.tensor([0, 0, 1])) == 1.0
    assert math.isnan(metrics.auroc(score_, torch.zeros(4)))
    assert math.isnan(metrics.auc(P, torch.ones(4)))
    assert metrics.auroc(torch.full((4,), 7.0), positives) == 0.5


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_auroc_matches_counting_pairs(seed: int) -> None:
    p, y = _draw(seed)
    u = (p * 8).round()  # many ties
    diff = u[y == 1][:, None] - u[y == 0][None]
    assert metrics.auroc(u, y) == pytest.approx(float(((diff > 0) + 0.5 * (diff == 0)).mean()), abs=1e-6)


def test_aurc_of_perfect_random_and_reversed_rankings() -> None:
    error = torch.tensor([0, 0, 0, 1])
    ranked = torch.arange(4.0)
    assert metrics.aurc(ranked, error) == pytest.approx(1 / 16)
    assert metrics.aurc(-ranked, error) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert metrics.aurc(torch.zeros(4), error) == pytest.approx(0.25)  # no ranking: the error rate
    u, e = _draw(3, 4000)
    assert metrics.aurc(u, e) == pytest.approx(float(e.double().mean()), abs=0.05)
    coverage, risk = metrics.risk_coverage(ranked, error)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == [0, 0, 0, 0.25]


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_order_of_examples_does_not_matter(seed: int) -> None:
    p, y = _draw(seed)
    mix = torch.randperm(len(p), generator=torch.Generator().manual_seed(seed + 1))
    for metric in (metrics.accuracy, metrics.nll, metrics.brier, metrics.ece, metrics.auc):
        assert metric(p[mix], y[mix]) == pytest.approx(metric(p, y), abs=1e-6)
    u, e = (p * 5).round(), y
    assert metrics.aurc(u[mix], e[mix]) == pytest.approx(metrics.aurc(u, e), abs=1e-12)


@given(st.integers(0, 10_000), st.integers(1, 8), st.sampled_from([(5,), (5, 3), (2, 4, 3)]))
@settings(max_examples=30, deadline=None)
def test_decomposition_is_that_of_torchs_distributions(seed: int, samples: int, shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(seed)
    raw = torch.randn(samples, *shape, generator=rng).double() * 4
    p = raw.sigmoid() if len(shape) == 1 else raw.softmax(-1)
    found = metrics.decompose(p)
    assert found.total.shape == (shape if len(shape) == 1 else shape[:-1])
    expected = of_labels(p) if len(shape) == 1 else of_classes(p)
    for name, part in expected._asdict().items():
        torch.testing.assert_close(getattr(found, name), part, rtol=1e-6, atol=1e-9)
    same = metrics.decompose(p[:1].expand(7, *shape))
    torch.testing.assert_close(same.epistemic, torch.zeros_like(same.epistemic), rtol=0, atol=1e-12)


def test_decomposition_and_entropy_by_hand() -> None:
    total, aleatoric, epistemic = (v.item() for v in metrics.decompose(torch.tensor([[0.9], [0.1]])))
    h = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert (total, aleatoric, epistemic) == pytest.approx((math.log(2), h, math.log(2) - h), abs=1e-6)
    assert metrics.entropy(torch.full((4,), 0.25)).item() == pytest.approx(math.log(4))
    p = torch.tensor([0.0, 0.3, 1.0])
    torch.testing.assert_close(
        metrics.binary_entropy(p), metrics.entropy(torch.stack([1 - p, p], -1)), atol=1e-7, rtol=0
    )
    # two samples that differ by 1e-5: the difference of float32 entropies would be noise
    near = metrics.decompose(torch.tensor([[0.5 + 1e-5], [0.5 - 1e-5]], dtype=torch.float64)).epistemic.item()
    assert near == pytest.approx(2e-10, rel=1e-3)


def test_a_method_without_epistemic_uncertainty_has_exactly_none() -> None:
    p = torch.rand(500, generator=torch.Generator().manual_seed(0))
    middle = p.clamp(0.05, 0.95)
    jittered = middle * (1 + torch.tensor([0.0, 1.0, -1.0])[:, None] * torch.finfo(torch.float32).eps)
    for samples in (p.expand(10, -1), p.double().expand(10, -1), jittered):
        assert torch.count_nonzero(metrics.decompose(samples).epistemic) == 0


def test_paired_bootstrap_pairs_and_groups() -> None:
    loss = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    same = paired_bootstrap(torch.mean, loss + 0.5, loss, draws=100, seed=1)
    assert tuple(same) == pytest.approx((0.5, 0.5, 0.5))  # what both share cancels: it would not without pairs
    other = loss.flip(0)
    single = paired_bootstrap(torch.mean, other, loss, draws=500, seed=1)
    assert single == paired_bootstrap(torch.mean, other, loss, draws=500, seed=1)
    assert single.low < single.difference < single.high
    width = 2 * 1.96 * float((other - loss).std()) / math.sqrt(200)
    assert single.high - single.low == pytest.approx(width, rel=0.2)
    # ten copies of each example are no new evidence: by group the interval stays as wide as with one copy
    copies = paired_bootstrap(
        torch.mean, other.repeat(10), loss.repeat(10), groups=list(range(200)) * 10, draws=500, seed=1
    )
    assert copies.high - copies.low == pytest.approx(width, rel=0.2)


def test_paired_bootstrap_takes_metrics_of_several_tensors() -> None:
    p, y = _draw(5)
    good = torch.where(y == 1, 0.5 + p / 2, p / 2)
    result = paired_bootstrap(metrics.auc, (good, y), (p, y), draws=50, seed=0)
    assert result.difference == pytest.approx(metrics.auc(good, y) - metrics.auc(p, y))
    assert 0 < result.low <= result.high <= 1
    with refuses(DataError, "paired_bootstrap", [59, 60]):
        paired_bootstrap(torch.mean, p, p[:-1], seed=0)
    with refuses(DataError, "Resampling", "two", 1):
        paired_bootstrap(torch.mean, p, p, groups=["one"] * len(p), seed=0)


@pytest.mark.parametrize(
    ("probs", "targets", "facts"),
    [
        (torch.tensor([2.0, -1.0]), torch.tensor([1, 0]), ("probs", [0, 1], "-1 to 2")),
        (torch.tensor([0.5, math.nan]), torch.tensor([1, 0]), ("probs", [0, 1], "nan")),
        (torch.rand(3, 4, 2), torch.tensor([1, 0, 1]), ("probs", "(3, 4, 2)", "(3,)")),
        (torch.tensor([[0.9, 0.9]]), torch.tensor([0]), ("probs", 1, 1.8)),
        (torch.tensor([0.5]), torch.tensor([2]), ("targets", "0 to 1", [2])),
        (torch.tensor([0.5]), torch.tensor([0.5]), ("targets", "0 to 1", [0.5])),
        (torch.zeros(0), torch.zeros(0), ("probs", "N >= 1", "(0,)")),
    ],
)
def test_unusable_input_is_named(probs: Tensor, targets: Tensor, facts: tuple[object, ...]) -> None:
    with refuses(DataError, *facts):
        metrics.accuracy(probs, targets)


def test_logits_do_not_pass_for_probability_samples() -> None:
    with refuses(DataError, "decompose", "0 to 1", "-2 to 3"):
        metrics.decompose(torch.tensor([[3.0], [-2.0]]))
    with refuses(DataError, "decompose", "(S, N)", "(3,)", "torch.float32", "probs[None]"):
        metrics.decompose(torch.rand(3))


def _record() -> Record:
    draws = torch.stack([P, (P + 0.1).clamp(max=1)])
    # the reference is most uncertain in total and not at all epistemically, so the two OOD numbers are opposite
    near, far = metrics.decompose(draws), metrics.decompose(torch.full((2, 3), 0.5))
    return score("c-lora", 3, "test", "ood-es", draws.mean(0), Y, near, reference=far, samples=2, seconds=0.5)


def test_a_record_has_the_agreed_keys_and_numbers() -> None:
    record = _record()
    assert list(asdict(record)) == [
        "method",
        "seed",
        "split",
        "condition",
        "n",
        "accuracy",
        "auc",
        "nll",
        "brier",
        "ece",
        "auroc_error",
        "auroc_ood",
        "aurc",
        "samples",
        "seconds",
        "auroc_error_epistemic",
        "auroc_ood_total",
        "total",
        "aleatoric",
        "epistemic",
        "parameters",
    ]
    assert (record.n, record.auroc_ood, record.auroc_ood_total) == (4, 1.0, 0.0)
    expected = of_labels(torch.stack([P, (P + 0.1).clamp(max=1)]))
    assert (record.total, record.aleatoric, record.epistemic) == pytest.approx([p.mean().item() for p in expected])


def test_records_survive_the_file_and_nan_is_null(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.json"
    record = replace(_record(), auc=math.nan)
    write_records(path, [record])
    assert json.loads(path.read_text())[0]["auc"] is None
    (back,) = read_records(path)
    assert math.isnan(back.auc)
    assert replace(back, auc=0.0) == replace(record, auc=0.0)
    with refuses(DataError, path, "infinite"):
        write_records(path, [replace(record, nll=math.inf)])
    assert len(read_records(path)) == 1
    assert [p.name for p in path.parent.iterdir()] == ["metrics.json"]


def test_a_foreign_or_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    broken: list[tuple[str, tuple[object, ...]]] = [
        ("[{", ("JSON", "line 1 column 3")),
        ("{}", ("list", "a dict")),
        ('[{"methd": 1}]', ("Record 0", "'methd'", "'method'")),
        ("[{}]", ("Record 0", *(field.name for field in fields(Record)))),
    ]
    for text, facts in broken:
        path.write_text(text)
        with refuses(DataError, path, *facts):
            read_records(path)
