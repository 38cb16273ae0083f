"""IVON against its equations and against a posterior in closed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bayes_adapters import Batch, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.samplers import Ivon, ivon
from bayes_adapters.training import fit
from tests.helpers import bert, core_model, token_batch
from tests.refusals import refuses
from tests.samplers.parts import conjugate


def test_the_steps_are_those_of_the_equations() -> None:
    """ĝ and ĥ by hand from a known draw, h and δ as the paper has them; the prior's part is in the momentum."""
    torch.manual_seed(0)
    size, prior_precision, lr, (first, second) = 40.0, 3.0, 0.2, (0.8, 0.9)
    mean, rho = nn.Parameter(torch.randn(5)), nn.Parameter(torch.full((5,), -1.5))
    optimizer = Ivon([mean], [rho], [], weight=size, lr=lr, betas=(first, second))
    m, h, g = mean.detach().clone(), (2 * -rho.detach()).exp() / size - prior_precision / size, torch.zeros(5)
    delta, curvature = prior_precision / size, torch.rand(5) + 0.5
    for step in range(1, 4):
        noise = torch.randn(5)
        theta = mean + rho.exp() * noise
        kl = 0.5 * prior_precision * (mean.square() + (2 * rho).exp()) - rho
        optimizer.zero_grad()
        ((0.5 * curvature * theta.square() + theta.sin()).sum() + kl.sum() / size).backward()
        optimizer.step()

        sigma = (size * (h + delta)) ** -0.5
        drawn = m + sigma * noise
        gradient = curvature * drawn + drawn.cos()
        estimate = gradient * (drawn - m) / sigma**2
        g = first * g + (1 - first) * (gradient + delta * m)
        h = second * h + (1 - second) * estimate + 0.5 * (1 - second) ** 2 * (h - estimate) ** 2 / (h + delta)
        m = m - lr * g / (1 - first**step) / (h + delta)
        torch.testing.assert_close(mean.detach(), m, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rho.detach().exp(), (size * (h + delta)) ** -0.5, rtol=1e-4, atol=1e-6)


def test_it_finds_the_best_factorised_gaussian() -> None:
    """Mean of the exact posterior and variances 1/Λ_ii. Tolerance: 0.04 of the mean, 6 % of σ (400 steps)."""
    known = conjugate()
    guide = MeanField(known.model, init_scale=0.3)
    optimizer = ivon(known.model, guide, lr=0.3, betas=(0.9, 0.98))
    schedule = lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 400)  # noqa: E731
    settings: dict[str, Any] = {"num_particles": 16, "progress": False, "monitor": None}
    fit(known.model, guide, [known.batch] * 20, optimizer=optimizer, scheduler=schedule, epochs=20, **settings)
    torch.testing.assert_close(guide.loc["core-global"].flatten().detach(), known.mean, rtol=0.0, atol=0.04)
    scale = guide.rho["core-global"].exp().flatten().detach()
    torch.testing.assert_close(scale, known.precision.diagonal() ** -0.5, rtol=0.06, atol=0.0)


def test_what_is_a_point_is_trained_by_adam() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    pairs = [(ours, Ivon([], [], [ours], weight=1.0, point_lr=0.01)), (theirs, torch.optim.Adam([theirs], lr=0.01))]
    for _ in range(5):
        noise = torch.randn(3)
        for parameter, optimizer in pairs:
            optimizer.zero_grad()
            (parameter * noise).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_the_guide_it_leaves_is_an_ordinary_one(tmp_path: Path) -> None:
    batch, results = token_batch(8), []
    for stop in (None, 3):
        model = core_model("global", rank=2, num_data=8)
        torch.manual_seed(2)
        guide = MeanField(model)
        where = tmp_path / str(stop)
        make = lambda: ivon(model, guide, betas=(0.9, 0.9), point_lr=0.01)  # noqa: B023, E731
        options: dict[str, Any] = {"checkpoint": where, "progress": False}
        if stop is not None:
            fit(model, guide, batch, optimizer=make(), epochs=stop, **options)
        result = fit(model, guide, batch, optimizer=make(), epochs=6, **options)
        results.append(predict(model, guide, batch).mean)
        assert result.history[-1]["nll"] < result.history[0]["nll"]
    assert torch.equal(*results), "a run that was stopped goes on as if it had not been"
    save(tmp_path / "adapter", model, guide)
    again = load(tmp_path / "adapter", bert())
    assert torch.equal(predict(*again, batch).mean, results[0])


def test_guides_and_numbers_that_it_does_not_train() -> None:
    model = core_model("global", rank=2)
    for guide in (Delta(model), MeanField(model, parameter="root")):
        with refuses(ConfigError, type(guide).__name__, "MeanField(model)"):
            ivon(model, guide)
    local = core_model("token", rank=2)
    with refuses(ConfigError, local.sites[0].name, "token"):
        ivon(local, MeanField(local))
    for options, facts in (({"lr": 0.0}, ("lr", 0.0)), ({"betas": (0.9, 1.0)}, ("betas",)), ({"kl_weight": 0}, ("0",))):
        with refuses(ConfigError, *facts):
            ivon(model, MeanField(model), **options)  # type: ignore[arg-type]
    assert isinstance(token_batch(), Batch)


@pytest.mark.parametrize("frozen", ["loc", "rho"])
def test_a_frozen_half_stays(frozen: str) -> None:
    model = core_model("global", rank=2)
    guide = MeanField(model)
    kept = getattr(guide, frozen)["core-global"].requires_grad_(False)
    before = kept.clone()
    optimizer = ivon(model, guide)
    guide(token_batch())
    for parameter in guide.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    assert torch.equal(kept, before)
