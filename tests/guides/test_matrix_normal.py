"""Rows times columns, against torch's Gaussian with the Kronecker product of the two covariances."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from bayes_adapters import ELBO, Bernoulli
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import MatrixNormal
from bayes_adapters.models import DiagonalCore, StochasticDown
from tests.guides.parts import dense, lives, regression, trained
from tests.helpers import bert, core_model, token_batch
from tests.refusals import refuses


def spread(guide: MatrixNormal) -> MatrixNormal:
    torch.manual_seed(3)
    with torch.no_grad():
        for sides in (guide.rows, guide.columns):
            for lower in sides.values():
                lower.normal_(0.0, lower.shape[-1] ** -0.5)  # above the diagonal, too, which must not count
        for logs in (guide.log_rows, guide.log_columns):
            for log_scale in logs.values():
                log_scale.normal_(-1.0, 0.3)
    return guide


def covariance(log_scale: Tensor, lower: Tensor | None) -> Tensor:
    unit = torch.eye(len(log_scale)) + (0 if lower is None else lower.tril(-1))
    root = log_scale.exp().diag() @ unit
    return root @ root.T


def test_the_covariance_is_a_kronecker_product_and_density_and_kl_are_torchs() -> None:
    for longest in (16, 8, 0):  # both sides dense, rows alone, neither
        model = StochasticDown(bert(), Bernoulli(), rank=3, num_data=20, targets=["query"])  # A (3, 16), two layers
        guide, key = spread(MatrixNormal(model, dense_up_to=longest)), "A-global"
        assert (key in guide.rows, key in guide.columns) == (longest > 0, longest == 16)
        whole = torch.zeros(guide.size, guide.size)
        for layer in range(2):
            rows, columns = (
                covariance(logs[key][layer], sides[key][layer] if key in sides else None)
                for logs, sides in ((guide.log_rows, guide.rows), (guide.log_columns, guide.columns))
            )
            place = slice(48 * layer, 48 * (layer + 1))
            whole[place, place] = torch.kron(rows, columns)
        torch.testing.assert_close(dense(guide).covariance_matrix, whole, rtol=1e-4, atol=1e-6)
        q, full = guide.joint(), MultivariateNormal(guide.loc, whole, validate_args=False)
        w = q.sample((4,))
        torch.testing.assert_close(q.log_prob(w), full.log_prob(w), rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(q.entropy(), full.entropy(), rtol=1e-4, atol=1e-2)
        prior = MultivariateNormal(
            torch.zeros(guide.size), model.prior.of(model.sites[0]).variance.flatten()[0] * torch.eye(guide.size)
        )
        found = ELBO(model, guide).terms(token_batch()).kl
        torch.testing.assert_close(found, kl_divergence(full, prior) / 20, rtol=1e-4, atol=1e-3)


def test_the_optimum_is_the_best_kronecker_product_for_a_known_posterior() -> None:
    """Where the posterior is N(μ, Λ⁻¹), the best U ⊗ V solves ``U⁻¹ = Σ_jj' V_jj' Λ_(·j)(·j') / n``, and V alike."""
    model, batch, mean, precision = regression()
    rows, columns, cut = torch.eye(2), torch.eye(2), precision.reshape(2, 2, 2, 2)
    for _ in range(200):
        rows = torch.linalg.inv(torch.einsum("ijkl,jl->ik", cut, columns) / 2)
        columns = torch.linalg.inv(torch.einsum("ijkl,ik->jl", cut, rows) / 2)
    guide = MatrixNormal(model)
    trained(model, guide, batch)
    deviation = torch.linalg.inv(precision).diagonal().sqrt()
    assert ((guide.loc - mean) / deviation).abs().max() < 0.1
    best = torch.kron(rows, columns)
    scale = best.diagonal().sqrt() * best.diagonal().sqrt()[:, None]
    assert (best / scale).fill_diagonal_(0).abs().max() > 0.3, "a case without correlations would show nothing"
    torch.testing.assert_close(dense(guide).covariance_matrix / scale, best / scale, rtol=0, atol=0.1)


def test_it_fits_predicts_saves_and_loads(tmp_path: Path) -> None:
    lives(MatrixNormal, tmp_path / "adapter")


def test_a_vector_has_one_column() -> None:
    model = DiagonalCore(bert(), Bernoulli(), num_data=20, rank=3)
    guide = MatrixNormal(model)
    assert guide.rows["diagonal-global"].shape == (4, 3, 3)
    assert len(guide.columns) == 0
    ELBO(model, guide)(token_batch()).backward()


def test_what_is_refused() -> None:
    with refuses(ConfigError, "dense_up_to", -1):
        MatrixNormal(core_model("global"), dense_up_to=-1)
    with refuses(ConfigError, "init_scale", 0.0):
        MatrixNormal(core_model("global"), init_scale=0.0)
    with refuses(ConfigError, "MatrixNormal", "token"):
        MatrixNormal(core_model("token"))
