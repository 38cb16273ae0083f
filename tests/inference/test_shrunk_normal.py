"""``ShrunkNormal`` is a Gaussian like torch's own."""

from __future__ import annotations

import pyro
import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from bayes_adapters.inference.handlers import KeyedDraws
from bayes_adapters.joint_distributions import ShrunkNormal


def gaussian() -> ShrunkNormal:
    """Five entries: two directions among the first three, one among the last two."""
    torch.manual_seed(0)
    first, _ = torch.linalg.qr(torch.randn(3, 2))
    last, _ = torch.linalg.qr(torch.randn(2, 1))
    blocks = [(slice(0, 3), first, torch.tensor([0.2, 0.7])), (slice(3, 5), last, torch.tensor([0.5]))]
    return ShrunkNormal(torch.randn(5), torch.rand(5) + 0.2, blocks)


def test_density_entropy_and_kl_are_torchs() -> None:
    q = gaussian()
    other = MultivariateNormal(q.mean, q.covariance_matrix)
    w = torch.randn(7, 5)
    torch.testing.assert_close(q.log_prob(w), other.log_prob(w), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(q.entropy(), other.entropy())
    torch.testing.assert_close(q.variance, other.variance)
    p = Independent(Normal(torch.randn(5), torch.rand(5) + 0.5), 1)
    full = MultivariateNormal(p.mean, p.variance.diag())
    torch.testing.assert_close(kl_divergence(q, p), kl_divergence(other, full), rtol=1e-4, atol=1e-5)
    assert kl_divergence(q.expand((2, 1)), p).shape == (2, 1)


def test_it_projects_by_its_covariance() -> None:
    q, rows = gaussian(), torch.randn(3, 5)
    found = q.projected(rows)
    torch.testing.assert_close(found @ found.T, rows @ q.covariance_matrix @ rows.T)


@pytest.mark.parametrize("keyed", [True, False])
def test_draws_have_its_covariance(keyed: bool) -> None:
    q, count = gaussian(), 20_000
    if keyed:
        with KeyedDraws(0, torch.arange(count), torch.arange(1)), pyro.plate("samples", count, dim=-2):
            w = pyro.sample("joint", q, infer={"hyper_site": "joint"})[:, 0]
    else:
        w = q.rsample((count,))
    torch.testing.assert_close(w.mean(0), q.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(w.T), q.covariance_matrix, rtol=0, atol=0.03)
