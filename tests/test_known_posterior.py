"""Training against posteriors that are known in closed form."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from torch import Tensor

from bayes_adapters import ELBO, Batch, Bernoulli, Gaussian, predict
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.models import LoRA, StochasticCore
from tests.helpers import (
    Linear,
    bert,
    core_model,
    token_batch,
)


@pytest.mark.parametrize("rank", [1, 2])
def test_mean_field_recovers_a_known_gaussian_posterior(rank: int) -> None:
    """One adapted layer whose output is linear in E, Gaussian noise fixed at 0.5: the posterior of E is Gaussian.

    Oracle: f(E) is affine, so J = ∂f/∂E gives precision Λ = JᵀJ/σ² + I and mean Λ⁻¹Jᵀ(y − f(0))/σ². The
    best factorised Gaussian has the same mean and variances 1/Λ_ii (Bishop 2006, 10.1.2). Rank 1: exact posterior.
    Tolerance: 3 % of the scales, 0.02 of the means (Adam, 64 particles, learning rate decaying to 0).
    """

    torch.manual_seed(1)
    model = StochasticCore(
        Linear(),
        Gaussian(math.log(0.5)),
        targets=["query"],
        granularity="global",
        rank=rank,
        alpha=rank,
        num_data=12,
        prior=pyro.distributions.Normal(0.0, 1.0),
    )
    with torch.no_grad():
        model.backbone.query.lora_B.normal_(std=2.0)
        model.head.weight.fill_(1.0)
    model.requires_grad_(False)
    batch = Batch({"x": torch.randn(12, 2, 4)}, torch.randn(12))
    guide = MeanField(model, init_scale=0.3)

    def f(core: Tensor) -> Tensor:
        with torch.no_grad():
            layer, head = model.backbone.query, model.head
            hidden = (
                layer.base_layer(batch.inputs["x"])
                + batch.inputs["x"] @ layer.lora_A.T @ core.reshape(rank, rank).T @ layer.lora_B.T
            )
            return head(hidden.mean(1))[:, 0]

    zero = f(torch.zeros(rank * rank))
    jacobian = torch.stack([f(e) - zero for e in torch.eye(rank * rank)], 1)
    precision = jacobian.T @ jacobian / 0.25 + torch.eye(rank * rank)
    mean = torch.linalg.solve(precision, jacobian.T @ (batch.targets - zero) / 0.25)
    assert (mean.abs() > 0.05).any(), "the oracle is too close to the prior to tell them apart"
    assert (precision.diagonal() > 1.3).all()

    elbo = ELBO(model, guide, num_particles=64)
    optimiser = torch.optim.Adam(guide.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 600 * rank)
    for _ in range(600 * rank):
        optimiser.zero_grad()
        elbo(batch).backward()
        optimiser.step()
        schedule.step()
    key = "core-global"
    torch.testing.assert_close(guide.loc[key].flatten().detach(), mean, rtol=0.0, atol=0.02)
    torch.testing.assert_close(
        guide.rho[key].exp().flatten().detach(), precision.diagonal() ** -0.5, rtol=0.03, atol=0.0
    )


def test_delta_finds_the_maximum_a_posteriori_and_predicts_without_epistemic_uncertainty() -> None:
    model = core_model("global")
    guide, batch = Delta(model), token_batch()
    model.requires_grad_(False)
    optimiser = torch.optim.Adam(guide.parameters(), lr=0.05)
    losses = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = ELBO(model, guide)(batch)
        loss.backward()
        losses.append(loss.item())
        optimiser.step()
    assert losses[-1] < losses[0] - 0.01
    assert all(p.grad.abs().max() < 0.02 for p in guide.parameters())
    assert predict(model, guide, batch, num_samples=4).epistemic.max() < 1e-6


def test_delta_of_plain_lora_is_empty() -> None:
    assert not list(Delta(LoRA(bert(), Bernoulli())).parameters())
