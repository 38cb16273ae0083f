"""Lists of candidates that are scored as pairs: the choice by hand, its scale, its prediction, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bayes_adapters import ELBO, predict
from bayes_adapters.data.pairs import all_pairs
from bayes_adapters.distributions import ListChoice
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import CrossAttention
from bayes_adapters.likelihoods import Candidates
from bayes_adapters.models import StochasticCore
from tests.helpers import CONTEXT, bert, fill_B, token_batch
from tests.refusals import refuses
from tests.retrieval.parts import pairs, side

SCORES = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))  # three draws of seven rows
LISTS = torch.tensor([[4, 0], [4, 1], [9, 1], [4, 0], [9, 0], [9, 1], [6, -100]])
ROWS = {4: [0, 1, 3], 9: [2, 4, 5]}
RIGHT = {4: [1], 9: [0, 2]}


def choice(scores: torch.Tensor, number: int) -> torch.Tensor:
    """The probability of a right row in a list, by hand."""
    return scores[..., ROWS[number]].softmax(-1)[..., RIGHT[number]].sum(-1)


def test_rows_of_a_list_sum_to_its_choice() -> None:
    found = Candidates().distribution(SCORES[..., None]).log_prob(LISTS)
    for number, rows in ROWS.items():
        torch.testing.assert_close(found[:, rows].sum(1), choice(SCORES, number).log())
        torch.testing.assert_close(found[:, rows[0]], found[:, rows[1]])
    assert torch.equal(found[:, 6], torch.zeros(3))  # nothing is known of that list
    scores = SCORES[0].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: ListChoice(f).log_prob(LISTS), scores)


def test_a_prediction_averages_choices_over_draws() -> None:
    likelihood = Candidates()
    draws = [likelihood.distribution(part[..., None]) for part in (SCORES[:1], SCORES[1:])]
    found = likelihood.predict_held(draws, LISTS)
    for number, rows in ROWS.items():
        p = SCORES[:, rows].softmax(-1)
        torch.testing.assert_close(found.mean[rows], p.mean(0))
        total = torch.special.entr(p.mean(0)).sum()
        torch.testing.assert_close(found.total[rows], total.expand(3))
        torch.testing.assert_close(found.aleatoric[rows], torch.special.entr(p).sum(-1).mean().expand(3))
        assert found.log_density is not None
        torch.testing.assert_close(found.log_density[rows].sum(), choice(SCORES, number).mean().log())
    unknown = LISTS.masked_fill(torch.tensor([False, True]), -100)
    assert likelihood.predict_held(draws, unknown).log_density is None
    with refuses(DataError, "similarities()", "-100"):
        likelihood.predict_held(draws, None)


def test_the_loss_counts_a_list_once() -> None:
    """Its rows are N: the sum over the data set is one choice for each query, whatever the number of candidates."""
    texts = replace(token_batch(3), targets=torch.arange(3))
    rows = all_pairs(texts, texts, ["audio"])
    model = fill_B(StochasticCore(bert(1), Candidates(), rank=2))
    guide = CrossAttention(model, context_dim=CONTEXT, dim=4, scale=None)
    with torch.no_grad():
        nll = float(ELBO(model, guide, kl_weight=0.0).terms(rows).nll) * rows.size
    probs = predict(model, guide, rows, num_samples=1).mean.reshape(3, 3)
    assert nll == pytest.approx(-float(probs.diagonal().log().sum()), rel=1e-5)
    first = predict(model, guide, rows[:3], num_samples=1).mean  # a list whole, without the others
    torch.testing.assert_close(first, probs[0])


def test_all_pairs_have_the_candidates_modality_and_the_querys_rest() -> None:
    texts = replace(token_batch(3), targets=torch.tensor([5, 6, 5]))
    sounds = replace(token_batch(2, seed=4), targets=torch.tensor([6, 5]))
    rows = all_pairs(texts, sounds, ["audio"])
    assert rows.size == 6
    for q in range(3):
        for g in range(2):
            row = 2 * q + g
            assert torch.equal(rows.inputs["input_ids"][row], texts.inputs["input_ids"][q])
            assert torch.equal(rows.context["audio"].values[row], sounds.context["audio"].values[g])
            assert rows.targets is not None
            assert rows.targets[row].tolist() == [q, int(texts.targets[q] == sounds.targets[g])]  # type: ignore[index]
    assert rows.index is not None
    assert len(rows.index.unique()) == 6
    both = pairs(4)
    assert set(all_pairs(side(both, "text"), side(both, "audio")).inputs) == set(both.inputs)
    assert bool((all_pairs(texts, sounds.without_targets(), ["audio"]).targets[:, 1] == -100).all())  # type: ignore[index]


def test_pairs_that_cannot_be_made() -> None:
    texts, both = replace(token_batch(3), targets=torch.arange(3)), pairs(4)
    with refuses(ConfigError, "['audio']", "of_gallery"):
        all_pairs(texts, texts)
    with refuses(ConfigError, "['video']", "['audio']"):
        all_pairs(texts, texts, ["video"])
    with refuses(DataError, "queries", "torch.float32"):
        all_pairs(token_batch(3), texts, ["audio"])
    with refuses(ConfigError, "of_gallery", "no modality"):
        all_pairs(both, both, [])


@pytest.mark.parametrize(
    ("targets", "facts"),
    [
        (torch.arange(4), ("Candidates", "(B, 2)", "(4,)")),
        (torch.zeros(4, 2), ("torch.float32", "all_pairs")),
        (torch.tensor([[0, 2], [0, 1]]), ("[0]", "[2]", "-100")),
        (torch.tensor([[0, 1], [0, 0], [3, 0]]), ("[3]", "whole")),
        (torch.tensor([[0, 1], [0, 0], [8, 1]]), ("[8]", "batches()")),
    ],
)
def test_targets_that_are_no_lists(targets: torch.Tensor, facts: tuple[object, ...]) -> None:
    with refuses(DataError, *facts):
        Candidates().check(targets)
