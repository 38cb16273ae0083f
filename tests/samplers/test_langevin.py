"""Langevin dynamics against linear-Gaussian recursions, a Gaussian target, and a posterior in closed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.samplers import Langevin, Plan, langevin
from tests.helpers import core_model, token_batch
from tests.refusals import refuses
from tests.samplers.parts import conjugate

CHAINS = 20_000
PRECISION = torch.tensor([[4.0, 1.5], [1.5, 2.0]])
MEAN = torch.tensor([1.0, -2.0])


def chains(plan: Plan, size: int = 7, **options: Any) -> Tensor:
    """Twenty thousand chains of two weights under a Gaussian target with N = ``size``, after the plan's last step."""
    torch.manual_seed(0)
    w = nn.Parameter(torch.zeros(CHAINS, 2))
    optimizer = Langevin([w], num_data=size, plan=plan, **options)
    for _ in range(plan.steps):
        w.grad = (w.detach() - MEAN) @ PRECISION / size
        optimizer.step()
    return w.detach()


@pytest.mark.parametrize(("friction", "temperature"), [(1.0, 1.0), (0.3, 0.5)])
def test_a_few_steps_are_the_linear_gaussian_recursion(friction: float, temperature: float) -> None:
    """Mean and covariance of (w, v) after k steps in closed form. Tolerance: 5 standard errors of 20 000 chains."""
    lr, plan, eye = 0.05, Plan(steps=6, num_draws=1, burn_in=3, decay=0.5), torch.eye(2)
    drawn = chains(plan, lr=lr, friction=friction, temperature=temperature)
    mean, covariance = torch.zeros(4), torch.zeros(4, 4)
    for step in range(1, 7):
        size = lr * (1.0 + (step - 1) / 3) ** -0.5
        velocity = torch.cat([-size * PRECISION, (1 - friction) * eye], 1)
        move = torch.cat([torch.cat([eye, torch.zeros(2, 2)], 1) + velocity, velocity])
        pull = (size * PRECISION @ MEAN).repeat(2)
        noise = 2 * friction * size * temperature * torch.ones(2, 2).kron(eye)
        mean, covariance = move @ mean + pull, move @ covariance @ move.T + noise
    torch.testing.assert_close(drawn.mean(0), mean[:2], rtol=0.0, atol=5 * (0.5 / CHAINS) ** 0.5)
    torch.testing.assert_close(drawn.T.cov(), covariance[:2, :2], rtol=0.05, atol=0.005)


@pytest.mark.parametrize(
    ("plan", "options"),
    [
        (Plan(steps=150, num_draws=1, burn_in=20, decay=1 / 3), {"lr": 0.05}),  # SGLD, decreasing steps
        (Plan(steps=150, num_draws=1), {"lr": 0.02, "friction": 0.3}),  # SGHMC
        (Plan(steps=160, num_draws=2, cycles=2, explore=0.2), {"lr": 0.05}),  # cyclical: the last steps are small
        (Plan(steps=300, num_draws=1), {"lr": 0.02, "temperature": 0.25}),  # cold: a quarter of the covariance
    ],
    ids=["SGLD", "SGHMC", "cyclical", "cold"],
)
def test_the_moments_of_a_gaussian_target(plan: Plan, options: dict[str, Any]) -> None:
    drawn, tau = chains(plan, **options), options.get("temperature", 1.0)
    torch.testing.assert_close(drawn.mean(0), MEAN, rtol=0.0, atol=0.03)
    torch.testing.assert_close(drawn.T.cov(), tau * PRECISION.inverse(), rtol=0.08, atol=0.02)


def test_a_step_on_an_adapter_has_the_gradient_of_the_whole_data_set() -> None:
    """w₁ = w₀ − η Λ (w₀ − m) without noise: the prior once, the likelihood N times, whatever the batches."""
    known = conjugate()
    guide, lr = Delta(known.model), 1e-3
    start = guide.loc["core-global"].detach().clone().flatten()
    found = langevin(known.model, guide, known.batch, steps=1, lr=lr, num_draws=1, burn_in=0, temperature=1e-20)
    expected = start - lr * known.precision @ (start - known.mean)
    torch.testing.assert_close(found.values[0], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(guide.loc["core-global"].flatten(), start), "the guide is as before"


def test_the_posterior_of_an_adapter() -> None:
    """Tolerance: half a standard deviation for the mean of 100 draws that depend on one another, 40 % of σ."""
    known = conjugate(rank=1)
    guide = Delta(known.model)
    lr = 0.3 / float(known.precision)
    found = langevin(known.model, guide, [known.batch] * 50, steps=300, lr=lr, num_draws=100, friction=0.5, burn_in=50)
    scale = float(known.precision) ** -0.5
    assert abs(float(found.values.mean() - known.mean)) < 0.5 * scale
    assert 0.6 < float(found.values.std()) / scale < 1.4


def small() -> tuple[Any, Any]:
    model = core_model("global", rank=2, num_data=8)
    torch.manual_seed(3)
    return model, Delta(model)


def test_a_chain_that_was_stopped_goes_on(tmp_path: Path) -> None:
    data, options = [token_batch(8)[:4], token_batch(8)[4:]], {"steps": 12, "lr": 1e-3, "num_draws": 6, "burn_in": 0}
    model, guide = small()
    model.head.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = langevin(model, guide, data, **options)  # type: ignore[arg-type]
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    class Stopped(list[Any]):
        def __iter__(self) -> Any:
            for i, batch in enumerate(super().__iter__()):
                if self.reads == 3 and i == 1:
                    raise KeyboardInterrupt
                yield batch
            self.reads += 1

    broken = Stopped(data)
    broken.reads = 0  # type: ignore[attr-defined]
    stopped, start = small()
    before = {name: value.clone() for name, value in start.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        langevin(stopped, start, broken, checkpoint=tmp_path, **options)  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    rest = langevin(*small(), data, checkpoint=tmp_path, **options)  # type: ignore[arg-type]
    assert torch.equal(rest.values, whole.values)
    assert len({tuple(row) for row in whole.values.tolist()}) == 6
    assert predict(model, whole, data, num_samples=6).epistemic.max() > 0


@pytest.mark.parametrize("plan", [Plan(7, 3), Plan(40, 7, burn_in=5), Plan(60, 6, cycles=3), Plan(20, 4, cycles=2)])
def test_a_plan_keeps_as_many_draws_as_it_says(plan: Plan) -> None:
    kept = [step for step in range(1, plan.steps + 1) if plan.keeps(step)]
    assert len(kept) == plan.num_draws
    assert all(plan.noisy(step) and step > plan.burn_in for step in kept)


def test_chains_that_cannot_be() -> None:
    model, guide = small()
    options: dict[str, Any] = {"steps": 10, "lr": 1e-3, "num_draws": 2}
    for wrong, facts in (
        ({"num_draws": 9}, (10, 5, "num_draws=9")),
        ({"cycles": 3}, ("cycles=3",)),
        ({"lr": 0.0}, ("lr", 0.0)),
        ({"friction": 1.5}, ("friction", 1.5)),
        ({"explore": 1.0}, ("explore=1.0",)),
    ):
        with refuses(ConfigError, *facts):
            langevin(model, guide, token_batch(8), **(options | wrong))
    with refuses(ConfigError, "MeanField", "Delta(model)"):
        langevin(model, MeanField(model), token_batch(8), **options)
    local = core_model("token", rank=2)
    with refuses(ConfigError, local.sites[0].name):
        langevin(local, Delta(local), token_batch(8), **options)
