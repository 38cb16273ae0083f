"""The objective of random A and B: its KL, the ELBO by hand, Pyro's own ELBOs."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch.nn import functional as F

from bayes_adapters import ELBO, Batch, Bernoulli
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import RankWise
from bayes_adapters.models import StochasticFactors
from tests.helpers import WIDTH, Linear, token_batch
from tests.rank_wise.parts import LAYERS, pair
from tests.refusals import refuses


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize(
    ("alpha", "kl"),
    [(1e-4, 5.240976), (0.01, 2.938956), (0.1, 1.723453), (1, 0.431239), (10, 0.050822), (1e3, 5.03e-4)],
)
def test_kl_of_variational_dropout_once_per_data_set(alpha: float, kl: float, local: bool) -> None:
    model, guide = pair(local_reparametrisation=local)
    with torch.no_grad():
        for loc in guide.loc.values():
            loc.fill_(math.exp(-2.0) / math.sqrt(alpha))
        for log_variance in guide.log_variance.values():
            log_variance.fill_(-4.0)
    entries = len(LAYERS) * 3 * (WIDTH + WIDTH)
    # the prior's eps of 1e-8 changes the largest dropout rate by 5e-4 of itself
    assert ELBO(model, guide).terms(token_batch()).kl.item() == pytest.approx(kl * entries / 50, rel=2e-3)


@pytest.mark.parametrize("local", [False, True])
def test_the_elbo_by_hand(local: bool) -> None:
    torch.manual_seed(1)
    model = StochasticFactors(Linear(), Bernoulli(), targets=["query"], rank=2, alpha=6.0, num_data=20)
    guide = RankWise(model, init_log_variance=-1.0, local_reparametrisation=local)
    M, L = guide.loc["A-query"].detach()[0], guide.loc["B-query"].detach()[0]
    L.copy_(torch.randn(3, 2))
    guide.log_variance["query"].data.copy_(torch.tensor([-1.0, 0.5]))
    batch = Batch({"x": torch.randn(5, 7, 4)}, torch.tensor([0.0, 1, 1, 0, 1]))

    torch.manual_seed(3)
    terms = ELBO(model, guide).terms(batch)
    torch.manual_seed(3)
    x, sigma = batch.inputs["x"], torch.tensor([-0.5, 0.25]).exp()
    if local:
        down, up = torch.randn(5, 2, 4), torch.randn(5, 3, 2)  # one of each for every example
        A, B = M + sigma[:, None] * down, L + sigma * up
        delta = torch.stack([x[b] @ (B[b] @ A[b]).T for b in range(5)])
    else:
        A = M + sigma[:, None] * torch.randn(1, 2, 4)[0]
        B = L + sigma * torch.randn(1, 3, 2)[0]
        delta = x @ (B @ A).T
    base = model.backbone.query.base_layer
    hidden = x @ base.weight.T + base.bias + 3.0 * delta
    logit = (hidden.mean(1) @ model.head.weight.T + model.head.bias)[:, 0]
    nll = F.softplus(-(2 * batch.targets - 1) * logit).mean()
    kl = 0.0
    for value, i in [(M[i, j], i) for i in range(2) for j in range(4)] + [
        (L[k, i], i) for k in range(3) for i in range(2)
    ]:
        log_alpha = math.log(sigma[i] ** 2 / (value**2 + 1e-8))
        inside = 1.87320 + 1.48695 * log_alpha
        kl += 0.63576 - 0.63576 / (1 + math.exp(-inside)) + 0.5 * math.log(1 + math.exp(-log_alpha))
    assert terms.nll.item() == pytest.approx(nll.item(), rel=1e-5)
    assert terms.kl.item() == pytest.approx(kl / 20, rel=1e-5)
    assert terms.loss.item() == pytest.approx(nll.item() + kl / 20, rel=1e-5)


@pytest.mark.parametrize("kind", [Trace_ELBO, TraceMeanField_ELBO])
def test_pyros_own_elbos_are_refused_with_local_reparametrisation(kind: Any) -> None:
    model, guide = pair(local_reparametrisation=True)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), kind())
    with refuses(ConfigError, "RankWise(local_reparametrisation=True)", "bayes_adapters.ELBO", "guide.eval()"):
        svi.step(token_batch())


def test_pyros_mean_field_elbo_agrees_with_weight_draws() -> None:
    model, guide = pair(init_log_variance=-20.0)
    batch = token_batch()
    ours = ELBO(model, guide)(batch).item()
    theirs = TraceMeanField_ELBO().loss(model, guide, batch)
    assert 50 * ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("tie", [False, True])
def test_every_parameter_is_trained(tie: bool, local: bool) -> None:
    model, guide = pair(tie=tie, local_reparametrisation=local)
    ELBO(model, guide, kl_weight=0.0)(token_batch()).backward()  # the likelihood alone reaches all of them
    for name, p in [*guide.named_parameters(), *model.trainable_parameters().items()]:
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name
