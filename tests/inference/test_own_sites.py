"""``pyro.sample`` statements in a model's or a guide's own code: predict sees them as random, and repeats them."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayes_adapters import AdapterGuide, Batch, Bernoulli, Granularity, predict
from bayes_adapters.adapters.forward_pass import outer_shape
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.models import LoRA, StochasticCore
from tests.helpers import bert, core_model, fill_B, token_batch
from tests.refusals import refuses

SPREAD = 0.3


class Tempered(LoRA):
    """Logits times a random number per example."""

    structure = "tempered"

    def outputs(self, features: Tensor, batch: Batch) -> Tensor:
        times = pyro.sample("times", dist.LogNormal(0.0, SPREAD))
        return super().outputs(features, batch) * times.reshape(-1, 1)


class Shifted(StochasticCore):
    """Logits plus a random number that all examples share."""

    structure = "shifted"

    def forward(self, batch: Batch) -> Tensor:
        self.shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        return super().forward(batch)

    def outputs(self, features: Tensor, batch: Batch) -> Tensor:
        shift = self.shift.expand(*outer_shape(), batch.size) if self.shift.dim() else self.shift.expand(batch.size)
        return super().outputs(features, batch) + shift.reshape(-1, 1)


def tempered() -> Any:
    torch.manual_seed(3)
    model: Any = Tempered(bert(), Bernoulli())
    with torch.no_grad():
        model.head.weight.mul_(4.0)
    return model


def shifted() -> Any:
    return fill_B(Shifted(bert(), Bernoulli(), granularity="global", num_data=5))


def plain(model: Any, batch: Batch) -> Tensor:
    """The logits without what the model's own code draws, shape (B,)."""
    with torch.no_grad(), pyro.poutine.condition(data={"times": torch.ones(batch.size)}):
        return model(batch)[:, 0]


def same(one: Any, two: Any) -> None:
    torch.testing.assert_close(one.samples, two.samples, rtol=1e-5, atol=1e-6)


def test_a_site_of_the_models_own_is_drawn_once_per_draw() -> None:
    model, batch = tempered(), token_batch().without_targets()
    found = predict(model, Delta(model), batch, num_samples=400, return_samples=True)
    logs = (found.samples.logit() / plain(model, batch)).log()  # log-normal: its logarithm is a Gaussian
    assert logs.shape == (400, 5)
    assert logs.mean(0).abs().max() < 4 * SPREAD / 20
    assert (logs.std(0) / SPREAD - 1).abs().max() < 0.15
    assert torch.corrcoef(logs.T).triu(1).abs().max() < 0.2  # each example has its own
    expected = torch.distributions.Bernoulli(found.samples)
    aleatoric = expected.entropy().double().mean(0).float()
    torch.testing.assert_close(found.aleatoric, aleatoric, rtol=1e-4, atol=1e-5, check_dtype=False)
    assert (found.epistemic > 1e-4).all()


def test_its_noise_is_a_function_of_seed_draw_and_example() -> None:
    model, batch = tempered(), token_batch().without_targets()
    ask: Any = {"num_samples": 6, "return_samples": True}
    whole = predict(model, Delta(model), batch, **ask)
    same(predict(model, Delta(model), batch, chunk_size=1, **ask), whole)
    same(predict(model, Delta(model), batch, chunk_size=4, **ask), whole)
    same(predict(model, Delta(model), [batch[:2], batch[2:]], **ask), whole)
    other = predict(model, Delta(model), batch, seed=1, **ask)
    assert (other.samples - whole.samples).abs().max() > 1e-3
    torch.manual_seed(0)
    free = [predict(model, Delta(model), batch, seed=None, **ask).samples for _ in range(2)]
    assert (free[0] - free[1]).abs().max() > 1e-3


def test_a_site_that_examples_share() -> None:
    model, batch = shifted(), token_batch().without_targets()
    guide = MeanField(model, init_scale=1e-6)
    ask: Any = {"num_samples": 6, "return_samples": True}
    found = predict(model, guide, batch, **ask)
    logits = found.samples.logit()
    moved = logits - logits[:1]
    torch.testing.assert_close(moved, moved[:, :1].expand(6, 5), rtol=0, atol=1e-4)
    assert moved.std(0).min() > 0.2
    same(predict(model, guide, batch, chunk_size=2, **ask), found)
    same(predict(model, guide, [batch[:1], batch[1:]], **ask), found)


def test_the_mean_of_a_models_own_site() -> None:
    model, batch = tempered(), token_batch().without_targets()
    found = predict(model, Delta(model), batch, mean_only=True)
    torch.testing.assert_close(found.mean, plain(model, batch).sigmoid(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [None, 1])
def test_beside_a_callable_guide(chunk: int | None) -> None:
    """A guide of points does not make the model a point; what the guide says of the model's own site is used."""
    model, batch = shifted(), token_batch().without_targets()
    core = 0.1 * torch.randn(*model.sites[0].shape)

    def guide(_: Batch) -> None:
        pyro.sample("core.global", dist.Delta(core, event_dim=3))

    def whole(_: Batch) -> None:
        guide(_)
        pyro.sample("shift", dist.Delta(torch.tensor(2.0)))

    ask: Any = {"num_samples": 4, "return_samples": True, "chunk_size": chunk}
    found = predict(model, guide, batch, **ask).samples.logit()
    assert found.std(0).min() > 0.2
    same(predict(model, guide, batch, **(ask | {"chunk_size": 3})), predict(model, guide, batch, **ask))
    told = predict(model, whole, batch, **ask).samples.logit()
    torch.testing.assert_close(told, told[:1].expand(4, 5))
    given = predict(model, {"core.global": core.expand(4, *core.shape), "shift": torch.full((4,), 2.0)}, batch, **ask)
    torch.testing.assert_close(given.samples.logit(), told, rtol=1e-4, atol=1e-5)


def test_a_guide_that_draws_in_its_own_code() -> None:
    class Jittered(AdapterGuide):
        """A point per example, moved by a draw: its posterior of the cores is a Delta."""

        name, serves, deterministic = "jittered", frozenset({Granularity.TOKEN}), True  # type: ignore[assignment]

        def posterior(self, call: Any, prior: Any) -> Any:
            jitter = pyro.sample(f"jitter.{call.site.name}", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            return dist.Delta(torch.eye(3) * jitter[..., None, None, None], event_dim=2)

    model, batch = core_model("token"), token_batch().without_targets()
    found = predict(fill_B(model), Jittered(model), batch, num_samples=4, return_samples=True)
    assert found.samples.std(0).max() > 1e-4


def test_a_distribution_that_cannot_be_repeated_is_refused() -> None:
    class Gamma(LoRA):
        structure = "gamma"

        def outputs(self, features: Tensor, batch: Batch) -> Tensor:
            times = pyro.sample("times", dist.Gamma(2.0, 2.0))
            return super().outputs(features, batch) * times.reshape(-1, 1)

    model, batch = Gamma(bert(), Bernoulli()), token_batch().without_targets()
    with refuses(ConfigError, "Gamma", "seed=None"):
        predict(model, Delta(model), batch)
    found = predict(model, Delta(model), batch, seed=None, num_samples=4, return_samples=True)
    assert found.samples.std(0).max() > 1e-4
