"""A head with random weights of its own posterior stands beside any guide, as a point of a model's density."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from bayes_adapters import ELBO, AdapterGuide, AdapterModel, Batch, Categorical, Tagging, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import (
    Contextual,
    CrossAttention,
    Delta,
    Hypernetwork,
    LowRank,
    MCDropout,
    MeanField,
    RankWise,
)
from bayes_adapters.heads import BayesianLinear
from bayes_adapters.inference.draws import weight_draw
from bayes_adapters.models import AdapterDropout, CoLA, FusionLoRA, LoRA, StochasticCore, StochasticFactors
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.training import fit
from tests.helpers import CONTEXT, WIDTH, bert, fill_B, pad, token_batch
from tests.refusals import refuses
from tests.text_and_audio import batch as texts_and_audio
from tests.text_and_audio import encoders

N = 50
CLASSES = torch.tensor([0, 1, 2, 1, 0])


def three_classes() -> Batch:
    return token_batch(targets=CLASSES)


def lora(head: BayesianLinear | None = None, **options: Any) -> AdapterModel:
    head = BayesianLinear(pooling="cls") if head is None else head
    return fill_B(LoRA(bert(), Categorical(3), head=head, num_data=N, **options))


def core(head: Any, granularity: str = "token") -> AdapterModel:
    return fill_B(StochasticCore(bert(), Categorical(3), rank=3, granularity=granularity, num_data=N, head=head))


def factors(head: Any) -> AdapterModel:
    return StochasticFactors(bert(), Categorical(3), rank=3, num_data=N, head=head)


PAIRS: dict[str, tuple[Callable[[Any], AdapterModel], Callable[[Any], AdapterGuide]]] = {
    "contextual": (core, Contextual),
    "cross_attention": (core, lambda model: CrossAttention(model, context_dim=CONTEXT, dim=4, heads=2)),
    "mean_field": (core, MeanField),
    "rank_wise": (factors, RankWise),
    "low_rank": (lambda head: core(head, "global"), LowRank),
    "mc_dropout": (lambda head: fill_B(AdapterDropout(bert(), Categorical(3), head=head, num_data=N)), MCDropout),
    "delta": (lambda head: fill_B(LoRA(bert(), Categorical(3), head=head, num_data=N)), Delta),
    "fusion": (lambda head: FusionLoRA(bert(), Categorical(3), context_dim=CONTEXT, head=head, num_data=N), Delta),
}


def head_kl(guide: AdapterGuide, width: int = WIDTH) -> Tensor:
    """KL(q ‖ p) of the head by torch, nats: W_kj ~ N(0, 1/d), b_k ~ N(0, 1)."""
    values = dict(guide.named_parameters())
    total = torch.zeros(())
    for name, prior in {"weight": width**-0.5, "bias": 1.0}.items():
        q = Normal(values[f"head_posterior.loc.head-{name}"], values[f"head_posterior.log_scale.head-{name}"].exp())
        total = total + kl_divergence(q, Normal(0.0, prior)).sum()
    return total.detach()


def same(a: Any, b: Any) -> None:
    for part in ("mean", "total", "epistemic"):
        torch.testing.assert_close(getattr(a, part), getattr(b, part))


@pytest.mark.parametrize("name", PAIRS)
def test_beside_any_guide(name: str, tmp_path: Path) -> None:
    """The head's KL is added once per data set, its draws once per sample, and it is saved with the guide."""
    make_model, make_guide = PAIRS[name]
    model = make_model(BayesianLinear())
    guide, batch = make_guide(model), three_classes()
    terms = ELBO(model, guide).terms(batch)
    of_adapters = ELBO(model, guide)
    torch.manual_seed(3)
    whole = of_adapters.terms(batch).kl
    guide.head_posterior.requires_grad_(False)  # type: ignore[union-attr]
    width = WIDTH + (CONTEXT if name == "fusion" else 0)
    with torch.no_grad():  # at the prior the head's KL is 0, and what is left is the adapters'
        expected = head_kl(guide, width) / N
        for key, value in guide.head_posterior.named_parameters():  # type: ignore[union-attr]
            deviation = 1.0 if "bias" in key else width**-0.5
            value.fill_(0.0 if key.startswith("loc") else math.log(deviation))
    torch.manual_seed(3)
    torch.testing.assert_close(whole - of_adapters.terms(batch).kl, expected, rtol=1e-3, atol=1e-5)
    assert bool(terms.loss.isfinite())
    found = predict(model, guide, batch, num_samples=6)
    assert bool((found.epistemic > 1e-4).all())
    same(found, predict(model, guide, batch, num_samples=6, chunk_size=4))
    rows = [predict(model, guide, b, num_samples=6) for b in batch_rows(batch)]
    torch.testing.assert_close(torch.cat([row.mean for row in rows]), found.mean)
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, bert())
    same(found, predict(again, guide_again, batch, num_samples=6))
    assert not any(p.requires_grad for p in guide_again.head_posterior.parameters())  # type: ignore[union-attr]


def batch_rows(batch: Batch) -> list[Batch]:
    """The batch in two parts that keep their examples' numbers."""
    numbered = Batch(batch.inputs, batch.targets, batch.context, torch.arange(batch.size))
    return [numbered[:2], numbered[2:]]


def test_a_draw_is_one_function_of_all_inputs() -> None:
    """The predictive is the average over W of softmax(W h + b), h from the backbone alone."""
    model = lora()
    guide, batch = Delta(model), three_classes()
    found = predict(model, guide, batch, num_samples=4, seed=7, return_samples=True)
    with torch.no_grad():
        hidden = model.backbone(**batch.inputs).last_hidden_state[:, 0]
        for s in range(4):
            draw = weight_draw(model, guide, s, seed=7)
            by_hand = (hidden @ draw["head.weight"][0].T + draw["head.bias"][0]).softmax(-1)
            torch.testing.assert_close(found.samples[s], by_hand)  # type: ignore[index]
    point = predict(model, guide, batch, mean_only=True)
    loc = dict(guide.named_parameters())
    weight, bias = (loc[f"head_posterior.loc.head-{name}"][0] for name in ("weight", "bias"))
    torch.testing.assert_close(point.mean, (hidden @ weight.T + bias).softmax(-1).detach())


def test_particles_are_draws_of_their_own() -> None:
    """The nll of P particles is the average of P nlls, each under one W for the whole batch."""
    model = lora()
    guide, batch = Delta(model), three_classes()
    elbo = ELBO(model, guide, num_particles=3)
    torch.manual_seed(0)
    nll = elbo.terms(batch).nll
    torch.manual_seed(0)
    with torch.no_grad():
        hidden = model.backbone(**batch.inputs).last_hidden_state[:, 0]
        q = guide.head_posterior
        assert q is not None
        values = dict(q.named_parameters())
        losses = []
        noise = [torch.randn(3, 1, 1, 3, WIDTH), torch.randn(3, 1, 1, 3)]
        for p in range(3):
            weight, bias = (
                values[f"loc.head-{name}"][0] + values[f"log_scale.head-{name}"][0].exp() * noise[i][p, 0, 0]
                for i, name in enumerate(("weight", "bias"))
            )
            losses.append(torch.nn.functional.cross_entropy(hidden @ weight.T + bias, CLASSES))
    torch.testing.assert_close(nll.detach(), torch.stack(losses).mean())


def test_a_label_for_each_token() -> None:
    model = fill_B(LoRA(bert(), Tagging(3), head=BayesianLinear(bias=False), num_data=N))
    guide, batch = Delta(model), token_batch()
    found = predict(model, guide, Batch(batch.inputs), num_samples=4, return_samples=True)
    padded = predict(model, guide, Batch(pad(batch, 3).inputs), num_samples=4)
    torch.testing.assert_close(padded.mean[:, :7], found.mean)
    with torch.no_grad():
        hidden = model.backbone(**batch.inputs).last_hidden_state
        weight = weight_draw(model, guide, 2)["head.weight"][0]
    real = batch.inputs["attention_mask"].bool()
    torch.testing.assert_close(found.samples[2][real], (hidden @ weight.T).softmax(-1)[real])  # type: ignore[index]


def test_beside_deterministic_cores_of_two_encoders() -> None:
    model = CoLA(encoders(), Categorical(2), rank=3, head=BayesianLinear(), num_data=N)
    guide = Hypernetwork(model, gamma=4)
    found = predict(model, guide, texts_and_audio().without_targets(), num_samples=6)
    assert guide.deterministic
    assert bool((found.epistemic > 1e-4).all())


def test_training_narrows_the_posterior_and_moves_its_mean() -> None:
    model = lora()
    guide = Delta(model)
    before = {name: value.detach().clone() for name, value in guide.named_parameters()}
    fit(model, guide, three_classes(), epochs=3, progress=False)
    assert set(before) == {f"head_posterior.{k}.head-{n}" for k in ("loc", "log_scale") for n in ("weight", "bias")}
    assert all(not torch.equal(value, before[name]) for name, value in guide.named_parameters())


def test_guides_of_pyro_see_the_same_density() -> None:
    model, batch = lora(), three_classes()
    guide = AutoNormal(poutine.block(model, hide=["obs"]))
    guide(batch)
    assert set(guide.median()) == {"head.weight", "head.bias"}
    nodes: Any = poutine.trace(model).get_trace(batch).nodes
    fn, value = nodes["head.weight"]["fn"], nodes["head.weight"]["value"]
    torch.testing.assert_close(fn.log_prob(value), Normal(0.0, WIDTH**-0.5).log_prob(value).sum())
    draws = {name: nodes[name]["value"].expand(4, *nodes[name]["value"].shape) for name in ("head.weight", "head.bias")}
    assert predict(model, draws, batch.without_targets()).mean.shape == (5, 3)


def test_a_prior_of_the_cores_is_not_the_heads() -> None:
    """A prior of shape (r, r) fits no head; the head's own stays, at its own scale."""
    cores = dist.Normal(torch.eye(3), torch.full((3, 3), 0.2))
    head = BayesianLinear(prior_scale=2.0)
    model = StochasticCore(bert(), Categorical(3), rank=3, prior=cores, head=head, num_data=N)
    assert model.head_prior.of(model.head_sites[0]).stddev[0, 0, 0] == torch.tensor(2.0 / WIDTH**0.5)
    assert {site.part.name for site in model.sites} == {"core"}


def test_what_cannot_be() -> None:
    with refuses(ConfigError, "num_data=", "'head.weight'"):
        LoRA(bert(), Categorical(3), head=BayesianLinear())
    with refuses(ConfigError, "prior", "LoRA"):
        LoRA(bert(), Categorical(3), head=BayesianLinear(), num_data=N, prior=dist.Normal(0.0, 1.0))
    with refuses(ConfigError, "prior_scale", -1.0):
        BayesianLinear(prior_scale=-1.0)
    model = lora()
    with refuses(ConfigError, "MeanField", "LoRA", "Delta"):
        MeanField(model)
    with refuses(ConfigError, "head", "random"):
        to_lora(model, Delta(model), bert())
    with refuses(ConfigError, "'head.weight'", "BayesianLinear"):
        model.head(torch.zeros(2, WIDTH))
