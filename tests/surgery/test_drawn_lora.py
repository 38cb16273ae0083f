"""One draw of a posterior over weights as a plain LoRA: the very numbers that predict draws."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from bayes_adapters import Bernoulli, adapted_layers, predict, remove
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, Delta, LowRank, MeanField, RankWise
from bayes_adapters.inference.draws import weight_draw
from bayes_adapters.inference.handlers import KeyedDraws
from bayes_adapters.models import DiagonalCore, StochasticDown, StochasticFactors
from bayes_adapters.surgery.export import to_lora
from tests.helpers import bert, core_model, fill_B, token_batch
from tests.refusals import refuses


def unknown_scale(name: str, shape: tuple[int, ...]) -> Any:
    tau = pyro.sample("tau", dist.LogNormal(-1.0, 0.3))
    return dist.Normal(torch.zeros(shape), tau)


BUILDS: dict[str, Any] = {
    "A": lambda: MeanField(fill_B(StochasticDown(bert(), Bernoulli(), rank=3, num_data=50)), init_scale=0.3),
    "A and B": lambda: RankWise(StochasticFactors(bert(), Bernoulli(), rank=3, num_data=50), init_log_variance=-2.0),
    "diagonal": lambda: MeanField(fill_B(DiagonalCore(bert(), Bernoulli(), rank=3, num_data=50)), init_scale=0.3),
    "core": lambda: MeanField(core_model("global"), init_scale=0.3),
    "a layer each": lambda: MeanField(core_model("global", grouped=False), init_scale=0.3),
    "joint": lambda: LowRank(core_model("global"), init_scale=0.3),
    "unknown scale": lambda: MeanField(core_model("global", prior=unknown_scale), init_scale=0.3),
}


def drawn_together(guide: Any, samples: int, seed: int) -> dict[str, torch.Tensor]:
    """Site → values in one pass of several draws, as predict makes it."""
    zeros = torch.zeros(5, dtype=torch.long)
    with torch.no_grad(), KeyedDraws(seed, torch.arange(samples), zeros), pyro.plate("samples", samples, dim=-2):
        guide(token_batch().without_targets())
    nodes = guide.trace.nodes
    return {s.name: nodes[s.name]["value"].reshape(samples, *s.shape) for s in guide.model.sites}


@pytest.mark.parametrize("kind", BUILDS)
def test_a_drawn_lora_is_that_draw_of_predict(kind: str) -> None:
    guide = BUILDS[kind]()
    model, batch = guide.model, token_batch().without_targets()
    together = drawn_together(guide, 4, seed=7)
    for number in (0, 3):
        alone = weight_draw(model, guide, number, seed=7)
        assert all(torch.equal(alone[name], value[number]) for name, value in together.items())
    samples = predict(model, guide, batch, num_samples=4, return_samples=True, seed=7).samples
    assert (samples[3] - samples[0]).abs().max() > 1e-4
    backbone, before = bert(), torch.random.get_rng_state()
    lora = to_lora(model, guide, backbone, draw=3, seed=7)
    assert torch.equal(torch.random.get_rng_state(), before)
    found = predict(lora, Delta(lora), batch).mean
    torch.testing.assert_close(found, samples[3], rtol=0, atol=1e-6)
    other = to_lora(model, guide, bert(), draw=3, seed=8)
    assert (predict(other, Delta(other), batch).mean - samples[3]).abs().max() > 1e-5


def test_the_weights_are_the_same_bits() -> None:
    guide = BUILDS["A"]()
    lora = to_lora(guide.model, guide, bert(), draw=2)
    drawn = drawn_together(guide, 3, seed=0)["A.global"][2]
    layers = adapted_layers(lora.backbone).values()
    assert all(torch.equal(layer.lora_A, value) for layer, value in zip(layers, drawn, strict=True))


def test_what_is_no_draw_of_weights() -> None:
    local = core_model("token")
    with refuses(ConfigError, local.sites[0].name):
        to_lora(local, Contextual(local), bert(), draw=0)
    with refuses(ConfigError, local.sites[0].name, "token"):
        weight_draw(local, Contextual(local), 0)
    guide = BUILDS["A"]()
    with refuses(ConfigError, "draw", -1):
        to_lora(guide.model, guide, bert(), draw=-1)
    with refuses(ConfigError, "seed=3", "draw"):
        to_lora(guide.model, guide, bert(), seed=3)
    remove(guide.model.backbone)
    with refuses(ConfigError, "activate(model)"):
        weight_draw(guide.model, guide, 0)
