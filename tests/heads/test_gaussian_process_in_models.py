"""The Gaussian process in models: guides, batches, files, distance, features that do not collapse, mistakes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor

from bayes_adapters import ELBO, Batch, Categorical, Gaussian, Tagging, load, predict, save
from bayes_adapters.errors import ConfigError, NonFiniteError
from bayes_adapters.guides import Contextual, Delta, LowRank, MeanField
from bayes_adapters.heads.distance_preserving import DistancePreserving
from bayes_adapters.heads.gaussian_process import INDUCING, GaussianProcessHead
from bayes_adapters.models import LoRA, StochasticCore
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.training import fit
from bayes_adapters.training.inducing import initialise
from tests.heads.parts import on_points, scattered
from tests.helpers import bert, fill_B, token_batch
from tests.refusals import refuses

TARGETS = torch.tensor([0, 1, 2, 1, 0])


def cores(guide: type, **options: Any) -> tuple[StochasticCore, Any]:
    head = GaussianProcessHead(4, lengthscale=2.0)
    model = fill_B(StochasticCore(bert(), Categorical(3), head=head, num_data=20, rank=2, **options))
    return model, scattered(guide(model))


@pytest.mark.parametrize(
    ("guide", "options"),
    [
        (Contextual, {"granularity": "token"}),
        (MeanField, {"granularity": "global"}),
        (LowRank, {"granularity": "global"}),
        (Delta, {"granularity": "sequence"}),
    ],
)
def test_it_stands_beside_every_guide(guide: type, options: dict[str, Any], tmp_path: Path) -> None:
    """Predictions depend on no chunk or batch, and are loaded again."""
    model, posterior = cores(guide, **options)
    batch = token_batch(targets=TARGETS)
    ELBO(model, posterior)(batch).backward()
    trained = [*model.head.parameters(), *posterior.head_posterior.parameters()]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained)
    whole = predict(model, posterior, batch, num_samples=6, chunk_size=6)
    for chunk in (4, 1):
        found = predict(model, posterior, batch, num_samples=6, chunk_size=chunk)
        torch.testing.assert_close(found.mean, whole.mean)
        torch.testing.assert_close(found.log_density, whole.log_density)
    parts = predict(model, posterior, [batch[:2], batch[2:4], batch[4:]], num_samples=6)
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-4, atol=1e-5)
    assert whole.epistemic.min() > 1e-3
    assert predict(model, posterior, batch, mean_only=True).epistemic.max() < 1e-9
    save(tmp_path, model, posterior)
    again, posterior_again = load(tmp_path, bert())
    assert again.head.config() == model.head.config()
    assert torch.equal(predict(again, posterior_again, batch, num_samples=6).mean, whole.mean)


def test_a_loss_is_the_mean_over_its_batches() -> None:
    """Micro-batches of one data set add up to the whole, and so do particles."""
    model, guide = regression()
    batch = token_batch(targets=torch.randn(4), size=4)
    whole = ELBO(model, guide)(batch)
    halves = [ELBO(model, guide)(part) for part in (batch[:2], batch[2:])]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)
    torch.testing.assert_close(ELBO(model, guide, num_particles=3)(batch), whole)


def regression() -> tuple[LoRA, Delta]:
    model = fill_B(LoRA(bert(), Gaussian(), head=GaussianProcessHead(3, lengthscale=2.0), num_data=4, rank=2))
    return model, scattered(Delta(model))


def test_training_moves_head_and_adapters_and_what_is_frozen_stays(tmp_path: Path) -> None:
    model, guide = regression()
    model.head.inducing_points.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, guide, token_batch(targets=torch.randn(4), size=4), epochs=3, progress=False)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in before if name.startswith("head.")} - moved == {"head.inducing_points"}
    assert any("lora_A" in name for name in moved)
    assert not [name for name in moved if "base_layer" in name]
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, bert())
    assert not again.head.inducing_points.requires_grad
    assert guide_again.head_posterior.u.variational_mean.requires_grad


def test_autocast_rounds_the_features_only() -> None:
    x = torch.randn(6, 2).bfloat16().float()  # features that bfloat16 holds
    model = on_points(x, Gaussian(), 4)
    guide, batch = scattered(Delta(model)), Batch({"x": x}, torch.randn(6))
    expected = ELBO(model, guide)(batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = ELBO(model, guide)(batch)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_pyros_svi_and_given_draws() -> None:
    """Pyro trains it too; draws that are given stand for u, and f given u is what is left."""
    model, guide = regression()
    batch = token_batch(targets=torch.randn(4), size=4)
    before = guide.head_posterior.u.variational_mean.detach().clone()
    with pyro.settings.context(module_local_params=True):
        SVI(model, guide, Adam({"lr": 1e-2}), Trace_ELBO()).step(batch)
    assert not torch.equal(before, guide.head_posterior.u.variational_mean)
    draws = {INDUCING: torch.randn(5, 1, 1, 3)}
    assert predict(model, draws, batch).epistemic.min() > 1e-4
    conditioned = pyro.poutine.condition(model, {INDUCING: torch.zeros(1, 1, 3)})
    assert pyro.poutine.trace(conditioned).get_trace(batch).log_prob_sum().isfinite()
    with pyro.poutine.condition(data={INDUCING: torch.full((1, 1, 3), 50.0)}):
        given = ELBO(model, guide).terms(batch).nll
    assert given > 10 * ELBO(model, guide).terms(batch).nll, "what is given is taken, not the posterior"


def test_two_moons_are_doubtful_where_there_is_no_data() -> None:
    """Along a line away from the moons the epistemic part grows, and far away it is that of the prior."""
    torch.manual_seed(0)
    angle = torch.rand(60) * math.pi
    arc = torch.stack([angle.cos(), angle.sin()], 1)
    moons = torch.cat([arc[:30], torch.tensor([1.0, 0.5]) - arc[30:]])
    x, y = moons + 0.05 * torch.randn(60, 2), torch.arange(2).repeat_interleave(30)
    model = on_points(x, Categorical(2), 12, lengthscale=0.6)
    with torch.no_grad():
        model.head.inducing_points.copy_(x[::5])
        model.backbone.requires_grad_(False)
        model.head.kernel.requires_grad_(False)
    guide = Delta(model)
    batch = Batch({"x": x}, y)
    elbo = ELBO(model, guide)
    optimiser = torch.optim.Adam([p for p in elbo.parameters() if p.requires_grad], lr=0.05)
    for _ in range(120):
        optimiser.zero_grad()
        elbo(batch).backward()
        optimiser.step()
    found = predict(model, guide, Batch({"x": x}, y), num_samples=200)
    assert (found.mean.argmax(1) == y).float().mean() > 0.9
    away = torch.tensor([[0.0, 1.0], [0.0, 1.8], [0.0, 2.6], [0.0, 30.0]])
    line = predict(model, guide, Batch({"x": away}), num_samples=400)
    assert (line.epistemic[:3].diff() > 0).all()
    assert line.epistemic[3] > 2 * found.epistemic.mean()
    assert (line.mean[3] - 0.5).abs().max() < 0.06 + (model.head.mean.constant.diff().abs().item() / 2)


def test_the_block_keeps_distances_whatever_its_weights() -> None:
    block = DistancePreserving(6, 4, 0.8)
    a, b = torch.randn(2, 500, 6)
    before = (a - b).norm(dim=1)
    for size in (0.1, 1.0, 100.0):
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.normal_(std=size)
            ratio = (block(a) - block(b)).norm(dim=1) / before
            near = (block(a) - block(a + 1e-2 * (b - a))).norm(dim=1) / (1e-2 * before)
        for found in (ratio, near):
            assert found.min() > 0.2 - 1e-3
            assert found.max() < 1.8 + 1e-3
    assert ratio.std() > 0.05, "it does something"


@pytest.mark.parametrize("bound", [0.5, None])
def test_a_head_with_the_block_trains_and_is_saved(bound: float | None, tmp_path: Path) -> None:
    head = GaussianProcessHead(3, lengthscale=2.0, hidden=5, bound=bound)
    model = fill_B(LoRA(bert(), Categorical(3), head=head, num_data=5, rank=2))
    guide, batch = scattered(Delta(model)), token_batch(targets=TARGETS)
    before = [parameter.detach().clone() for parameter in head.block.parameters()]
    fit(model, guide, batch, epochs=2, progress=False)
    assert not any(map(torch.equal, before, head.block.parameters()))
    initialise(model, guide, batch)
    seen: list[Tensor] = []
    with head.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        expected = predict(model, guide, batch, num_samples=3).mean
    near = torch.cdist(head.embed(seen[0][:5]), head.inducing_points).amin(0)
    assert near.min() < 1e-3, "the inducing points are where the block puts examples"
    process = head.double().process(guide.head_posterior.double())
    found = head.moments(seen[0], guide.head_posterior)
    torch.testing.assert_close(found[0], process(head.embed(seen[0]).detach()).mean)
    head.float(), guide.head_posterior.float()
    save(tmp_path, model, guide)
    assert torch.equal(predict(*load(tmp_path, bert()), batch, num_samples=3).mean, expected)


def test_mistakes() -> None:
    with refuses(ConfigError, "num_data=", INDUCING):
        LoRA(bert(), Categorical(3), head=GaussianProcessHead())
    with refuses(ConfigError, "GaussianProcessHead", "Tagging", "LinearHead()"):
        LoRA(bert(), Tagging(3), head=GaussianProcessHead(), num_data=3)
    with refuses(ConfigError, "lengthscale", -1.0):
        GaussianProcessHead(lengthscale=-1.0)
    with refuses(ConfigError, "bound", 1.0):
        GaussianProcessHead(hidden=3, bound=1.0)
    with refuses(ConfigError, "kernel", "'rbf2'", "rbf"):
        GaussianProcessHead(kernel="rbf2")
    model, guide = regression()
    with refuses(ConfigError, "GaussianProcessHead", INDUCING):
        model.head(torch.zeros(1, 16))
    with refuses(ConfigError, "head", "random"):
        to_lora(model, guide, bert())
    with torch.no_grad():
        model.head.kernel.raw_outputscale.fill_(math.nan)
    with refuses(NonFiniteError, "positive definite", "[0]", "clip_norm"):
        ELBO(model, guide)(token_batch())
