"""Scales of layers: the KL against quadratures and closed forms, and what is saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, HalfCauchy, LogNormal

from bayes_adapters import ELBO, Batch, Gaussian, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, MeanField
from bayes_adapters.models import StochasticCore
from bayes_adapters.priors import LayerScales
from bayes_adapters.training import fit
from tests.helpers import Linear, bert, core_model, token_batch
from tests.refusals import refuses

SCALE = 0.3


def by_quadrature(m: float, v: float, prior: Any) -> float:
    """KL(LogNormal(m, v²) ‖ prior) by the trapezoidal rule over log t."""
    x = torch.linspace(m - 12 * v, m + 12 * v, 4001, dtype=torch.float64)
    q = LogNormal(torch.tensor(m).double(), torch.tensor(v).double())
    ratio = q.log_prob(x.exp()) - prior.log_prob(x.exp())
    return torch.trapezoid((q.log_prob(x.exp()) + x).exp() * ratio, x).item()


def closed(m: float, v: float, k: float) -> float:
    entropy = 0.5 * math.log(2 * math.pi * math.e * v**2)
    return -entropy - k * m - k * math.log(k) + math.lgamma(k) + k * math.exp(m + v**2 / 2)


@pytest.mark.parametrize("k", [None, 2.5])
def test_kl_is_that_of_the_formula_on_average(k: float | None) -> None:
    torch.manual_seed(0)
    prior = LayerScales(SCALE, concentration=k)
    options: dict[str, Any] = {"granularity": "global", "rank": 2, "num_data": 7, "targets": ["query"]}
    model = StochasticCore(Linear(), Gaussian(), prior=prior, **options)
    guide, m, v = MeanField(model), -0.4, 0.3
    batch = Batch({"x": torch.randn(3, 2, 4)}, torch.randn(3))
    with torch.no_grad():
        guide.loc["core-global"].fill_(0.05)  # little noise of t in E's part
        guide.hyper.loc["scale-core-global"].fill_(m)
        guide.hyper.log_scale["scale-core-global"].fill_(math.log(v))
        found = torch.stack([ELBO(model, guide).terms(batch).kl for _ in range(60)])
        mean, deviation = guide.loc["core-global"], guide.rho["core-global"].exp()
    one = torch.ones((), dtype=torch.float64)
    scales = by_quadrature(m, v, HalfCauchy(one) if k is None else Gamma(k * one, k * one))
    if k is not None:
        assert scales == pytest.approx(closed(m, v, k), rel=1e-6)
    squares = (deviation.square() + mean.square()) / (2 * SCALE**2) * math.exp(2 * v**2 - 2 * m)
    entries: Tensor = (math.log(SCALE) - deviation.log() + m - 0.5 + squares).sum()
    error = found.std().item() / len(found) ** 0.5
    assert abs(found.mean().item() - (scales + entries.item()) / 7) < 4 * error
    assert error < 0.1 * found.mean().item()


def test_each_layer_has_its_own_scale_and_local_sites_one_each() -> None:
    model = core_model("global", prior=LayerScales(SCALE))
    guide = MeanField(model)
    (site,) = model.sites
    given = {hyper.name: hyper for hyper in model.prior.hyper_sites}
    assert given["scale.core.global"].start.shape == (len(site.layers),)
    assert torch.equal(model.prior.of(site).stddev, torch.full(site.shape, SCALE))
    with torch.no_grad():
        guide.hyper.loc["scale-core-global"].copy_(torch.arange(4.0))
        guide.hyper.log_scale["scale-core-global"].fill_(-20.0)
        guide(token_batch(targets=torch.ones(5)))
    deviation = guide.get_traces()[0].nodes["core.global"]["fn"].stddev[:, 0, 0]
    torch.testing.assert_close(deviation, SCALE * torch.arange(4.0).exp(), rtol=1e-4, atol=0.0)
    local = core_model(prior=LayerScales(SCALE))
    assert len(local.prior.hyper_sites) == len(local.sites)
    assert predict(local, Contextual(local), token_batch(), num_samples=2).total.isfinite().all()


def test_it_fits_saves_and_loads(tmp_path: Path) -> None:
    model, batch = core_model("global", prior=LayerScales(SCALE, concentration=3.0)), token_batch(targets=torch.ones(5))
    guide = MeanField(model)
    fit(model, guide, batch, epochs=2, progress=False)
    save(tmp_path / "adapter", model, guide)
    again, guide_again = load(tmp_path / "adapter", bert())
    expected = predict(model, guide, batch, num_samples=3).mean
    assert torch.equal(predict(again, guide_again, batch, num_samples=3).mean, expected)
    with refuses(ConfigError, "concentration", -1.0):
        LayerScales(concentration=-1.0)
