"""Gaussian posteriors known in closed form, and what is asked of every guide over all weights."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from bayes_adapters import ELBO, AdapterGuide, AdapterModel, Batch, Bernoulli, Gaussian, load, predict, save
from bayes_adapters.guides import MeanField
from bayes_adapters.inference import JointGuide
from bayes_adapters.models import StochasticFactors
from bayes_adapters.training import fit
from tests.helpers import Linear, bert, core_model, token_batch


def factors(**options: Any) -> StochasticFactors:
    """A and B of four layers, a site each: the parts of one layer are not next to each other in w."""
    settings = {"num_data": 20, "prior": dist.Normal(0.0, 0.3), "rank": 2} | options
    return StochasticFactors(bert(), Bernoulli(), **settings)


def dense(guide: JointGuide) -> MultivariateNormal:
    """The guide's Gaussian by its whole covariance, column by column."""
    q: Any = guide.joint()
    columns = q.from_noise(torch.eye(guide.size)) - q.loc
    return MultivariateNormal(q.loc, columns.T @ columns, validate_args=False)


def regression(seed: int = 22, size: int = 12) -> tuple[AdapterModel, Batch, Tensor, Tensor]:
    """Outputs linear in a 2 × 2 core under known noise; the mean and the precision Λ of the posterior.

    This seed has correlations of .6 and directions of like width, so that few steps suffice.
    """
    torch.manual_seed(seed)
    batch = Batch({"x": torch.randn(size, 1, 4)}, targets=torch.randn(size))
    options: dict[str, Any] = {"targets": ["query"], "rank": 2, "prior": dist.Normal(0.0, 1.0), "num_data": size}
    model = core_model("global", backbone=Linear(), likelihood=Gaussian(-0.5), **options)
    model.requires_grad_(False)

    def outputs(core: Tensor) -> Tensor:
        return pyro.poutine.condition(model, {"core.global": core.reshape(1, 2, 2)})(batch)[:, 0]

    with torch.no_grad():
        zero = outputs(torch.zeros(4))
        design = torch.stack([outputs(row) - zero for row in torch.eye(4)], 1)
        precision = torch.eye(4) + design.T @ design / math.exp(-1.0)
        mean = torch.linalg.solve(precision, design.T @ (batch.targets - zero) / math.exp(-1.0))
    return model, batch, mean, precision


def product() -> tuple[AdapterModel, Batch, float]:
    """Outputs a b under y = 1: two modes along a hyperbola; and −log p(y) per datum, by quadrature."""
    options: dict[str, Any] = {"num_data": 8, "prior": dist.Normal(0.0, 1.0), "targets": ["query"], "rank": 1}
    model = StochasticFactors(Linear(), Gaussian(-1.5), alpha=1.0, **options).requires_grad_(False)
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[1.0, 0.0, 0.0]]))  # one entry of B counts,
        model.head.bias.zero_()
    x = torch.zeros(8, 1, 4)
    x[..., 0] = 1.0  # and one of A
    batch = Batch({"x": x}, targets=1.0 + model.backbone.query.base_layer(x)[:, 0, 0].detach())
    axis = torch.linspace(-6.0, 6.0, 1201)
    a, b = torch.meshgrid(axis, axis, indexing="ij")
    normal = torch.distributions.Normal(0.0, 1.0)
    joint = 8 * torch.distributions.Normal(a * b, math.exp(-1.5)).log_prob(torch.tensor(1.0))
    evidence = torch.logsumexp((joint + normal.log_prob(a) + normal.log_prob(b)).flatten(), 0) + 2 * math.log(0.01)
    return model, batch, -float(evidence) / 8


def of_a_and_b(guide: JointGuide, value: float) -> Tensor:
    """A start for the weights of :func:`product`: ``value`` at the two that count."""
    start = torch.zeros(guide.size)
    for place in guide.layout.values():
        start[place.start] = value
    return start


def trained(model: AdapterModel, guide: AdapterGuide, batch: Batch, steps: int = 200, lr: float = 0.1) -> float:
    """Train the guide with a rate that decays to 0; return the loss of many draws, nats per datum."""
    elbo = ELBO(model, guide, num_particles=64)
    optimiser = torch.optim.Adam(guide.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    torch.manual_seed(1)
    for _ in range(steps):
        optimiser.zero_grad()
        elbo(batch).backward()
        optimiser.step()
        schedule.step()
    torch.manual_seed(2)
    with torch.no_grad():
        return float(ELBO(model, guide, num_particles=1000)(batch))


@cache
def product_by_mean_field() -> float:
    """The loss of a mean field on :func:`product`."""
    model, batch, _ = product()
    torch.manual_seed(0)
    return trained(model, MeanField(model, init_scale=0.3), batch)


def lives(guide_type: type[JointGuide], folder: Path, **options: Any) -> tuple[AdapterModel, JointGuide]:
    """Fit, predict, save and load a guide of this family; return a trained pair.

    Every parameter moves; the loaded pair predicts the same bits; draws do not depend on how the batch is cut.
    """
    model, batch = core_model("global", num_data=5), token_batch()
    guide = guide_type(model, **options)
    before = {n: p.detach().clone() for n, p in guide.named_parameters()}
    backbone = {n: p.detach().clone() for n, p in model.backbone.named_parameters() if not p.requires_grad}
    fit(model, guide, [batch], epochs=3, progress=False)
    assert [n for n, p in guide.named_parameters() if p.numel() and torch.equal(p, before[n])] == []
    assert all(torch.equal(p, backbone[n]) for n, p in model.backbone.named_parameters() if n in backbone)
    found = predict(model, guide, batch, num_samples=5, return_samples=True)
    assert found.samples.std(0).max() > 0
    cut = predict(model, guide, [batch[:2], batch[2:]], num_samples=5, chunk_size=2, return_samples=True)
    torch.testing.assert_close(cut.samples, found.samples, rtol=1e-5, atol=1e-6)
    save(folder, model, guide)
    again, guide_again = load(folder, bert())
    assert guide_again.config() == guide.config()
    assert torch.equal(predict(again, guide_again, batch).mean, predict(model, guide, batch).mean)
    return model, guide
