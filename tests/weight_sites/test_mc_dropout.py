"""MC-dropout: random keep masks over the adapters' inputs."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayes_adapters import ELBO, Bernoulli, adapted_layers, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import MCDropout
from bayes_adapters.models import AdapterDropout
from tests.helpers import WIDTH, bert, fill_B, token_batch
from tests.refusals import refuses


@pytest.mark.parametrize(("granularity", "shape"), [("token", (2, 5, 7, WIDTH)), ("sequence", (2, 5, 1, WIDTH))])
def test_masks_are_zeros_and_ones_of_the_stated_rate(granularity: str, shape: tuple[int, ...]) -> None:
    model = AdapterDropout(bert(), Bernoulli(), rank=3, drop=0.4, granularity=granularity)
    guide, batch = MCDropout(model), token_batch()
    with pyro.plate("samples", 2, dim=-2), torch.no_grad():
        guide(batch)
    values = [guide.trace.nodes[s.name]["value"] for s in model.sites]
    assert all(v.shape == shape and set(v.unique().tolist()) == {0.0, 1.0} for v in values)
    kept = torch.cat([v.flatten() for v in values])
    assert kept.mean().item() == pytest.approx(0.6, abs=4 * math.sqrt(0.24 / len(kept)))


def test_every_other_dropout_stays_off_while_sampling() -> None:
    net = bert()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9
    model = AdapterDropout(net, Bernoulli(), rank=3)  # B = 0: the masks change nothing
    guide = MCDropout(model)
    model.train()
    draws = predict(model, guide, token_batch(), num_samples=6, return_samples=True).samples
    assert draws is not None
    assert torch.equal(draws[0], draws[1])
    assert model.training, "modes are restored"
    assert model.backbone.training
    draws = predict(fill_B(model), guide, token_batch(), num_samples=6, return_samples=True).samples
    assert draws is not None
    assert (draws.std(0) > 1e-4).all()


def test_mc_dropout_has_no_kl_and_trains_only_the_adapters() -> None:
    model = fill_B(AdapterDropout(bert(), Bernoulli(), rank=3))
    guide = MCDropout(model)
    terms = ELBO(model, guide).terms(token_batch())
    assert terms.kl.item() == 0.0
    assert not list(guide.parameters())
    terms.loss.backward()
    assert all(p.grad is not None for p in model.trainable_parameters().values())


def test_rates_outside_their_range() -> None:
    with refuses(ConfigError, "drop", "(0, 1)", 1.0):
        AdapterDropout(bert(), Bernoulli(), drop=1.0)


def test_a_layer_that_never_keeps_anything_is_refused() -> None:
    """It would divide 0 by 0."""
    net, never = bert(), dist.Bernoulli(probs=torch.tensor(0.0))
    prior = {"*query": never, "*": dist.Bernoulli(probs=torch.tensor(1.0))}
    with refuses(ConfigError, "'mask.encoder.layer.0.attention.self.query'", 0):
        AdapterDropout(net, Bernoulli(), prior=prior)
    assert not adapted_layers(net)
    model = AdapterDropout(net, Bernoulli(), prior=prior["*"])
    assert predict(model, MCDropout(model), token_batch(), num_samples=2).mean.isfinite().all()
