"""What each posterior family must do, by exact statements about its distributions."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pytest
import torch
from bayes_adapters.guides import Contextual, CrossAttention, Delta, MeanField
from bayes_adapters.models import LoRA, StochasticCore
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaModel

from bayes_adapters import ELBO, AdapterGuide, Batch, Bernoulli, Frames, Gaussian, predict
from bayes_adapters.diagnostics import collecting
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.handlers import PosteriorMean
from tests.helpers import CONTEXT, bert, core_model, pad, token_batch
from tests.test_elbo import CASES, GUIDES


def moments(guide: AdapterGuide, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and scale of the posterior at each site, each conditioned on the posterior means of the sites before."""
    with torch.no_grad(), PosteriorMean():
        guide(batch)
    return {s.name: _loc_scale(guide.trace.nodes[s.name]["fn"]) for s in guide.model.sites}


def _loc_scale(fn: Any) -> tuple[Tensor, Tensor]:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn.loc, fn.scale


def assert_same(
    a: dict[str, tuple[Tensor, Tensor]], b: dict[str, tuple[Tensor, Tensor]], mask: Tensor | None = None
) -> None:
    for name, pair in a.items():
        for x, y in zip(pair, b[name], strict=True):
            if mask is not None:
                x, y = x[mask], y[mask]
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def differ(a: dict[str, tuple[Tensor, Tensor]], b: dict[str, tuple[Tensor, Tensor]], row: int) -> bool:
    name = next(iter(a))
    return bool((a[name][0][row] - b[name][0][row]).abs().max() > 1e-4)


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
        q = torch.distributions.Normal(*_loc_scale(guide.trace.nodes[site.name]["fn"]))
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


def test_guide_does_not_own_the_model() -> None:
    guide = Contextual(core_model())
    assert not any("backbone" in key or "lora" in key for key in guide.state_dict())


@pytest.mark.parametrize("name", ["contextual", "cross_attention", "shared_kv", "pooled_context"])
def test_local_guides_refuse_global_cores(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot infer 'core\.global', which is global; it serves sequence, token"):
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
    with pytest.raises(ConfigError, match="Unknown scale 'exp'"):
        Contextual(core_model(), scale="exp")
    with pytest.raises(ConfigError, match="heads must divide dim"):
        CrossAttention(core_model(), context_dim=CONTEXT, dim=6, heads=4)
    with pytest.raises(ConfigError, match="init_scale"):
        MeanField(core_model(), init_scale=0.0)
    with pytest.raises(ConfigError, match="hidden width"):
        Contextual(core_model(), width=0)


# ---- context ----

CONTEXT_GUIDES = ["cross_attention", "shared_kv", "pooled_context"]


def with_null(name: str, **options: Any) -> Any:
    guide = GUIDES[name](core_model(**options))
    with torch.no_grad():
        for p in guide.null.values():
            p.normal_()
    return guide


@pytest.mark.parametrize("name", CONTEXT_GUIDES)
def test_padded_frames_change_nothing(name: str) -> None:
    guide, batch = with_null(name), token_batch()
    frames = batch.context["audio"]
    noise = torch.where(frames.mask[..., None], frames.values, 1000 * torch.randn_like(frames.values))
    noisy = Batch(batch.inputs, batch.targets, {"audio": Frames(noise, frames.mask)})
    reference = moments(guide, batch)
    assert_same(reference, moments(guide, noisy))
    assert_same(reference, moments(guide, pad(batch, 0, frames=6)))


@pytest.mark.parametrize("name", CONTEXT_GUIDES)
def test_permuting_frames_with_their_mask_changes_nothing_but_the_mask_alone_does(name: str) -> None:
    guide, batch = with_null(name), token_batch()
    frames, order = batch.context["audio"], torch.tensor([4, 0, 8, 2, 6, 1, 7, 3, 5])
    reference = moments(guide, batch)

    def permuted(values: Tensor, mask: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return moments(guide, Batch(batch.inputs, batch.targets, {"audio": Frames(values, mask)}))

    assert_same(reference, permuted(frames.values[:, order], frames.mask[:, order]))
    assert differ(reference, permuted(frames.values, frames.mask[:, order]), row=0)


@pytest.mark.parametrize("name", CONTEXT_GUIDES)
def test_missing_audio_of_the_batch_equals_missing_audio_of_every_row(name: str) -> None:
    guide, batch = with_null(name), token_batch()
    frames = batch.context["audio"]
    masked = Batch(batch.inputs, batch.targets, {"audio": Frames(frames.values, torch.zeros_like(frames.mask))})
    absent = batch.without("audio")
    assert absent.context == {}
    assert_same(moments(guide, masked), moments(guide, absent))
    reference = moments(guide, batch)
    assert differ(reference, moments(guide, absent), row=1)
    assert not differ(reference, moments(guide, absent), row=2), "row 2 has no audio in either batch"


@pytest.mark.parametrize("name", CONTEXT_GUIDES)
def test_an_example_does_not_hear_its_neighbour(name: str) -> None:
    guide, batch = with_null(name), token_batch()
    frames = batch.context["audio"]
    louder = frames.values.clone()
    louder[1] += 3.0
    found = moments(guide, Batch(batch.inputs, batch.targets, {"audio": Frames(louder, frames.mask)}))
    reference = moments(guide, batch)
    others = torch.tensor([0, 2, 3, 4])
    assert_same(
        {k: (m[others], s[others]) for k, (m, s) in reference.items()},
        {k: (m[others], s[others]) for k, (m, s) in found.items()},
    )
    assert differ(reference, found, row=1)


def test_context_errors() -> None:
    batch = token_batch()
    strict = CrossAttention(core_model(), context_dim=CONTEXT, dim=4, null_context=False)
    with pytest.raises(DataError, match=r"rows \[2\] is entirely masked"):
        strict(batch)
    with pytest.raises(DataError, match="null_context=False"):
        strict(batch.without("audio"))
    strict(batch[:2])
    with pytest.raises(DataError, match="6 wide; the guide was built with context_dim=7"):
        CrossAttention(core_model(), context_dim=7, dim=4)(batch)
    with pytest.raises(ConfigError, match=r"reads the modality 'audoi'.*Did you mean 'audio'"):
        CrossAttention(core_model(), context_dim=CONTEXT, dim=4, modality="audoi")(batch)


@pytest.mark.parametrize("heads", [1, 2])
def test_silenced_attention_is_contextual_with_a_constant_context(heads: int) -> None:
    """W_k = W_v = 0 and a zero null pair: c_t = 0, so u_t = [z_t ; 0] and only W₁'s first r columns matter."""
    model = core_model()
    cross = CrossAttention(model, context_dim=CONTEXT, dim=4, heads=heads)
    plain = Contextual(model)
    with torch.no_grad():
        for p in [*cross.key.parameters(), *cross.value.parameters()]:
            p.zero_()
        for key, head in plain.heads.items():
            wide = cross.heads[key].net
            head.net[0].weight.copy_(wide[0].weight[:, : model.rank])
            head.net[0].bias.copy_(wide[0].bias)
            head.net[2].load_state_dict(wide[2].state_dict())
    assert_same(moments(cross, token_batch()), moments(plain, token_batch()))


def test_attention_picks_the_frame_it_is_pointed_at() -> None:
    """One dominant key: the context is that frame's value, and the recorded entropy falls to 0."""
    model = core_model()
    guide = CrossAttention(model, context_dim=2, dim=2, null_context=False)
    with torch.no_grad():
        for site in guide.query:
            guide.query[site].weight.zero_()
            guide.key[site].weight.zero_()
    values = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]]).expand(2, 3, 2)
    mask = torch.tensor([[True, True, False]]).expand(2, 3)
    batch = Batch(token_batch(2).inputs, None, {"audio": Frames(values, mask)})
    with collecting() as seen, torch.no_grad():
        guide(batch)
    assert list(seen["attention_entropy"].values()) == pytest.approx([math.log(2)] * len(model.sites), rel=1e-5)


def test_shared_kv_projects_once_and_equals_per_layer_with_tied_weights() -> None:
    model = core_model()
    shared = CrossAttention(model, context_dim=CONTEXT, dim=4, share_kv=True)
    own = CrossAttention(model, context_dim=CONTEXT, dim=4)
    with torch.no_grad():
        for key in own.key:
            own.key[key].load_state_dict(shared.key["shared"].state_dict())
            own.value[key].load_state_dict(shared.value["shared"].state_dict())
            own.query[key].load_state_dict(shared.query[key].state_dict())
            own.heads[key].load_state_dict(shared.heads[key].state_dict())
    calls: list[int] = []
    shared.key["shared"].register_forward_hook(lambda *_: calls.append(1))
    assert_same(moments(shared, token_batch()), moments(own, token_batch()))
    assert len(calls) == 1


# ---- parameter counts ----


def _roberta(layers: int, width: int) -> nn.Module:
    config = RobertaConfig(
        vocab_size=50,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=16 if width == 1024 else 12,
        intermediate_size=4,
    )
    with torch.device("meta"):
        return RobertaModel(config)


@pytest.mark.parametrize(
    ("layers", "width", "lora", "counts"),
    [
        (12, 768, 294_912, {"c": 213_504, "x64": 2_683_392, "s64": 422_400, "x8": 522_240, "s8": 239_616}),
        (24, 1024, 786_432, {"c": 427_008, "x64": 5_366_784, "s64": 746_496}),
    ],
)
def test_parameter_counts_of_roberta(layers: int, width: int, lora: int, counts: dict[str, int]) -> None:
    model = StochasticCore(_roberta(layers, width), Bernoulli(), rank=8)
    assert len(model.sites) == 2 * layers
    assert sum(p.numel() for n, p in model.trainable_parameters().items() if "lora_" in n) == lora
    built = {
        "c": lambda: Contextual(model),
        "x64": lambda: CrossAttention(model, context_dim=768, null_context=False),
        "s64": lambda: CrossAttention(model, context_dim=768, null_context=False, share_kv=True),
        "x8": lambda: CrossAttention(model, context_dim=768, dim=8, null_context=False),
        "s8": lambda: CrossAttention(model, context_dim=768, dim=8, null_context=False, share_kv=True),
    }
    assert {key: sum(p.numel() for p in built[key]().parameters()) for key in counts} == counts


def test_null_context_adds_one_pair_per_key_value_projection() -> None:
    def count(**options: Any) -> int:
        return sum(p.numel() for p in CrossAttention(core_model(), context_dim=CONTEXT, dim=4, **options).parameters())

    assert count() - count(null_context=False) == 4 * 2 * 4
    assert count(share_kv=True) - count(share_kv=True, null_context=False) == 2 * 4


# ---- a posterior that is known ----


@pytest.mark.parametrize("rank", [1, 2])
def test_mean_field_recovers_a_known_gaussian_posterior(rank: int) -> None:
    """One adapted layer whose output is linear in E, Gaussian noise fixed at 0.5: the posterior of E is Gaussian.

    Oracle: f(E) is affine, so J = ∂f/∂E gives precision Λ = JᵀJ/σ² + I and mean Λ⁻¹Jᵀ(y − f(0))/σ². The
    best factorised Gaussian has the same mean and variances 1/Λ_ii (Bishop 2006, 10.1.2). Rank 1: exact posterior.
    Tolerance: 3 % of the scales, 0.02 of the means (Adam, 64 particles, learning rate decaying to 0).
    """

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = type("Config", (), {"hidden_size": 3})()
            self.query = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Any:
            return type("Output", (), {"last_hidden_state": self.query(x)})()

    torch.manual_seed(1)
    model = StochasticCore(
        Linear(),
        Gaussian(math.log(0.5)),
        targets=["query"],
        granularity="global",
        rank=rank,
        alpha=rank,
        num_data=12,
        prior=pyro.distributions.Normal(0.0, 1.0),
    )
    with torch.no_grad():
        model.backbone.query.lora_B.normal_(std=2.0)
        model.head.weight.fill_(1.0)
    model.requires_grad_(False)
    batch = Batch({"x": torch.randn(12, 2, 4)}, torch.randn(12))
    guide = MeanField(model, init_scale=0.3)

    def f(core: Tensor) -> Tensor:
        with torch.no_grad():
            layer, head = model.backbone.query, model.head
            hidden = (
                layer.base_layer(batch.inputs["x"])
                + batch.inputs["x"] @ layer.lora_A.T @ core.reshape(rank, rank).T @ layer.lora_B.T
            )
            return head(hidden.mean(1))[:, 0]

    zero = f(torch.zeros(rank * rank))
    jacobian = torch.stack([f(e) - zero for e in torch.eye(rank * rank)], 1)
    precision = jacobian.T @ jacobian / 0.25 + torch.eye(rank * rank)
    mean = torch.linalg.solve(precision, jacobian.T @ (batch.targets - zero) / 0.25)
    assert (mean.abs() > 0.05).any(), "the oracle is too close to the prior to tell them apart"
    assert (precision.diagonal() > 1.3).all()

    elbo = ELBO(model, guide, num_particles=64)
    optimiser = torch.optim.Adam(guide.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 600 * rank)
    for _ in range(600 * rank):
        optimiser.zero_grad()
        elbo(batch).backward()
        optimiser.step()
        schedule.step()
    key = "core-global"
    torch.testing.assert_close(guide.loc[key].flatten().detach(), mean, rtol=0.0, atol=0.02)
    torch.testing.assert_close(
        guide.log_scale[key].exp().flatten().detach(), precision.diagonal() ** -0.5, rtol=0.03, atol=0.0
    )


def test_delta_finds_the_maximum_a_posteriori_and_predicts_without_epistemic_uncertainty() -> None:
    model = core_model("global")
    guide, batch = Delta(model), token_batch()
    model.requires_grad_(False)
    optimiser = torch.optim.Adam(guide.parameters(), lr=0.05)
    losses = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = ELBO(model, guide)(batch)
        loss.backward()
        losses.append(loss.item())
        optimiser.step()
    assert losses[-1] < losses[0] - 0.01
    assert all(p.grad.abs().max() < 0.02 for p in guide.parameters())
    assert predict(model, guide, batch, num_samples=4).epistemic.max() < 1e-6


def test_delta_of_plain_lora_is_empty() -> None:
    assert not list(Delta(LoRA(bert(), Bernoulli())).parameters())
