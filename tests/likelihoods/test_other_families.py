"""Student-t, ordinal and count likelihoods: densities by hand, and the split of uncertainty against sums."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch import distributions as td

from bayes_adapters import Bernoulli, Gaussian, load, predict, save
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import MeanField
from bayes_adapters.likelihoods import Likelihood, NegativeBinomial, Ordinal, Poisson, StudentT
from bayes_adapters.training import fit
from tests.helpers import bert, core_model, token_batch
from tests.information import averaged
from tests.refusals import refuses

S, B = 6, 5
NAN = float("nan")


def outputs(scale: float = 1.0) -> Tensor:
    return scale * torch.randn(S, B, 1, generator=torch.Generator().manual_seed(3))


# Student-t


@pytest.mark.parametrize("learned", [False, True])
def test_student_t_by_hand(learned: bool) -> None:
    f, y = outputs(), torch.tensor([0.0, 10.0, -2.0, 3.0, 1.0])
    likelihood = StudentT(3.5, learned, math.log(0.7), target_mean=2.0, target_scale=4.0)
    nu, sigma = 3.5, 0.7
    z = (y - 2 - 4 * f[..., 0]) / (4 * sigma)
    expected = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(math.pi * nu) - math.log(4 * sigma)
    expected = expected - 0.5 * (nu + 1) * torch.log1p(z.square() / nu)
    torch.testing.assert_close(likelihood.distribution(f).log_prob(y).detach(), expected, rtol=1e-5, atol=1e-5)
    assert [name for name, _ in likelihood.named_parameters()] == ["log_scale", "log_excess"][: 1 + learned]


def test_student_t_has_the_mixtures_mean_and_variance() -> None:
    f = outputs()
    found = averaged(StudentT(5.0, init_log_scale=math.log(0.7)), f)
    mixture = td.MixtureSameFamily(
        td.Categorical(torch.ones(B, S)), td.StudentT(5.0, f[..., 0].T, torch.full((B, S), 0.7))
    )
    torch.testing.assert_close(found.mean, mixture.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.variance, mixture.variance, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.aleatoric, td.StudentT(5.0, 0.0, torch.full((B,), 0.7)).entropy())
    scale = (mixture.variance * 3 / 5).sqrt()
    torch.testing.assert_close(found.total, td.StudentT(5.0, 0.0, scale).entropy(), rtol=1e-5, atol=1e-5)
    assert not averaged(StudentT(), f[:1]).epistemic.any()


def test_student_t_of_many_degrees_is_the_gaussian() -> None:
    f = outputs()
    found, expected = averaged(StudentT(1e6), f), averaged(Gaussian(), f)
    for name in ("mean", "total", "aleatoric", "epistemic", "variance"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4)


def test_an_outlier_pulls_a_student_t_less() -> None:
    f = torch.zeros(1, 1, requires_grad=True)
    pulls = [
        torch.autograd.grad(likelihood.distribution(f).log_prob(torch.tensor([50.0])).sum(), f)[0].item()
        for likelihood in (Gaussian(), StudentT(4.0))
    ]
    assert pulls[0] == pytest.approx(50.0)
    assert pulls[1] == pytest.approx(5 * 50 / (4 + 2500), rel=1e-4)


# ordinal


def test_ordinal_is_pyros_cumulative_logit() -> None:
    f = outputs(2.0)
    likelihood = Ordinal(5)
    with torch.no_grad():
        likelihood.first.fill_(-1.3)
        likelihood.log_gaps.copy_(torch.tensor([-0.5, 0.2, -1.0]))
        cuts = likelihood.cut_points
        assert (cuts.diff() > 0).all()
        expected = dist.OrderedLogistic(f[..., 0], cuts)
        torch.testing.assert_close(likelihood.distribution(f).probs, expected.probs, rtol=1e-5, atol=1e-6)
    found = averaged(likelihood, f)
    torch.testing.assert_close(found.mean, expected.probs.mean(0))
    torch.testing.assert_close(found.total, td.Categorical(expected.probs.mean(0)).entropy())


def test_ordinal_of_two_classes_is_the_bernoulli() -> None:
    f = outputs()
    two, one = averaged(Ordinal(2), f), averaged(Bernoulli(), f)
    torch.testing.assert_close(two.mean[:, 1], one.mean)
    torch.testing.assert_close(two.epistemic, one.epistemic, rtol=1e-4, atol=1e-6)


def test_ordinal_starts_at_equal_probabilities_and_keeps_a_gradient_far_away() -> None:
    torch.testing.assert_close(Ordinal(4).distribution(torch.zeros(1, 1)).probs.detach(), torch.full((1, 4), 0.25))
    likelihood = Ordinal(4)
    f = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    score = likelihood.distribution(f).log_prob(torch.tensor([1, 2]))
    assert score.isfinite().all(), "Pyro's form of the density is log 0 here"
    gradient = torch.autograd.grad(score.sum(), [f, likelihood.first, likelihood.log_gaps])
    torch.testing.assert_close(gradient[0], torch.tensor([[-1.0], [1.0]]))
    assert all(g.isfinite().all() for g in gradient)


# counts


def test_poisson_by_hand() -> None:
    f, y = outputs(), torch.tensor([0, 1, 2, 5, 11])
    factorials = torch.tensor([math.log(math.factorial(int(k))) for k in y])
    expected = y * f[..., 0] - f[..., 0].exp() - factorials
    torch.testing.assert_close(Poisson().distribution(f).log_prob(y), expected, rtol=1e-5, atol=1e-5)


def test_negative_binomial_by_hand() -> None:
    f, y, r = outputs(), torch.tensor([0, 1, 2, 5, 11]), 2.5
    mu = f[..., 0].exp()
    combinations = torch.tensor([math.lgamma(int(k) + r) - math.lgamma(r) - math.lgamma(int(k) + 1) for k in y])
    expected = combinations + r * torch.log(r / (r + mu)) + y * torch.log(mu / (r + mu))
    fn: Any = NegativeBinomial(math.log(r)).distribution(f)
    torch.testing.assert_close(fn.log_prob(y).detach(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fn.mean.detach(), mu)
    torch.testing.assert_close(fn.variance.detach(), mu + mu.square() / r)


def test_a_negative_binomial_of_large_r_is_the_poisson() -> None:
    f, y = outputs(), torch.tensor([0.0, 1.0, 2.0, 5.0, 11.0])
    found = NegativeBinomial(math.log(1e5)).distribution(f).log_prob(y)
    torch.testing.assert_close(found.detach(), Poisson().distribution(f).log_prob(y), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("likelihood", [Poisson(), NegativeBinomial(0.5)], ids=lambda x: x.name)
def test_counts_are_split_by_summing_over_all_counts(likelihood: Any) -> None:
    f = outputs() + 1.0
    grid = torch.arange(3000.0, dtype=torch.float64)
    probs = likelihood.wide(likelihood.distribution(f)).log_prob(grid[:, None, None]).exp().detach()
    mixed = probs.mean(1)
    found = averaged(likelihood, f)
    torch.testing.assert_close(found.total, torch.special.entr(mixed).sum(0).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.aleatoric, torch.special.entr(probs).sum(0).mean(0).float(), rtol=1e-5, atol=1e-5)
    mean = (grid[:, None] * mixed).sum(0)
    torch.testing.assert_close(found.mean, mean.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.variance, ((grid[:, None] - mean).square() * mixed).sum(0).float(), rtol=1e-3, atol=1e-5
    )
    assert not averaged(likelihood, f[:1]).epistemic.any()


@pytest.mark.parametrize("rate", [100.0, 400.0, 480.0, 520.0, 5e3])
def test_counts_beyond_the_grid_have_a_bound_that_is_close(rate: float) -> None:
    f = torch.full((2, 1, 1), math.log(rate))
    f[1] += 0.1
    rates = f[..., 0].double().exp()
    grid = torch.arange(8000.0, dtype=torch.float64)
    probs = td.Poisson(rates).log_prob(grid[:, None, None]).exp()
    found = averaged(Poisson(), f)
    exact = torch.special.entr(probs).sum(0).mean(0).item()
    assert -1e-5 < found.aleatoric.item() - exact < 4e-4
    assert found.total.item() > torch.special.entr(probs.mean(1)).sum(0).item() - 1e-5
    assert not averaged(Poisson(), f[:1]).epistemic.any()


# all of them in a model

TARGETS: dict[type, Tensor] = {
    StudentT: torch.tensor([0.5, 30.0, 2.0, 0.0, 1.5]),
    Ordinal: torch.tensor([0, 3, 1, 1, 2]),
    Poisson: torch.tensor([0, 7, 1, 2, 3]),
    NegativeBinomial: torch.tensor([0.0, 25.0, 1.0, 2.0, 3.0]),
}
ALL: list[Any] = [StudentT(3.0, True), Ordinal(4), Poisson(), NegativeBinomial()]


@pytest.mark.parametrize("likelihood", ALL, ids=lambda x: x.name)
def test_it_fits_predicts_saves_and_loads(likelihood: Any, tmp_path: Path) -> None:
    model = core_model("token", likelihood=likelihood)
    guide = MeanField(model, init_scale=0.5)
    batch = token_batch(targets=TARGETS[type(likelihood)])
    before = {name: p.detach().clone() for name, p in likelihood.named_parameters()}
    options: Any = {"optimizer": lambda p: torch.optim.Adam(p, 0.03), "kl_weight": 0.01, "progress": False}
    result = fit(model, guide, batch, epochs=30, validation=batch, **options)
    assert result.best_value is not None
    assert result.best_value < result.history[0]["val_nll"] - 0.1
    assert all(not torch.equal(before[name], p) for name, p in likelihood.named_parameters())
    found = predict(model, guide, batch, num_samples=S, return_samples=True)
    save(tmp_path, model, guide)
    again = predict(*load(tmp_path, bert()), batch, num_samples=S, return_samples=True)
    for name in ("mean", "epistemic", "log_density", "samples"):
        assert torch.equal(getattr(found, name), getattr(again, name)), name
    chunks = predict(model, guide, batch, num_samples=S, chunk_size=4)
    torch.testing.assert_close(chunks.epistemic, found.epistemic, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("likelihood", "targets", "facts"),
    [
        (Ordinal(3), torch.tensor([0, 3]), ("0 … 2", [3], "rows [1]")),
        (Poisson(), torch.tensor([0, -1]), (0, [-1], "rows [1]")),
        (Poisson(), torch.tensor([0.5, 1.0]), (0, [0.5], "rows [0]")),
        (NegativeBinomial(), torch.tensor([1.0, NAN]), (0, "[nan]", "rows [1]")),
        (NegativeBinomial(), torch.tensor([[1.0]]), ("(B,)", "torch.float32", "(1, 1)", "targets.squeeze(1)")),
        (StudentT(), torch.tensor([1, 2]), ("(B,)", "torch.int64", "(2,)", "targets.float()")),
    ],
    ids=str,
)
def test_targets_outside_the_support(likelihood: Likelihood, targets: Tensor, facts: tuple[object, ...]) -> None:
    with refuses(DataError, *facts):
        likelihood.check(targets)


@pytest.mark.parametrize(
    ("build", "facts"),
    [
        (lambda: StudentT(2.0), ("df", 2, 2.0)),
        (lambda: StudentT(init_log_scale=math.inf), ("init_log_scale", "inf")),
        (lambda: Ordinal(1), ("num_classes", 2, 1)),
        (lambda: NegativeBinomial(math.nan), ("init_log_r", "nan")),
    ],
)
def test_options_out_of_range(build: Any, facts: tuple[object, ...]) -> None:
    with refuses(ConfigError, *facts):
        build()


def test_classes_of_a_trained_ordinal_model_are_ordered() -> None:
    """A larger output means a higher class: the expected class grows with f."""
    probs = Ordinal(5).distribution(torch.linspace(-4, 4, 9)[:, None]).probs.detach()
    assert ((probs * torch.arange(5)).sum(1).diff() > 0).all()
