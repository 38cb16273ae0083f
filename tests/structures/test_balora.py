"""BaLoRA against its KL by quadrature, its moments in closed form, and plain LoRA."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from bayes_adapters import ELBO, Batch, Bernoulli, Frames, Gaussian, load, predict, save
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Delta, InputNoise
from bayes_adapters.models import BaLoRA, LoRA
from bayes_adapters.training import fit
from tests.helpers import Linear, bert, fill_B, token_batch
from tests.refusals import refuses

OPTIONS: dict[str, Any] = {"rank": 2, "targets": ["query", "value"]}


def by_quadrature(a: float, p: float, theta: float) -> float:
    """KL(N(θ, a θ²) ‖ N(0, p/(1−p) θ²)), in terms of weights, by the trapezoidal rule."""
    deviation = a**0.5 * theta
    w = torch.linspace(theta - 12 * deviation, theta + 12 * deviation, 4001, dtype=torch.float64)
    q = Normal(torch.tensor(theta).double(), deviation)
    prior = Normal(torch.zeros((), dtype=torch.float64), (p / (1 - p)) ** 0.5 * theta)
    return float(torch.trapezoid(q.log_prob(w).exp() * (q.log_prob(w) - prior.log_prob(w)), w))


@pytest.mark.parametrize(("a", "known"), [(0.1, 4.502680), (1 / 9, 4.5), (1.0, 7.401387), (0.3, 4.853373)])
def test_kl_is_that_of_weights_once_per_example(a: float, known: float) -> None:
    """Whatever A: the numbers of p = 0.1 and a quadrature over ω, with r · d_in entries in each of two layers."""
    assert by_quadrature(a, 0.1, 0.7) == pytest.approx(known, abs=1e-4)
    model = BaLoRA(bert(1), Bernoulli(), **OPTIONS)
    batch = token_batch(targets=torch.ones(5))
    kl = ELBO(model, InputNoise(model, width=4, init_variance=a)).terms(batch).kl
    assert kl.item() == pytest.approx(known * 2 * (2 * 16), rel=1e-4)


def linear() -> tuple[BaLoRA, Batch, Tensor]:
    """A layer whose output is linear in the noise, inputs of three tokens, and Σ_j (c_r A_rj x̄_j)² per example."""
    torch.manual_seed(4)
    model = fill_B(BaLoRA(Linear(), Gaussian(-1.0), targets=["query"], rank=2))
    torch.nn.init.normal_(model.head.weight)
    batch = Batch({"x": torch.randn(3, 3, 4)})
    layer = model.backbone.query
    with torch.no_grad():
        down = layer.scaling * (model.head.weight @ layer.lora_B).T * layer.lora_A
        return model, batch, (down * batch.inputs["x"].mean(1)[:, None]).square().sum((-1, -2))


def test_moments_of_the_output_are_those_of_one_noise_for_all_tokens() -> None:
    """Mean: plain LoRA. Variance: a Σ_j (c A_j x̄_j)²; a noise per token would have (1/T²) Σ_t x_t² in its place."""
    model, batch, unit = linear()
    guide = InputNoise(model, width=4, init_variance=0.2)
    found = predict(model, guide, batch, num_samples=4000)
    torch.testing.assert_close(found.epistemic_variance, 0.2 * unit, rtol=0.1, atol=0.0)
    plain = predict(model, guide, batch, mean_only=True).mean
    assert ((found.mean - plain).abs() < 4 * (0.2 * unit / 4000).sqrt()).all()


def test_without_noise_it_is_lora_to_the_last_bit() -> None:
    model, plain = fill_B(BaLoRA(bert(), Bernoulli(), **OPTIONS)), fill_B(LoRA(bert(), Bernoulli(), **OPTIONS))
    with torch.no_grad():
        for own, other in zip(model.installed.values(), plain.installed.values(), strict=True):
            other.lora_A.copy_(own.lora_A)
    plain.head.load_state_dict(model.head.state_dict())
    batch = token_batch()
    expected = predict(plain, Delta(plain), batch).mean
    assert torch.equal(predict(model, Delta(model), batch).mean, expected)
    assert torch.equal(predict(model, InputNoise(model), batch, mean_only=True).mean, expected)
    noisy = predict(model, InputNoise(model), batch, num_samples=2).mean
    assert not torch.equal(noisy, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_in_another_precision(dtype: torch.dtype) -> None:
    model = BaLoRA(bert(1), Bernoulli(), **OPTIONS).to(dtype)
    assert predict(model, InputNoise(model, width=4), token_batch(), num_samples=2).mean.isfinite().all()


def features(batch: Batch) -> Batch:
    frames = Frames(
        torch.randn(batch.size, 2, 3, generator=torch.Generator().manual_seed(1)), torch.ones(batch.size, 2).bool()
    )
    return Batch(batch.inputs, batch.targets, {"features": frames})


@pytest.mark.parametrize("context", [False, True])
def test_variance_is_learned_from_the_input_and_saved(context: bool, tmp_path: Path) -> None:
    """A step of training moves a differently for each example and layer; a saved adapter predicts the same."""
    batch = features(token_batch(targets=torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0])))
    model = fill_B(BaLoRA(bert(1), Bernoulli(), **OPTIONS))
    guide = InputNoise(model, width=8, context_dim=3 if context else None)
    assert guide.reads == (frozenset({"features"}) if context else frozenset())
    fit(model, guide, batch, epochs=3, optimizer=lambda p: torch.optim.Adam(p, lr=0.05), kl_weight=1e-3, progress=False)
    with torch.no_grad():
        guide(batch)
    scales = [guide.trace.nodes[site.name]["fn"].stddev[:, 0, 0, 0] for site in model.sites]
    guide.trace = type(guide.trace)()
    assert len({round(float(s), 6) for scale in scales for s in scale}) == 10
    save(tmp_path / "adapter", model, guide)
    before = predict(model, guide, batch, num_samples=3)
    again = predict(*load(tmp_path / "adapter", bert(1)), batch, num_samples=3)
    assert torch.equal(again.mean, before.mean)
    assert torch.equal(again.epistemic, before.epistemic)


def test_prior_variance_and_refusals() -> None:
    model = BaLoRA(bert(1), Bernoulli(), drop=0.2, **OPTIONS)
    assert model.prior.of(model.sites[0]).stddev.flatten()[0] == pytest.approx(math.sqrt(0.25))
    with refuses(ConfigError, "drop", 1.0):
        BaLoRA(bert(1), Bernoulli(), drop=1.0, **OPTIONS)
    with refuses(ConfigError, "init_variance", 0.0):
        InputNoise(model, init_variance=0.0)
    with refuses(ConfigError, "modality", "'audio'", "context_dim"):
        InputNoise(model, modality="audio")
    reading = InputNoise(model, context_dim=3)
    with refuses(DataError, "features"):
        predict(model, reading, token_batch().without("audio"), num_samples=1)
