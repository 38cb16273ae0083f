"""Likelihoods against torch.distributions, and the split of uncertainty where it is hard on floating point."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from bayes_adapters import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Prediction
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.likelihoods import BoundingBox, MultiGaussian, MultiLabel, Ordinal, StudentT
from tests.information import averaged, of_draws
from tests.refusals import refuses

S, B = 6, 4


def outputs(k: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(S, B, k, generator=torch.Generator().manual_seed(3))


def test_categorical() -> None:
    f, y = outputs(3), torch.tensor([0, 2, 1, 1])
    fn = Categorical(3).distribution(f)
    torch.testing.assert_close(fn.log_prob(y), td.Categorical(logits=f).log_prob(y))
    found = averaged(Categorical(3), f)
    p = f.softmax(-1)
    torch.testing.assert_close(found.probs, p.mean(0))
    torch.testing.assert_close(found.total, td.Categorical(p.mean(0)).entropy())
    torch.testing.assert_close(found.aleatoric, td.Categorical(p).entropy().mean(0))
    expected = td.kl_divergence(td.Categorical(p), td.Categorical(p.mean(0).expand_as(p))).mean(0)
    torch.testing.assert_close(found.epistemic, expected, rtol=1e-4, atol=1e-6)


def test_bernoulli() -> None:
    f, y = outputs(1), torch.tensor([0.0, 1.0, 1.0, 0.25])
    fn = Bernoulli().distribution(f)
    torch.testing.assert_close(fn.log_prob(y), td.Bernoulli(logits=f[..., 0], validate_args=False).log_prob(y))
    found = averaged(Bernoulli(), f)
    p = torch.sigmoid(f[..., 0])
    torch.testing.assert_close(found.mean, p.mean(0))
    torch.testing.assert_close(found.total, td.Bernoulli(p.mean(0)).entropy())
    torch.testing.assert_close(found.aleatoric, td.Bernoulli(p).entropy().mean(0))


def test_bernoulli_equals_two_classes() -> None:
    f = outputs(1)
    one, two = averaged(Bernoulli(), f), averaged(Categorical(2), torch.cat([torch.zeros_like(f), f], -1))
    torch.testing.assert_close(one.mean, two.mean[:, 1])
    for name in ("total", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("heteroscedastic", [False, True])
def test_gaussian(heteroscedastic: bool) -> None:
    likelihood: Any = HeteroscedasticGaussian(1e-3) if heteroscedastic else Gaussian(math.log(0.7))
    f, y = outputs(likelihood.num_outputs), torch.randn(B)
    sigma = torch.log1p(torch.exp(f[..., 1]) * (math.e - 1)) + 1e-3 if heteroscedastic else torch.full((S, B), 0.7)
    each = td.Normal(f[..., 0], sigma)
    torch.testing.assert_close(likelihood.distribution(f).log_prob(y), each.log_prob(y), rtol=1e-5, atol=1e-6)
    found = averaged(likelihood, f)
    mixture = td.MixtureSameFamily(td.Categorical(torch.ones(B, S)), td.Normal(f[..., 0].T, sigma.T))
    torch.testing.assert_close(found.mean, mixture.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.variance, mixture.variance, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        found.variance, each.variance.mean(0) + f[..., 0].var(0, correction=0), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(found.aleatoric, each.entropy().mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.total, td.Normal(0.0, mixture.variance.sqrt()).entropy(), rtol=1e-4, atol=1e-5)


def test_scales_at_zero() -> None:
    assert HeteroscedasticGaussian(0.0).distribution(torch.zeros(1, 2)).scale.item() == pytest.approx(1.0)
    assert Gaussian().distribution(torch.zeros(1, 1)).scale.item() == 1.0
    assert [n for n, _ in Gaussian().named_parameters()] == ["log_scale"]


def test_gaussian_variance_far_from_zero() -> None:
    """A mean of 10⁴ and a spread of 0.01: the difference of squares must not lose it."""
    f = 1e4 + 0.01 * torch.linspace(-1, 1, S)[:, None, None].expand(S, B, 1)
    found = averaged(Gaussian(math.log(1e-3)), f)
    torch.testing.assert_close(
        found.variance, f[..., 0].double().var(0, correction=0).float() + 1e-6, rtol=1e-3, atol=0
    )
    assert (found.epistemic > 0.1).all()


def test_equal_draws_in_chunks_have_no_spread_far_from_zero() -> None:
    """Added up in chunks of 7, 100 equal squares near 10⁵ are not 100 times one; their rounding would rank examples."""
    likelihood, f = Gaussian(-2.0), torch.linspace(-300.0, 300.0, 500)[None, :, None].expand(100, 500, 1)
    parts = [likelihood.summarise(likelihood.distribution(chunk)) for chunk in f.split(7)]
    found = likelihood.predict({name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}, 100)
    assert not found.epistemic.any()
    assert torch.equal(found.total, found.aleatoric)


LIKELIHOODS: list[Any] = [Categorical(3), Categorical(2), Bernoulli(), Gaussian(), HeteroscedasticGaussian()]
LIKELIHOODS += [Ordinal(3), StudentT(), MultiLabel(2), MultiGaussian(2)]
LIKELIHOODS += [BoundingBox(), BoundingBox("example", giou_weight=1.0)]


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda x: f"{type(x).__name__}{x.num_outputs}")
@pytest.mark.parametrize("scale", [0.0, 1e-8, 1.0, 100.0, 1e4])
def test_the_split_is_right_at_extremes(likelihood: Any, scale: float) -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(S * B * likelihood.num_outputs)[: S * B * likelihood.num_outputs]
    for f in (outputs(likelihood.num_outputs, scale), scale * signs.reshape(S, B, -1)):
        found = averaged(likelihood, f)
        assert torch.isfinite(found.mean).all()
        for name, expected in of_draws(likelihood.distribution(f))._asdict().items():
            torch.testing.assert_close(getattr(found, name).double(), expected, rtol=1e-4, atol=2e-6, msg=name)
        if isinstance(likelihood, (Categorical, Bernoulli)):
            assert (found.aleatoric >= -1e-6).all()
            assert (found.total <= math.log(max(2, likelihood.num_outputs)) + 1e-6).all()
            assert (found.probs >= 0).all()
            assert (found.probs <= 1 + 1e-6).all()


def test_confident_disagreement_is_all_epistemic() -> None:
    for likelihood, f in (
        (Bernoulli(), torch.tensor([100.0, -100.0])[:, None, None]),
        (Categorical(2), torch.tensor([[100.0, -100.0], [-100.0, 100.0]])[:, None]),
    ):
        found = averaged(likelihood, f)
        assert found.total.item() == pytest.approx(math.log(2), abs=1e-6)
        assert found.epistemic.item() == pytest.approx(math.log(2), abs=1e-6)


def test_confident_bernoulli_keeps_a_finite_log_density_and_gradient() -> None:
    f = torch.tensor([[100.0], [-100.0]], requires_grad=True)
    loss = -Bernoulli().distribution(f).log_prob(torch.tensor([0.0, 1.0])).sum()
    assert loss.item() == pytest.approx(200.0, rel=1e-4)
    assert torch.autograd.grad(loss, f)[0].abs().flatten().tolist() == pytest.approx([1.0, 1.0])


def test_half_precision_outputs_are_scored_in_float32() -> None:
    for likelihood in LIKELIHOODS:
        fn = likelihood.distribution(torch.zeros(2, likelihood.num_outputs, dtype=torch.bfloat16))
        assert fn.mean.dtype == torch.float32 or isinstance(likelihood, Categorical)
        if isinstance(likelihood, Categorical):
            assert fn.logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("likelihood", "targets", "facts"),
    [
        (Categorical(3), torch.tensor([0, 3]), ("0 … 2", [3], "rows [1]")),
        (Categorical(3), torch.tensor([-1, 0]), ("0 … 2", [-1], "rows [0]")),
        (Categorical(3), torch.tensor([0.0, 1.0]), ("int64", "torch.float32")),
        (Categorical(3), torch.tensor([[0], [1]]), ("(B,)", "(2, 1)")),
        (Bernoulli(), torch.tensor([0, 1]), ("torch.int64", "targets.float()")),
        (Bernoulli(), torch.tensor([-1.0, 1.0]), ([0, 1], [-1.0])),
        (Bernoulli(), torch.tensor([float("nan"), 1.0]), ("rows [0]", "NaN")),
        (Gaussian(), torch.tensor([float("inf"), 1.0]), ("rows [0]", "infinite")),
        (HeteroscedasticGaussian(), torch.tensor([[1.0]]), ("(B,)", "(1, 1)")),
    ],
    ids=str,
)
def test_targets_outside_the_support(likelihood: Any, targets: Tensor, facts: tuple[object, ...]) -> None:
    with refuses(DataError, *facts):
        likelihood.check(targets)


def test_one_class_is_refused() -> None:
    with refuses(ConfigError, "num_classes", 2, 1):
        Categorical(1)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda x: f"{type(x).__name__}{x.num_outputs}")
def test_config_rebuilds(likelihood: Any) -> None:
    assert type(likelihood)(**likelihood.config()).config() == likelihood.config()


def test_concatenate_refuses_parts_that_do_not_fit() -> None:
    def part(samples: int, density: Tensor | None) -> Prediction:
        return Prediction(*(torch.ones(2) for _ in range(4)), samples, log_density=density)

    for parts in ([part(3, torch.ones(2)), part(3, None)], [part(3, None), part(3, torch.ones(2))]):
        with refuses(DataError, "1 of 2", "log_density"):
            Prediction.concatenate(parts)
    with refuses(DataError, [3, 4]):
        Prediction.concatenate([part(3, None), part(4, None)])


def test_concatenate_keeps_order_and_absent_fields() -> None:
    a, b = (averaged(Bernoulli(), outputs(1, s)) for s in (1.0, 2.0))
    joined = Prediction.concatenate([a, b])
    assert torch.equal(joined.mean, torch.cat([a.mean, b.mean]))
    assert joined.variance is None
    assert joined.samples is None
    assert joined.num_samples == S
