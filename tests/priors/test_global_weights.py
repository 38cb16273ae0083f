"""A weight of the data set under local latents: its KL, the optimum in closed form, and what shrinks with N."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from bayes_adapters import ELBO, AdapterGuide, Batch, Categorical, Gaussian, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual
from bayes_adapters.inference.handlers import keyed_uniform
from bayes_adapters.models import StochasticCore
from bayes_adapters.priors import GlobalWeights
from bayes_adapters.sites import Granularity
from bayes_adapters.testing.case import latents
from bayes_adapters.training import fit
from tests.helpers import VOCAB, Linear, bert, core_model, fill_B, token_batch
from tests.instrument import unchecked
from tests.refusals import refuses

NOISE = 0.5
"""σ_y of the conjugate case."""
CPU = torch.device("cpu")


class Centred(AdapterGuide):
    """``q(E | W) = N(W + m, σ²)`` with one m and one σ for all examples."""

    name, serves, serves_hyper = "centred", frozenset({Granularity.SEQUENCE}), True
    parts: ClassVar = AdapterGuide.parts

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.offset = nn.Parameter(torch.zeros(1, 1))
        self.log_scale = nn.Parameter(torch.full((1, 1), -1.0))

    def posterior(self, call: Any, prior: Any) -> Any:
        return dist.Normal(prior.mean + self.offset, self.log_scale.exp()).to_event(2)

    def config(self) -> dict[str, Any]:
        return {}


class SigmaPoints(Messenger):
    """Four particles at mean ± one deviation of the weight and of the local latents: exact for quadratic losses."""

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if msg["is_observed"] or not name.startswith(("weight.", "core.")):
            return
        signs = [1.0, 1.0, -1.0, -1.0] if name.startswith("weight.") else [1.0, -1.0, 1.0, -1.0]
        fn = msg["fn"]
        sign = torch.tensor(signs).reshape(4, *[1] * (len(fn.shape()) - 1))
        msg["value"] = fn.mean + sign * fn.stddev


def conjugate(n: int) -> tuple[StochasticCore, Centred, Batch, Tensor]:
    """``y_i = c_i + b_i E_i + ε`` with one scalar core: N = n examples, and their slopes b."""
    torch.manual_seed(3)
    model = StochasticCore(
        Linear(),
        Gaussian(math.log(NOISE)),
        targets=["query"],
        granularity="sequence",
        rank=1,
        alpha=1,
        num_data=n,
        prior=GlobalWeights(1.0, 0.3),
    )
    with torch.no_grad():
        model.backbone.query.lora_B.normal_()
        model.head.weight.fill_(1.0)
    model.requires_grad_(False)
    source = torch.Generator().manual_seed(n)
    batch = Batch({"x": torch.randn(n, 2, 4, generator=source)}, torch.randn(n, generator=source))
    layer = model.backbone.query
    slope = (batch.inputs["x"].mean(1) @ layer.lora_A.T)[:, 0] * (model.head.weight @ layer.lora_B).sum()
    return model, Centred(model), batch, slope


@pytest.mark.parametrize("n", [10, 160])
def test_optimum_of_weight_and_local_latents_is_the_closed_form(n: int) -> None:
    """1/v² = 1/s² + Σ b²/σ_y², which grows with N, and 1/σ² = 1/t² + mean(b²)/σ_y², which does not."""
    model, guide, batch, slope = conjugate(n)
    squares = slope.square() / NOISE**2
    weight, local = (1.0 + squares.sum()) ** -0.5, (1 / 0.3**2 + squares.mean()) ** -0.5
    scales = [guide.hyper.log_scale["weight-core-query"], guide.log_scale]

    def gradients(factor: float) -> list[float]:
        """Of the loss in log v and log σ, at ``factor`` times the closed form."""
        with torch.no_grad():
            scales[0].fill_(math.log(factor * weight))
            scales[1].fill_(math.log(factor * local))
        with SigmaPoints():
            loss = ELBO(model, guide, num_particles=4)(batch)
        return [float(g) for g in torch.autograd.grad(loss, scales)]

    assert gradients(1.0) == pytest.approx([0.0, 0.0], abs=1e-5)
    curvature = [2 * (1.05**2 - 1) / 2 / n, 2 * (1.05**2 - 1) / 2]  # of v²/2v*² − log v, over N; of σ the same, each
    assert gradients(1.05) == pytest.approx(curvature, rel=1e-2)
    gradients(1.0)
    found = predict(model, guide, batch, num_samples=8, local_samples=3)
    noise = torch.special.ndtri(keyed_uniform(0, "weight.core.query", torch.arange(8), torch.zeros(1).long(), 1, CPU))
    expected = slope.square() / (1.0 + squares.sum()) * noise.var()
    torch.testing.assert_close(found.epistemic_variance, expected, rtol=1e-3, atol=0.0)


def test_kl_counts_the_weight_once_per_data_set_and_the_core_once_per_token() -> None:
    """Oracle: torch's KL of Gaussians, and the formula of the docstring, in which the weight drops out."""
    scale, local = 0.7, 0.3
    model = core_model(prior=GlobalWeights(scale, local, identity=True), targets=["query"])
    guide, batch = Contextual(model), token_batch(targets=torch.ones(5))
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(0.1 * torch.randn_like(p))
    elbo = ELBO(model, guide)
    torch.manual_seed(0)
    found = elbo.terms(batch).kl
    _, nodes = latents(model, guide, batch, seed=0)
    kl = torch.zeros(())
    for name, node in nodes.items():
        q = node["fn"]
        if name.startswith("weight."):
            base = Normal(q.mean, q.stddev)
            kl = kl + kl_divergence(base, Normal(0.0, scale)).sum() / 50
            continue
        offset = q.mean - torch.eye(model.rank) - nodes[f"weight.{name}"]["value"]
        each = 0.5 * ((q.variance + offset.square()) / local**2 - 1 - 2 * (q.stddev / local).log())
        kl = kl + (each.sum((-1, -2)) * batch.token_mask).sum() / 5
    torch.testing.assert_close(found.detach(), kl.detach(), rtol=1e-5, atol=1e-6)


def backbone() -> nn.Module:
    """A BERT whose layers pass on what is added in them; with BERT's own start at ± 0.02 they hardly do."""
    net = bert(1)
    with torch.no_grad():
        for p in net.encoder.parameters():
            p.mul_(10.0 if p.dim() == 2 else 1.0)
    return net


def trained(n: int) -> Any:
    source = torch.Generator().manual_seed(5)
    tokens = torch.randint(1, VOCAB, (480, 6), generator=source)
    texts = Batch({"input_ids": tokens}, (tokens.float().mean(1) - 20) / 5 + 0.2 * torch.randn(480, generator=source))
    torch.manual_seed(0)
    options: dict[str, Any] = {"granularity": "sequence", "num_data": n, "rank": 2, "targets": ["query", "value"]}
    model = fill_B(StochasticCore(backbone(), Gaussian(-1.0), prior=GlobalWeights(0.5, 0.1), **options))
    for name, p in model.named_parameters():
        p.requires_grad_("head" in name)  # factors that adapt would do without the cores
    guide = Contextual(model, scale="softplus", width=8)
    batches = [texts[i : i + 32] for i in range(0, n, 32)]
    steps = {"epochs": 1000, "max_steps": 80, "progress": False}
    fit(model, guide, batches, optimizer=lambda p: torch.optim.AdamW(p, lr=0.06), **steps)
    return model, guide, texts[400:440]


def test_what_weights_leave_open_shrinks_with_the_data_and_local_latents_do_not(tmp_path: Path) -> None:
    few, many = trained(16), trained(400)
    small, large = (predict(*each, num_samples=8, local_samples=4) for each in (few, many))
    assert float(large.epistemic.mean()) < 0.25 * float(small.epistemic.mean())  # 16 examples and 400: .11, .02 nats
    assert float(large.local.mean()) == pytest.approx(float(small.local.mean()), rel=0.3)  # .026 and .025
    save(tmp_path / "adapter", many[0], many[1])
    again = load(tmp_path / "adapter", backbone())
    loaded = predict(*again, many[2], num_samples=8, local_samples=4)
    torch.testing.assert_close(loaded.epistemic, large.epistemic, rtol=0, atol=1e-7)
    torch.testing.assert_close(loaded.local, large.local, rtol=0, atol=1e-7)


def test_refusals() -> None:
    with refuses(ConfigError, "local_scale", 0.0):
        GlobalWeights(0.2, 0.0)
    with unchecked(), refuses(ConfigError, "scale", "0.2"):
        GlobalWeights("0.2")
    with refuses(ConfigError, "core.global", "granularity='token'"):
        core_model("global", prior=GlobalWeights())
    with refuses(ConfigError, "num_data=len(training set)"):
        StochasticCore(bert(1), Categorical(2), prior=GlobalWeights())
