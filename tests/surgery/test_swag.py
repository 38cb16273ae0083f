"""SWAG: the moments of a known trajectory, the covariance of its draws, and its way through fit, files and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

from bayes_adapters import Batch, Categorical, Gaussian, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import SWAG, Delta
from bayes_adapters.inference.handlers import KeyedDraws
from bayes_adapters.models import LoRA
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.surgery.swag import Trajectory
from bayes_adapters.training import fit
from tests.helpers import bert, core_model, fill_B, token_batch
from tests.refusals import refuses


def walk(trajectory: Trajectory, steps: int = 6) -> tuple[Any, Delta, torch.Tensor]:
    """Cores of two layers at six known places; returns them, shape (6, 16)."""
    model = core_model("global", rank=2, num_data=5)
    point = Delta(model)
    torch.manual_seed(3)
    places = torch.randn(steps, 16)
    for step, place in enumerate(places, 1):
        with torch.no_grad():
            point.loc["core-global"].copy_(place.reshape(4, 2, 2))
        trajectory(step, model, point)
    return model, point, places


@pytest.mark.parametrize("columns", [0, 3])
def test_the_moments_are_those_of_the_trajectory(columns: int) -> None:
    trajectory = Trajectory(start=2, every=1, columns=columns)
    model, point, places = walk(trajectory)
    seen = places[1:].double()
    assert trajectory.count == 5
    new, guide = trajectory.posterior(model, point)
    q = guide.joint()
    variance = seen.square().mean(0) - seen.mean(0).square()
    torch.testing.assert_close(q.mean.double(), seen.mean(0), rtol=1e-5, atol=1e-6)
    if columns == 0:
        torch.testing.assert_close(q.variance.double(), variance, rtol=1e-4, atol=1e-6)
        return
    deviations = torch.stack([seen[i] - seen[: i + 1].mean(0) for i in range(2, 5)])
    covariance = 0.5 * (variance.diag() + deviations.T @ deviations / 2)
    torch.testing.assert_close(q.covariance_matrix.double(), covariance, rtol=1e-4, atol=1e-6)
    keyed = KeyedDraws(0, torch.arange(20_000), torch.arange(1))
    with torch.no_grad(), keyed, pyro.plate("samples", 20_000, dim=-2):
        w = pyro.sample("joint", guide.joint(), infer={"hyper_site": "joint"})[:, 0].double()
    torch.testing.assert_close(torch.cov(w.T), covariance, rtol=0, atol=0.04 * float(covariance.max()))
    assert new is not model
    assert predict(new, guide, token_batch(), num_samples=4).epistemic.min() > 0


def lora(likelihood: Any) -> tuple[Any, Delta, Batch]:
    model = fill_B(LoRA(bert(), likelihood, rank=2))
    targets = torch.arange(6) % 3
    batch = token_batch(6)
    return model, Delta(model), Batch(batch.inputs, targets if isinstance(likelihood, Categorical) else torch.randn(6))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def test_it_is_gathered_while_fit_runs_also_across_an_interruption(tmp_path: Path) -> None:
    found = []
    for parts in ([12], [6, 12]):
        model, point, batch = lora(Gaussian())
        for last in parts:
            trajectory = Trajectory(start=4, every=2, columns=3)
            folder = tmp_path / str(len(parts))
            fit(
                model,
                point,
                batch,
                max_steps=last,
                optimizer=sgd,
                on_step=trajectory,
                checkpoint=folder,
                progress=False,
            )
        assert trajectory.count == 5
        new, guide = trajectory.posterior(model, point, num_data=6)
        found.append((new, guide, batch))
    (a, b, batch), (c, d, _) = found
    for name, value in b.state_dict().items():
        torch.testing.assert_close(d.state_dict()[name], value, rtol=0, atol=0)
    assert torch.equal(a.likelihood.log_scale, c.likelihood.log_scale)
    assert "head.weight" in b.layout, "the head is a part of the trajectory"
    assert predict(a, b, batch).epistemic.min() > 0


def test_what_is_not_random_is_averaged() -> None:
    model, point, _ = lora(Gaussian())
    trajectory = Trajectory(start=1, every=1, columns=0)
    for value in (0.0, 1.0, 5.0):
        with torch.no_grad():
            model.likelihood.log_scale.fill_(value)
        trajectory.gather(model, point)
    new, _ = trajectory.posterior(model, point)
    assert new.likelihood.log_scale.item() == pytest.approx(2.0)
    assert model.likelihood.log_scale.item() == 5.0


def test_save_load_and_export(tmp_path: Path) -> None:
    trajectory = Trajectory(start=1, every=1, columns=3)
    model, point, _ = walk(trajectory)
    new, guide = trajectory.posterior(model, point)
    batch = token_batch()
    save(tmp_path / "adapter", new, guide)
    again, guide_again = load(tmp_path / "adapter", bert())
    assert isinstance(guide_again, SWAG)
    assert torch.equal(predict(again, guide_again, batch).mean, predict(new, guide, batch).mean)
    plain = to_lora(new, guide, bert())
    torch.testing.assert_close(
        predict(plain, Delta(plain), batch).mean, predict(new, guide, batch, mean_only=True).mean
    )


def test_what_it_refuses() -> None:
    for options in ({"columns": 1}, {"every": 0}, {"start": 0}):
        with refuses(ConfigError, next(iter(options))):
            Trajectory(**{"start": 1, "every": 1} | options)
    few = Trajectory(start=5, every=1, columns=4)
    model, point, _ = walk(few)
    with refuses(ConfigError, "4", "2", "start earlier"):
        few.posterior(model, point)
    with refuses(ConfigError, "trajectory"):
        Trajectory(start=1, every=1, weights="core").gather(model, point)
    guide = SWAG(model, columns=2)
    with refuses(ConfigError, "deviations", "(2, 16)"):
        guide.place(torch.zeros(16), torch.ones(16), torch.zeros(3, 16))
    with refuses(ConfigError, "negative"):
        guide.place(torch.zeros(16), -torch.ones(16), torch.zeros(2, 16))
    wider = core_model("global", rank=3, num_data=5)
    with refuses(ConfigError, "(4, 2, 2)", "(4, 3, 3)", "new Trajectory"):
        few.gather(wider, Delta(wider))
