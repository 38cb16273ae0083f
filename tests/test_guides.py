"""What each posterior family must do, by exact statements about its distributions."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch

from bayes_adapters import ELBO, AdapterGuide, Bernoulli, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Amortised, Contextual, CrossAttention, MeanField, PooledContext
from bayes_adapters.inference.guide import site_key
from bayes_adapters.models import StochasticDown
from bayes_adapters.sites import SiteCall
from bayes_adapters.surgery.export import to_lora
from tests.helpers import (
    CASES,
    CONTEXT,
    GUIDES,
    assert_same,
    bert,
    core_model,
    loc_scale,
    moments,
    token_batch,
)
from tests.refusals import refuses


@pytest.mark.parametrize(("granularity", "name"), [c for c in CASES if c[1] != "delta"])
def test_kl_equals_torchs_elementwise_sum_over_real_tokens(granularity: str, name: str) -> None:
    model = core_model(granularity)
    guide, batch = GUIDES[name](model), token_batch()
    torch.manual_seed(7)
    found = ELBO(model, guide).terms(batch).kl
    torch.manual_seed(7)
    guide(batch)
    total = torch.zeros(())
    prior = torch.distributions.Normal(0.0, 0.2)
    for site in model.sites:
        q = torch.distributions.Normal(*loc_scale(guide.trace.nodes[site.name]["fn"]))
        each = torch.distributions.kl_divergence(q, prior)
        if granularity == "global":
            total = total + each.sum() / 50
        else:
            rows = each.expand(guide.trace.nodes[site.name]["value"].shape).sum((-1, -2))
            mask = batch.inputs["attention_mask"] if granularity == "token" else torch.ones(batch.size, 1)
            total = total + (rows * mask).sum() / batch.size
    torch.testing.assert_close(found, total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("granularity", "name"), CASES)
def test_every_parameter_of_every_guide_gets_a_gradient(granularity: str, name: str) -> None:
    model = core_model(granularity)
    guide = GUIDES[name](model)
    ELBO(model, guide)(token_batch()).backward()
    for key, p in [*guide.named_parameters(), *model.trainable_parameters().items()]:
        assert p.grad is not None, key
        assert p.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", list(GUIDES))
def test_config_rebuilds_the_guide(name: str) -> None:
    guide = GUIDES[name](core_model())
    again = type(guide)(core_model(), **guide.config())
    assert again.config() == guide.config()
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in guide.state_dict().items()}
    again.load_state_dict(guide.state_dict())


class _Own(MeanField):
    """What an author returns instead of a Gaussian, from its means and deviations."""

    make: Any

    def posterior(self, call: SiteCall, prior: Any) -> Any:
        key = site_key(call.site)
        return type(self).make(self.loc[key], self.rho[key].exp())


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda m, s: dist.Normal(m, s), ("event shape ()", "batch shape (4, 3, 3)")),
        (lambda m, s: dist.Normal(m[..., :1], s[..., :1]).to_event(2), ("event shape (3, 3)", "event shape (3, 1)")),
        (lambda m, s: dist.Normal(m[:3], s[:3]).to_event(2), ((4,), "batch shape (3,)")),
        (lambda m, s: m, ("'core.global'", "pyro.distributions", "Parameter")),
        (lambda m, s: torch.distributions.Normal(m, s), ("pyro.distributions", "torch.distributions.normal.Normal")),
    ],
    ids=["no event", "event", "batch", "tensor", "torch"],
)
def test_a_posterior_of_another_form_is_refused(make: Any, facts: tuple[object, ...]) -> None:
    model = core_model("global")
    guide = type("Own", (_Own,), {"make": staticmethod(make)})(model)
    with refuses(ConfigError, "Own.posterior()", *facts):
        guide(token_batch())


@pytest.mark.parametrize("granularity", ["global", "token"])
def test_a_posterior_without_a_known_mean_trains_and_predicts(granularity: str) -> None:
    def make(loc: Any, scale: Any) -> Any:
        return dist.TransformedDistribution(dist.Normal(loc, scale), [dist.transforms.TanhTransform()]).to_event(2)

    model, batch = core_model(granularity), token_batch()
    guide = type("Flow", (_Own,), {"make": staticmethod(make)})(model)
    ELBO(model, guide)(batch).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in guide.parameters())
    assert predict(model, guide, batch, num_samples=3).probs.isfinite().all()
    with refuses(ConfigError, "TransformedDistribution", "mean_only"):
        predict(model, guide, batch, mean_only=True)
    if granularity == "global":
        with refuses(ConfigError, "TransformedDistribution", "to_lora"):
            to_lora(model, guide, bert())


def test_flipout_needs_a_known_mean() -> None:
    def make(loc: Any, scale: Any) -> Any:
        return dist.TransformedDistribution(dist.Normal(loc, scale), [dist.transforms.TanhTransform()]).to_event(2)

    model = StochasticDown(bert(), Bernoulli(), rank=2, num_data=5, flipout=True)
    with refuses(ConfigError, "TransformedDistribution", "'A.global'", "flipout"):
        type("Flow", (_Own,), {"make": staticmethod(make)})(model)(token_batch())


def test_guide_does_not_own_the_model() -> None:
    guide = Contextual(core_model())
    assert not any("backbone" in key or "lora" in key for key in guide.state_dict())


@pytest.mark.parametrize("name", ["contextual", "cross_attention", "shared_kv", "pooled_context"])
def test_local_guides_refuse_global_cores(name: str) -> None:
    with refuses(ConfigError, "'core.global'", "global", "sequence, token"):
        GUIDES[name](core_model("global"))


# ---- the scale ----


def _zero_heads(guide: Any) -> None:
    with torch.no_grad():
        for p in guide.heads.parameters():
            p.zero_()


def test_sigma_at_zero_pre_activation() -> None:
    batch = token_batch()
    for scale, expected in (("sigmoid_squared", 0.25), ("softplus", math.log(2) + 1e-6)):
        guide = Contextual(core_model(), scale=scale)
        _zero_heads(guide)
        for loc, sigma in moments(guide, batch).values():
            assert loc.abs().max() == 0
            torch.testing.assert_close(sigma, torch.full_like(sigma, expected))


def test_scale_stays_positive_and_its_kl_finite_at_extremes() -> None:
    for scale in ("sigmoid_squared", "softplus"):
        for g in (-1e4, 1e4 if scale == "sigmoid_squared" else 1e2):
            guide = Contextual(core_model(), scale=scale)
            _zero_heads(guide)
            with torch.no_grad():
                for head in guide.heads.values():
                    head.net[2].bias[9:] = g
            kl = ELBO(guide.model, guide).terms(token_batch()).kl
            assert torch.isfinite(kl)
            assert all(
                torch.isfinite(x).all()
                for x in torch.autograd.grad(kl, list(guide.parameters()), allow_unused=True)
                if x is not None
            )


def test_unknown_scale_and_sizes() -> None:
    with refuses(ConfigError, "scale", "'exp'", "softplus"):
        Contextual(core_model(), scale="exp")
    with refuses(ConfigError, "heads=4", "dim=6"):
        CrossAttention(core_model(), context_dim=CONTEXT, dim=6, heads=4)
    with refuses(ConfigError, "init_scale", 0.0):
        MeanField(core_model(), init_scale=0.0)
    with refuses(ConfigError, "width", 1, 0):
        Contextual(core_model(), width=0)


def test_null_context_adds_one_pair_per_key_value_projection() -> None:
    def count(**options: Any) -> int:
        return sum(p.numel() for p in CrossAttention(core_model(), context_dim=CONTEXT, dim=4, **options).parameters())

    assert count() - count(null_context=False) == 4 * 2 * 4
    assert count(share_kv=True) - count(share_kv=True, null_context=False) == 2 * 4


# ---- one class for every context ----


@pytest.mark.parametrize(
    ("options", "named", "own"),
    [
        ({"context": "none"}, Contextual, {}),
        ({"context": "global"}, PooledContext, {"dim": 4}),
        ({"context": "cross_attention", "heads": 2}, CrossAttention, {"dim": 4, "heads": 2}),
        ({"context": "cross_attention", "kv_sharing": "shared"}, CrossAttention, {"dim": 4, "share_kv": True}),
    ],
)
def test_named_guides_are_the_amortised_guide_with_the_context_fixed(
    options: dict[str, Any], named: type[AdapterGuide], own: dict[str, Any]
) -> None:
    model = core_model()
    read = {} if options["context"] == "none" else {"context_dim": CONTEXT}
    torch.manual_seed(1)
    general = Amortised(model, **options, **read, **({"dim": 4} if read else {}))
    torch.manual_seed(1)
    special = named(model, **own, **read)  # type: ignore[call-arg]
    assert_same(moments(general, token_batch()), moments(special, token_batch()))
    assert {n: p.shape for n, p in general.named_parameters()} == {n: p.shape for n, p in special.named_parameters()}


def test_coco_lora_projects_the_pooled_audio_once_and_adapts_it_in_each_layer() -> None:
    model, batch = core_model(), token_batch()
    guide = Amortised(model, context="global_shared_heads", context_dim=CONTEXT, dim=4)
    calls: list[int] = []
    guide.reader.projection.register_forward_hook(lambda *_: calls.append(1))
    found = moments(guide, batch)
    assert len(calls) == 1
    z = guide.trace.nodes[model.sites[0].name]["infer"]["site"].z
    frames = batch.context["audio"]
    rows = torch.stack(
        [
            guide.reader.projection(v[m].mean(0)) if m.any() else guide.reader.null["shared"]
            for v, m in zip(frames.values, frames.mask, strict=True)
        ]
    )
    key = model.sites[0].name.replace(".", "-")
    u = torch.cat([z, guide.reader.layers[key](rows)[:, None].expand(*z.shape[:-1], 4)], -1)
    mean = guide.heads[key].net(u)[..., :9].unflatten(-1, (3, 3))
    torch.testing.assert_close(found[model.sites[0].name][0], mean.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"context": "none", "context_dim": 3}, ("context='none'", "context_dim=3")),
        ({"context": "global"}, ("context='global'", "context_dim")),
        ({"context": "globl", "context_dim": 3}, ("'globl'", "'global'")),
        (
            {"context": "global_shared_heads", "context_dim": 3, "kv_sharing": "shared"},
            ("kv_sharing='shared'", "context='global_shared_heads'"),
        ),
    ],
)
def test_contexts_that_do_not_fit(options: dict[str, Any], facts: tuple[object, ...]) -> None:
    with refuses(ConfigError, *facts):
        Amortised(core_model(), **options)
