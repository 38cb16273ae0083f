"""Ranks are taken out in place: parameters, sites, priors, gradients and the optimiser's state."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from bayes_adapters import ELBO, Bernoulli, adapted_layers, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import MeanField, RankWise
from bayes_adapters.models import StochasticCore, StochasticDown, StochasticFactors
from bayes_adapters.surgery.pruning import prune, scores
from tests.helpers import WIDTH, bert, token_batch
from tests.rank_wise.parts import LAYERS
from tests.rank_wise.parts import pair as fresh
from tests.refusals import refuses
from tests.surgery.pruning.parts import key, pair


@pytest.mark.parametrize("tie", [True, False])
def test_prune_cuts_parameters_sites_and_priors_in_place(tie: bool) -> None:
    prior = {"A.*": pyro.distributions.Normal(torch.zeros(3, 1), torch.tensor([[1.0], [2.0], [3.0]])), "B.*": None}
    prior["B.*"] = pyro.distributions.Normal(0.0, 1.0)
    model = StochasticFactors(bert(), Bernoulli(), rank=3, num_data=50, prior=prior)
    guide = RankWise(model, tie=tie)
    with torch.no_grad():
        for name, loc in guide.loc.items():
            loc.copy_(torch.arange(1.0, 4.0)[:, None] if name.startswith("A") else torch.arange(1.0, 4.0))
        guide.loc[key("A", 0)][0, 1] = guide.loc[key("B", 0)][0, :, 1] = 1e-4
        guide.loc[key("A", 2)].zero_()
        guide.loc[key("B", 2)].zero_()
    objects = dict(guide.named_parameters())
    record = prune(model, guide, threshold=2.0)
    assert record.kept == {LAYERS[0]: [0, 2], LAYERS[1]: [0, 1, 2], LAYERS[2]: [], LAYERS[3]: [0, 1, 2]}
    assert (record.removed, record.after) == (4, model.ranks)
    assert all(objects[name] is p for name, p in guide.named_parameters())
    assert guide.loc[key("A", 0)][0, :, 0].tolist() == [1.0, 3.0]
    assert guide.loc[key("B", 0)][0, 0].tolist() == [1.0, 3.0]
    shapes = {site.name: site.shape for site in model.sites}
    assert shapes[f"A.{LAYERS[0]}"] == (1, 2, WIDTH)
    assert shapes[f"B.{LAYERS[0]}"] == (1, WIDTH, 2)
    assert shapes[f"B.{LAYERS[2]}"] == (1, WIDTH, 0)
    for site in model.sites:
        assert adapted_layers(model.backbone)[site.layers[0]].sites[site.part] is site
        assert model.prior.of(site).shape() == site.shape  # type: ignore[attr-defined]
    kept = model.prior.of(next(s for s in model.sites if s.name == f"A.{LAYERS[0]}"))
    assert kept.base_dist.scale[0, :, 0].tolist() == [1.0, 3.0]
    assert {layer.scaling for layer in adapted_layers(model.backbone).values()} == {16.0 / 3}, "the scale stays α/r"
    assert ELBO(model, guide)(token_batch()).isfinite()


def test_ranks_with_small_means_go_and_the_mean_prediction_stays() -> None:
    model, guide = pair()
    with torch.no_grad():
        guide.loc[key("A", 0)][0, 1] = 0.0  # exactly nothing
        guide.loc[key("B", 2)].zero_()
    batch = token_batch()
    before = predict(model, guide, batch, mean_only=True).mean
    record = prune(model, guide, threshold=2.0)
    assert record.after == dict(zip(LAYERS, [2, 3, 0, 3], strict=True))
    torch.testing.assert_close(predict(model, guide, batch, mean_only=True).mean, before, rtol=0, atol=1e-6)
    assert predict(model, guide, batch, num_samples=3).epistemic.isfinite().all()


@pytest.mark.parametrize("local", [False, True])
def test_a_layer_without_ranks_contributes_exactly_nothing(local: bool) -> None:
    model, guide = fresh(init_log_variance=0.0, local_reparametrisation=local)
    batch = token_batch()
    with model.adapters_disabled(), torch.no_grad():
        guide(batch)
        expected = guide.trace.nodes["obs"]["fn"].logits
    prune(model, guide, threshold=-100.0, allow_empty=True)
    assert set(model.ranks.values()) == {0}
    with torch.no_grad():
        guide(batch)
    assert torch.equal(guide.trace.nodes["obs"]["fn"].logits, expected)
    terms = ELBO(model, guide).terms(batch, with_scales=True)
    assert terms.kl.item() == 0.0
    terms.loss.backward()
    assert predict(model, guide, batch, num_samples=3).epistemic.abs().max() < 1e-6
    assert prune(model, guide, threshold=2.0).removed == 0, "nothing is left to take out, and that is no error"


@pytest.mark.parametrize("least", [1, 2, 5])
def test_min_rank_keeps_those_with_the_lowest_scores(least: int) -> None:
    model, guide = pair()
    order = scores(model, guide)[LAYERS[2]].argsort().tolist()
    record = prune(model, guide, threshold=2.0, min_rank=least)
    assert record.kept[LAYERS[2]] == sorted(order[:least])
    assert record.after[LAYERS[0]] == max(2, min(least, 3))


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_with_the_same_optimiser(name: str) -> None:
    """Also with the loss of the step before still alive, as in every hand-written loop."""
    model, guide = pair()
    optimizer = OPTIMIZERS[name]([*model.trainable_parameters().values(), *guide.parameters()])
    elbo, batch = ELBO(model, guide), token_batch()
    losses: list[Tensor] = []
    for step in range(6):
        optimizer.zero_grad()
        losses.append(elbo(batch))
        losses[-1].backward()
        optimizer.step()
        if step == 2:
            states = {n: {k: v.clone() for k, v in optimizer.state[p].items() if isinstance(v, Tensor)}
                      for n, p in guide.named_parameters()}  # fmt: skip
            gradients = {n: p.grad.clone() for n, p in guide.named_parameters() if p.grad is not None}
            assert prune(model, guide, optimizer, threshold=2.0).kept[LAYERS[0]] == [0, 2]
            for n, p in guide.named_parameters():
                assert p.grad is not None
                assert p.grad.shape == p.shape
                for k, value in optimizer.state[p].items():
                    assert not isinstance(value, Tensor) or value.shape in {(), p.shape}, (n, k)
            for k, before in states[f"loc.{key('A', 0)}"].items():
                after = optimizer.state[guide.loc[key("A", 0)]][k]
                assert torch.equal(after, before[:, [0, 2]] if before.dim() else before)
            B = guide.loc[key("B", 0)].grad
            assert B is not None
            assert torch.equal(B, gradients[f"loc.{key('B', 0)}"][:, :, [0, 2]])
    assert all(loss.isfinite() for loss in losses)


def test_an_optimiser_whose_state_cannot_be_cut_is_refused_before_anything_changes() -> None:
    model, guide = pair()
    optimizer = torch.optim.Adafactor([*model.trainable_parameters().values(), *guide.parameters()])
    ELBO(model, guide)(token_batch()).backward()
    optimizer.step()
    before = model.ranks
    with refuses(ConfigError, "Adafactor", "Adam, AdamW, SGD", "optimizer=None"):
        prune(model, guide, optimizer, threshold=2.0)
    assert model.ranks == before
    assert guide.loc[key("A", 0)].shape == (1, 3, WIDTH)


@pytest.mark.parametrize(
    ("build", "facts"),
    [
        (
            lambda: StochasticDown(bert(), Bernoulli(), rank=3, num_data=50),
            ("StochasticDown", "A.global"),
        ),
        (
            lambda: StochasticCore(bert(), Bernoulli(), rank=3),
            ("StochasticCore", "core.encoder.layer.0.attention.self.query"),
        ),
        (lambda: StochasticFactors(bert(), Bernoulli(), rank=3, num_data=9), ("MeanField",)),
    ],
)
def test_models_and_guides_without_ranks_to_take_out(build: Any, facts: tuple[object, ...]) -> None:
    model = build()
    with refuses(ConfigError, *facts):
        prune(model, MeanField(model), threshold=2.0, allow_empty=True)


def test_scores_that_are_not_finite_and_foreign_guides() -> None:
    model, guide = pair()
    with refuses(ConfigError, "RankWise", "StochasticFactors"):
        prune(pair()[0], guide, threshold=2.0)
    guide.loc[key("A", 3)].data[0, 0] = math.nan
    with refuses(ConfigError, repr(LAYERS[3])):
        prune(model, guide, threshold=2.0)
