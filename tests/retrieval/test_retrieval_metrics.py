"""Recall and ranks by brute force over all orders of tied candidates; 'no match' by risk and by a candidate."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch

from bayes_adapters.analysis.no_match import MatchThreshold, NullCandidate
from bayes_adapters.analysis.retrieval import ranks, recall_at, retrieval, same_group
from bayes_adapters.errors import ConfigError, DataError
from tests.refusals import refuses

RNG = torch.Generator().manual_seed(0)
SCORES = torch.randint(0, 3, (6, 5), generator=RNG).float()  # many ties
RELEVANT = torch.rand(6, 5, generator=RNG) < 0.4
RELEVANT[:, 1] |= ~RELEVANT.any(1)


def first_right(scores: torch.Tensor, right: torch.Tensor) -> list[int]:
    """The place of the first right candidate, in every order that the scores allow."""
    orders = []
    for order in permutations(range(len(scores))):
        s = [float(scores[i]) for i in order]
        if s == sorted(s, reverse=True):
            orders.append(1 + [bool(right[i]) for i in order].index(True))
    return orders


def test_recall_and_ranks_are_averages_over_all_orders_of_ties() -> None:
    places = [first_right(s, r) for s, r in zip(SCORES, RELEVANT, strict=True)]
    expected = [sum(own) / len(own) for own in places]
    torch.testing.assert_close(ranks(SCORES, RELEVANT), torch.tensor(expected, dtype=torch.float64))
    for k, found in recall_at(SCORES, RELEVANT, k=(1, 2, 3, 9)).items():
        assert found == pytest.approx(sum(sum(p <= k for p in own) / len(own) for own in places) / 6)


def test_both_directions() -> None:
    queries, gallery = torch.tensor([3, 4, 4]), torch.tensor([4, 3, 9, 4])
    relevant = same_group(queries, gallery)
    scores = torch.randn(3, 4, generator=RNG)
    found = retrieval(scores, relevant, k=(1, 2))
    back = relevant.T[[0, 1, 3]]  # nobody asks for the third
    assert found.recall_back == recall_at(scores.T[[0, 1, 3]], back, k=(1, 2))
    assert found.median_rank_back == float(ranks(scores.T[[0, 1, 3]], back).median())
    assert found.recall == recall_at(scores, relevant, k=(1, 2))


def test_a_threshold_keeps_its_risk() -> None:
    """Fresh queries of the same kind: wrong answers are at most the risk, on average over calibrations."""
    rng = torch.Generator().manual_seed(1)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.randn(count, 8, generator=rng)
        right = torch.zeros(count, 8, dtype=torch.bool)
        right[: 2 * count // 3, 0] = True  # a third has no partner
        return scores + 2.5 * right, right

    wrong, answered = [], []
    for _ in range(60):
        limit = MatchThreshold.fit(*draw(90), risk=0.1)
        scores, right = draw(300)
        chosen = limit(scores)
        said = chosen >= 0
        wrong.append(float((said & ~right.gather(1, chosen.clamp_min(0)[:, None])[:, 0]).double().mean()))
        answered.append(float(said.double().mean()))
    assert sum(wrong) / 60 == pytest.approx(0.1, abs=0.015)
    assert sum(answered) / 60 > 0.3
    assert MatchThreshold(None, 0.1)(torch.ones(1, 2)).tolist() == [-1]


def test_zero_is_the_null_of_independent_matches() -> None:
    """P(none | at most one of independent matches), by enumeration of the matches."""
    odds = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64).exp()
    p = odds / (1 + odds)
    none = (1 - p).prod()
    one = torch.stack([none * own for own in odds])
    expected = torch.cat([one, none[None]]) / (none + one.sum())
    torch.testing.assert_close(NullCandidate(0.0)(odds.log()[None, None])[0], expected)


def test_the_null_is_where_the_likelihood_is_greatest() -> None:
    rng = torch.Generator().manual_seed(2)
    samples = torch.randn(4, 50, 6, generator=rng)
    right = torch.zeros(50, 6, dtype=torch.bool)
    right[:30, 2] = True
    null = NullCandidate.fit(samples + right, right)

    def loss(z: float) -> float:
        p = NullCandidate(z)(samples + right)
        return -float(p[torch.arange(50), torch.where(right.any(1), 2, 6)].log().sum())

    assert loss(null.score) < min(loss(null.score - 0.01), loss(null.score + 0.01))
    with refuses(DataError, "30", "30"):
        NullCandidate.fit(samples[:, :30], right[:30])


def test_tables_that_do_not_fit() -> None:
    with refuses(DataError, "(2, 3, 4)", "(Q, G)"):
        recall_at(torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.long))
    with refuses(DataError, "(3, 4)", "torch.float32"):
        recall_at(torch.zeros(3, 4), torch.zeros(3, 4))
    with refuses(DataError, "[7]", "same_group(queries, gallery)"):
        recall_at(torch.zeros(2, 4), torch.tensor([1, 7]))
    with refuses(DataError, "[1]", "no right candidate"):
        ranks(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))
    with refuses(DataError, "[0]", "NaN"):
        ranks(torch.full((1, 2), math.nan), torch.tensor([0]))
    with refuses(ConfigError, "k", "0"):
        recall_at(torch.zeros(2, 2), torch.tensor([0, 1]), k=(0,))
    with refuses(DataError, "queries", "torch.float32"):
        same_group(torch.zeros(2), torch.arange(3))
    with refuses(ConfigError, "score", "nan"):
        NullCandidate(math.nan)
    with refuses(DataError, "(S, Q, G)", "(2, 2)"):
        NullCandidate(0.0)(torch.zeros(2, 2))
