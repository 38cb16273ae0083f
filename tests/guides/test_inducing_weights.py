"""Inducing weights against the conditionals of a dense Gaussian over weights and inducing weights together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from bayes_adapters import ELBO, Bernoulli, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import InducingWeights, LowRank, MatrixNormal
from bayes_adapters.models import DiagonalCore, StochasticDown
from tests.guides.parts import dense, lives, regression, trained
from tests.helpers import bert, core_model, token_batch
from tests.instrument import unchecked
from tests.refusals import refuses

KEY = "A-global"


def moved(guide: InducingWeights) -> InducingWeights:
    torch.manual_seed(3)
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return guide


def of_the_joint(guide: InducingWeights, layer: int) -> tuple[MultivariateNormal, float]:
    """q(W) by Schur complements of the covariance of (W, U), U in its own units; and the KL of the pair."""
    scale = guide.get_buffer(f"scale_{KEY}")[layer]
    sides: list[tuple[Tensor, Tensor, Tensor]] = []
    for z, log_d in (each for each in guide._sides(KEY)):
        size, z = z.shape[-1], z[layer].double()
        psi = z @ z.T + (2 * log_d[layer].double()).exp().diag()
        whole = torch.cat([torch.cat([torch.eye(size).double(), z.T], 1), torch.cat([z, psi], 1)])
        sides.append((whole, psi, torch.linalg.cholesky(psi)))
    (rows, psi_r, root_r), (columns, psi_c, root_c) = sides
    m, n = len(rows) - len(psi_r), len(columns) - len(psi_c)
    whole = torch.kron(rows, columns)  # all of (W, U) and the two corners that are neither
    number = torch.arange(len(whole)).reshape(len(rows), len(columns))
    w, u = number[:m, :n].flatten(), number[m:, n:].flatten()
    scale = scale.double()
    cross = scale * whole[w][:, u]
    gain = cross @ torch.linalg.inv(whole[u][:, u])
    conditional = scale**2 * whole[w][:, w] - gain @ cross.T
    root = torch.kron(root_r, root_c)  # U = L_r u L_cᵀ
    tril = guide.log_scale[KEY][layer].exp()[:, None] * (guide.lower[KEY][layer].tril(-1) + torch.eye(len(u)))
    spread = root @ tril.double() @ tril.double().T @ root.T
    squared = guide._conditional(KEY)[layer].double() ** 2
    mean = gain @ root @ guide.loc[KEY][layer].double()
    q = MultivariateNormal(mean, squared * conditional + gain @ spread @ gain.T)
    posterior = MultivariateNormal(root @ guide.loc[KEY][layer].double(), spread)
    kl = kl_divergence(posterior, MultivariateNormal(torch.zeros(len(u)).double(), whole[u][:, u]))
    return q, (kl + m * n * (0.5 * squared - 0.5 * squared.log() - 0.5)).item()


@pytest.mark.parametrize("keep", [True, False])
def test_weights_follow_the_conditionals_of_the_dense_gaussian(keep: bool) -> None:
    """Mean, covariance and KL, of A (2 × 16) under U (2 × 3); the published KL of the pair is an upper bound."""
    model = StochasticDown(bert(1), Bernoulli(), rank=2, num_data=20, targets=["query", "value"])
    guide = moved(InducingWeights(model, inducing=(2, 3), keep_conditional=keep))
    found, size, kl, bound = dense(guide), 32, 0.0, 0.0
    prior = MultivariateNormal(torch.zeros(size).double(), 0.04 * torch.eye(size).double())
    for layer in range(2):
        expected, pair = of_the_joint(guide, layer)
        place = slice(size * layer, size * (layer + 1))
        torch.testing.assert_close(found.mean[place].double(), expected.mean, rtol=1e-4, atol=1e-5)
        covariance = found.covariance_matrix[place, place].double()
        torch.testing.assert_close(covariance, expected.covariance_matrix, rtol=1e-4, atol=1e-6)
        kl += kl_divergence(expected, prior).item()
        bound += pair
    assert not found.covariance_matrix[:size, size:].any()
    q = guide.joint()
    w = q.sample((3,))
    torch.testing.assert_close(q.log_prob(w), found.log_prob(w), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(q.variance, found.variance, rtol=1e-4, atol=1e-6)
    assert float(ELBO(model, guide).terms(token_batch()).kl.detach()) == pytest.approx(kl / 20, rel=1e-4)
    assert kl < bound


def test_of_the_matrixs_size_it_is_the_full_gaussian_posterior() -> None:
    """Oracle: the posterior N(mean, Λ⁻¹) of a linear model, with correlations of .6."""
    model, batch, mean, precision = regression()
    guide = InducingWeights(model, inducing=(2, 2), init_scale=0.5)
    with torch.no_grad():
        for logs in (guide.log_rows, guide.log_columns):
            logs["core-global"].fill_(-9.0)  # D → 0
    trained(model, guide, batch, steps=120, lr=0.15)
    found, exact = dense(guide), torch.linalg.inv(precision)
    deviation = exact.diagonal().sqrt()
    assert ((found.mean - mean) / deviation).abs().max() < 0.1
    scale = deviation * deviation[:, None]
    torch.testing.assert_close(found.covariance_matrix / scale, exact / scale, rtol=0, atol=0.1)


def test_it_starts_near_the_models_start_and_at_the_given_width() -> None:
    model = core_model("global", rank=4, targets=["query"])
    guide = InducingWeights(model, inducing=(4, 4), init_scale=0.05)
    torch.manual_seed(0)
    start = torch.cat([model.start(site).flatten() for site in model.sites])
    torch.manual_seed(0)
    assert torch.cosine_similarity(InducingWeights(model, inducing=(9, 9)).joint().mean, start, dim=0) > 0.99
    torch.testing.assert_close(guide.joint().stddev, torch.full((guide.size,), 0.05), rtol=0.02, atol=0.0)


def test_it_fits_predicts_saves_and_loads(tmp_path: Path) -> None:
    lives(InducingWeights, tmp_path, inducing=[2, 2])
    diagonal = DiagonalCore(bert(1), Bernoulli(), rank=3, num_data=20)
    guide = InducingWeights(diagonal, inducing=(2, 5))  # vectors are one column
    assert guide.columns["diagonal-global"].shape[1:] == (1, 1)
    assert ELBO(diagonal, guide)(token_batch(targets=torch.ones(5))).isfinite()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("family", [InducingWeights, LowRank, MatrixNormal])
def test_a_joint_posterior_of_a_model_in_another_precision(family: Any, dtype: torch.dtype) -> None:
    model = core_model("global", backbone=bert(1)).to(dtype)
    guide = family(model)
    assert predict(model, guide, token_batch(), num_samples=2).mean.isfinite().all()


def test_refusals() -> None:
    model = core_model("global")
    with refuses(ConfigError, "inducing", "[3]"):
        InducingWeights(model, inducing=[3])
    with unchecked(), refuses(ConfigError, "inducing", 3):
        InducingWeights(model, inducing=3)
    with unchecked(), refuses(ConfigError, "keep_conditional", "yes"):
        InducingWeights(model, keep_conditional="yes")
    with refuses(ConfigError, "inducing", 0):
        InducingWeights(model, inducing=(0, 2))
    heavy = core_model("global", prior=dist.Cauchy(0.0, 1.0))
    with refuses(ConfigError, "Cauchy", "Normal", "keep_conditional=True"):
        InducingWeights(heavy, keep_conditional=True)
    assert ELBO(heavy, InducingWeights(heavy))(token_batch(targets=torch.ones(5))).isfinite()
