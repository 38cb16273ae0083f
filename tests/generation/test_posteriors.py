"""Every kind of posterior over weights writes: with a cache, and as predict says of the same draws."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from bayes_adapters import AdapterGuide, AdapterModel, Batch, predict, registry
from bayes_adapters.generation import generate
from bayes_adapters.guides import MeanField
from bayes_adapters.heads import LanguageModelHead
from bayes_adapters.likelihoods import NextToken
from bayes_adapters.models import StochasticCore
from tests.generation.parts import VOCAB, llama, prompts

STRUCTURES = {
    "swag": "stochastic_core",
    "laplace": "stochastic_core",
    "kronecker_laplace": "stochastic_core",
    "training_free": "stochastic_down",
    "rank_gates": "gated_lora",
    "rank_wise": "stochastic_factors",
    "mc_dropout": "adapter_dropout",
    "mixture": "stochastic_core",
    "stored_draws": "stochastic_core",
    "flow": "stochastic_core",
}
SIZES: dict[str, dict[str, Any]] = {"stored_draws": {"num_draws": 3}, "swag": {"columns": 3}}
SHAPE: dict[str, Any] = {"targets": ["q_proj", "down_proj"]}


def scattered(model: AdapterModel, guide: AdapterGuide) -> tuple[AdapterModel, AdapterGuide]:
    """An adapter that does something, and draws that differ where a guide begins as a point."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.normal_(0.0, 0.6)
        for name, value in [*guide.named_parameters(), *guide.named_buffers()]:
            if value.is_floating_point() and value.dim() > 1:
                value.add_(0.3 * torch.rand_like(value) if "loc" not in name else 0.3 * torch.randn_like(value))
    return model, guide


def made(name: str) -> tuple[AdapterModel, AdapterGuide]:
    options: dict[str, Any] = {} if name == "rank_gates" else {"rank": 2}
    if STRUCTURES[name] in ("stochastic_core", "adapter_dropout"):
        options["granularity"] = "global"
    if name != "mc_dropout":
        options["num_data"] = 20
    cls = registry.find("model", STRUCTURES[name])
    model = cls(llama(), NextToken(VOCAB), head=LanguageModelHead(), **SHAPE, **options)
    return scattered(model, registry.find("guide", name)(model, **SIZES.get(name, {})))


def writes_one_function(model: AdapterModel, guide: AdapterGuide) -> None:
    """Cached or not, and by one pass over prompt and text, a text has the same probability under each draw."""
    cached, whole = (
        generate(model, guide, prompts(), num_samples=3, max_new_tokens=4, use_cache=cache, seed=7)
        for cache in (True, False)
    )
    assert torch.equal(cached.tokens, whole.tokens)
    torch.testing.assert_close(cached.draw_log_probs, whole.draw_log_probs, rtol=1e-4, atol=3e-5)
    apart = cached.draw_log_probs - cached.draw_log_probs[:1]
    assert float(apart.abs().max()) > 1e-3, "the draws differ"
    ids = torch.cat([prompts()["input_ids"], cached.tokens], -1)
    mask = torch.cat([prompts()["attention_mask"], torch.ones_like(cached.tokens)], -1)
    labels = torch.cat([torch.full((3, 4), -100), cached.tokens], -1)
    said = predict(model, guide, Batch({"input_ids": ids, "attention_mask": mask}, labels), num_samples=3, seed=7)
    torch.testing.assert_close(said.log_density, cached.mixture_log_prob, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_draw_is_one_function_of_a_text(name: str) -> None:
    writes_one_function(*made(name))


def test_so_is_one_under_a_hierarchical_prior() -> None:
    def prior(name: str, shape: tuple[int, ...]) -> Any:
        scale = pyro.sample("tau", dist.HalfCauchy(1.0))
        return dist.Normal(0.0, scale).expand(shape).to_event(len(shape))

    options: dict[str, Any] = {"rank": 2, "granularity": "global", "num_data": 20, "prior": prior}
    model = StochasticCore(llama(), NextToken(VOCAB), head=LanguageModelHead(), **SHAPE, **options)
    writes_one_function(*scattered(model, MeanField(model)))
