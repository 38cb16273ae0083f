"""Bases in bfloat16 and float16, and autocast: what is random, its density and its gradients stay float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bayes_adapters import ELBO, Bernoulli, predict
from bayes_adapters.distributions import base_distribution
from bayes_adapters.systems import build
from tests.helpers import CONTEXT, llama, token_batch

NAMES = ("lora", "blob", "bayeslora-2026", "c-lora", "caliber-x")


def made(name: str, dtype: torch.dtype, **options: Any) -> ELBO:
    """A system on a decoder whose weights are numbers that bfloat16 has too."""
    backbone = llama().to(torch.bfloat16).to(dtype)
    torch.manual_seed(0)
    more = {"context_dim": CONTEXT, "dim": 4} if name == "caliber-x" else {}
    model, guide = build(name, backbone, Bernoulli(), num_data=50, rank=2, targets=["q_proj", "v_proj"], **more)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "lora_B" in path:
                parameter.normal_(0.0, 0.5)
    return ELBO(model, guide, **options)


def evaluated(elbo: ELBO) -> float:
    torch.manual_seed(1)
    loss = elbo(token_batch())
    loss.backward()
    assert loss.dtype is torch.float32
    for path, parameter in elbo.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype is torch.float32, path
            assert parameter.grad is None or bool(parameter.grad.isfinite().all()), path
    return float(loss.detach())


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("name", NAMES)
def test_the_elbo_is_within_one_per_cent_of_float32(name: str) -> None:
    exact = evaluated(made(name, torch.float32))
    for dtype in (torch.bfloat16, torch.float16):
        assert evaluated(made(name, dtype)) == pytest.approx(exact, rel=0.01)
    elbo = made(name, torch.float32, recompute=True)
    elbo.train().model.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with torch.autocast("cpu", torch.bfloat16):
        assert evaluated(elbo) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("name", NAMES[1:])
def test_draws_and_posteriors_are_float32(name: str) -> None:
    elbo = made(name, torch.bfloat16)
    guide: Any = elbo.guide
    guide(token_batch())
    sites = [guide.trace.nodes[site.name] for site in elbo.model.sites]
    assert {site["value"].dtype for site in sites} == {torch.float32}
    assert {base_distribution(site["fn"]).mean.dtype for site in sites} == {torch.float32}
    assert predict(elbo.model, guide, token_batch(), num_samples=2).mean.dtype.is_floating_point
