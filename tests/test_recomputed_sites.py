"""Cores with a draw per token that are computed once more in backward: the same numbers, from the features alone."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch

from bayes_adapters import ELBO
from bayes_adapters.guides import Contextual, CrossAttention, MeanField, PooledContext
from bayes_adapters.inference.handlers import KLMode
from tests.helpers import CONTEXT, core_model, token_batch
from tests.systems.parts import small
from tests.test_recomputation import drop, gradients, same, switch_on

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
READERS = {"context_dim": CONTEXT, "dim": 4}
EACH_TOKEN = ("mc-dropout", "c-lora", "fixed-e", "coco-lora", "caliber-g", "caliber-x-fusion", "cross-attention")


def both(model: Any, guide: Any, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    batches = [token_batch(), token_batch(3, 5)]
    plain = gradients(ELBO(model, guide, **options).train(), batches)
    recomputed = gradients(ELBO(model, guide, recompute=True, **options).train(), batches)
    same(recomputed, plain)
    return plain, recomputed


@pytest.mark.parametrize("name", EACH_TOKEN)
def test_systems_have_the_same_loss_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    model, guide, batch = small(name)
    drop(model, 0.2)
    with torch.no_grad():
        for parameter in (p for path, p in model.named_parameters() if "lora_B" in path):
            parameter.normal_(0.0, 0.5)
    plain = gradients(ELBO(model, guide).train(), [batch])
    same(gradients(ELBO(model, guide, recompute=True).train(), [batch]), plain)


@pytest.mark.parametrize(
    "options", [{"num_particles": 2}, {"kl_weight": 0.3, "kl_mode": KLMode.PER_TOKEN_MEAN}], ids=["draws", "mean"]
)
def test_losses_of_any_kind(options: dict[str, Any]) -> None:
    model = core_model(dropout=0.1)
    both(model, CrossAttention(model, share_kv=True, **READERS), **options)


def test_without_a_closed_form_the_divergence_is_that_of_the_draw() -> None:
    model = core_model(prior=dist.StudentT(4.0, 0.0, 0.3))
    both(model, PooledContext(model, **READERS))


@pytest.mark.parametrize("rank", [8, 16])
def test_less_is_kept(rank: int) -> None:
    model = core_model(rank=rank)
    plain, recomputed = both(model, Contextual(model))
    tokens, sites = 5 * 7, 4
    least = 4 * tokens * sites * 7 * rank**2  # 7.3 r² floats a token and site before, the draw, mean and scale in them
    assert plain["saved"] - recomputed["saved"] > least
    switch_on(model.backbone)
    for recompute in (False, True):
        kept = gradients(ELBO(model, Contextual(model), recompute=recompute).train(), [token_batch()])["saved"]
        assert kept < recomputed["saved"]


def test_nobody_holds_draws_or_posteriors() -> None:
    model = core_model(rank=8)
    guide = Contextual(model)
    elbo = ELBO(model, guide, recompute=True).train()
    seen: list[int] = []

    def look(record: Any) -> None:
        cores = [site for name, site in record.nodes.items() if name.startswith("core.")]
        seen.extend(core["value"].untyped_storage().nbytes() for core in cores)

    before = guide.get_traces
    guide.get_traces = lambda: (look(guide.trace), before())[1]
    elbo(token_batch())
    assert set(seen) == {4}, "one number stands in for each site's draws"


def test_statistics_are_those_of_the_posterior() -> None:
    model = core_model()
    guide, found = CrossAttention(model, **READERS), []
    for recompute in (False, True):
        elbo = ELBO(model, guide, recompute=recompute).train()
        torch.manual_seed(3)
        found.append(elbo.terms(token_batch(), with_scales=True))
    assert len(found[0].scales) == 4
    assert {n: pytest.approx(v) for n, v in found[0].scales.items()} == found[1].scales
    torch.testing.assert_close(found[1].kl, found[0].kl)


def test_sites_of_sequences_and_weights_keep_what_they_kept() -> None:
    for granularity in ("sequence", "global"):
        model = core_model(granularity)
        plain, recomputed = both(model, MeanField(model))
        assert plain["saved"] == recomputed["saved"]
