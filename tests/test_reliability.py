"""How far a context is from training: the density of frames, what γ does to the posterior, and what stays as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from bayes_adapters import ELBO, AdapterGuide, Batch, Frames, load, predict, save
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import CrossAttention, PooledContext
from bayes_adapters.handlers import PosteriorMean, base_distribution
from bayes_adapters.model import AdapterModel
from bayes_adapters.reliability import Fallback, FrameDensity, Reliability, fall_back
from bayes_adapters.training import fit
from tests.helpers import CONTEXT, assert_same, bert, core_model, moments, token_batch

D = 4
KINDS: dict[str, type[Any]] = {"cross_attention": CrossAttention, "pooled_context": PooledContext}


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cloud(count: int, seed: int, width: int = D, shift: float = 0.0) -> Tensor:
    """Correlated frames with unequal variances."""
    mixing = torch.randn(width, width, generator=rng(99)) + torch.diag(torch.arange(1.0, width + 1))
    return torch.randn(count, width, generator=rng(seed)) @ mixing + shift


def contexts(count: int, seed: int, width: int = D, shift: float = 0.0, length: int = 6) -> Frames:
    values = cloud(count * length, seed, width, shift).reshape(count, length, width)
    lengths = torch.randint(1, length + 1, (count,), generator=rng(seed + 1))
    return Frames(values, torch.arange(length) < lengths[:, None])


def fitted(width: int = D, shifts: tuple[float, ...] = (0.0, 20.0), **options: Any) -> FrameDensity:
    groups = [cloud(400, k, width, shift) for k, shift in enumerate(shifts)]
    held_out = [contexts(200, 50 + k, width, shift) for k, shift in enumerate(shifts)]
    return FrameDensity.fit(groups, held_out, **options)


@pytest.mark.parametrize("ridge", [1e-3, 0.5])
def test_the_distance_is_the_mean_mahalanobis_distance_to_the_nearest_component(ridge: float) -> None:
    density, frames = fitted(ridge=ridge), contexts(30, 7, shift=3.0)
    per_component = []
    for k, shift in enumerate((0.0, 20.0)):
        group = cloud(400, k, D, shift).double()
        covariance = (group - group.mean(0)).T @ (group - group.mean(0)) / 399
        covariance += ridge * covariance.trace() / D * torch.eye(D)
        centred = frames.values.double() - group.mean(0)
        squared = (centred * torch.linalg.solve(covariance, centred.mT.reshape(30, D, 6)).mT).sum(-1)
        gaussian = MultivariateNormal(group.mean(0), covariance)
        peak = gaussian.log_prob(group.mean(0))
        torch.testing.assert_close(squared, 2 * (peak - gaussian.log_prob(frames.values.double())))
        per_component.append([float(squared[b][frames.mask[b]].mean()) / D for b in range(30)])
    expected = torch.tensor(per_component).amin(0)
    torch.testing.assert_close(density.distance(frames), expected, rtol=1e-4, atol=1e-4)


def test_the_nearest_component_counts_for_the_whole_context() -> None:
    near_second = contexts(8, 5, shift=20.0)
    both, first = fitted(), fitted(shifts=(0.0,))
    second = fitted(shifts=(20.0,))
    second.means.copy_(both.means[1:])
    second.whitening.copy_(both.whitening[1:])
    torch.testing.assert_close(both.distance(near_second), second.distance(near_second))
    assert bool((first.distance(near_second) > 5 * both.distance(near_second)).all())
    # a context half of which is near each is far from both
    halves = Frames(torch.cat([cloud(3, 1), cloud(3, 2, shift=20.0)])[None], torch.ones(1, 6, dtype=torch.bool))
    assert float(both.distance(halves)) > 5


def test_masked_frames_have_no_distance_however_large_they_are() -> None:
    density, frames = fitted(), contexts(12, 3)
    huge = frames.values.masked_fill(~frames.mask[..., None], 3e38)
    padded = Frames(
        torch.cat([huge, torch.full((12, 4, D), -1e30)], 1), torch.cat([frames.mask, frames.mask.new_zeros(12, 4)], 1)
    )
    torch.testing.assert_close(density.distance(padded), density.distance(frames))
    changed = frames.values.clone()
    changed[:, 0] += 10.0
    assert bool((density.distance(Frames(changed, frames.mask)) != density.distance(frames)).all())


def test_gamma_is_one_up_to_the_limit_and_then_falls_exponentially() -> None:
    density = FrameDensity(2, 1)
    density.limit.fill_(1.5)
    density.tail.fill_(0.25)
    lengths = torch.tensor([0.0, 1.0, 3.0, 3.5, 4.0])
    values = torch.stack([lengths.sqrt(), torch.zeros(5)], -1)[:, None]
    frames = Frames(values, torch.ones(5, 1, dtype=torch.bool))  # d = |a|² / 2
    gamma = density(frames)
    torch.testing.assert_close(gamma, torch.tensor([1.0, 1.0, 1.0, torch.e**-1, torch.e**-2]))
    assert float(gamma[0]) == 1.0


def test_missing_context_is_trusted_and_an_infinitely_far_one_is_not() -> None:
    density = fitted()
    values = torch.full((2, 3, D), 1e30)
    mask = torch.tensor([[False] * 3, [True] * 3])
    assert density(Frames(values, mask)).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("quantile", [None, 0.75])
def test_the_limit_lets_the_wanted_share_of_contexts_like_those_of_training_pass(quantile: float | None) -> None:
    density = fitted() if quantile is None else fitted(quantile=quantile)
    fresh = Frames(
        *(torch.cat(t) for t in zip(*[_parts(contexts(1000, 800 + s, shift=s)) for s in (0, 20)], strict=True))
    )
    share = float((density(fresh) == 1.0).float().mean())
    wanted = 0.95 if quantile is None else quantile
    assert abs(share - wanted) <= (0.03 if quantile is None else 0.06)  # 400 held-out contexts: ±1 % and ±2 %
    distances = density.distance(fresh)
    assert float(distances.median()) == pytest.approx(float(fitted().limit - density.tail), rel=0.1)
    assert float(distances.mean()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(("quantile", "needed"), [(0.95, 20), (0.75, 20), (0.99, 100)])
def test_a_quantile_needs_enough_held_out_contexts(quantile: float, needed: int) -> None:
    assert bool(FrameDensity.fit([cloud(30, 0)], [contexts(needed, 1)], quantile=quantile).limit.isfinite())
    with pytest.raises(DataError, match=f"needs at least {needed} held-out contexts; got {needed - 1}"):
        FrameDensity.fit([cloud(30, 0)], [contexts(needed - 1, 1)], quantile=quantile)


@pytest.mark.parametrize("quantile", [0.5, 0.0, 1.0, 95.0, float("nan")])
def test_a_limit_lies_above_the_median(quantile: float) -> None:
    with pytest.raises(ConfigError, match=r"quantile .* between 0\.5 and 1; got"):
        FrameDensity.fit([cloud(30, 0)], [contexts(30, 1)], quantile=quantile)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_fewer_frames_than_span_the_space_are_refused(count: int) -> None:
    """N frames about their mean span N − 1 dimensions: the covariance of D or fewer is singular without its ridge."""
    says = rf"Group 1 has {count} frames of width 4.* at least 5 .*recordings.*"
    with pytest.raises(DataError, match=says):
        FrameDensity.fit([cloud(30, 0), cloud(count, 1)], [contexts(30, 2)])
    enough = FrameDensity.fit([cloud(30, 0), cloud(5, 1)], [contexts(30, 2)])
    assert bool(enough.whitening.isfinite().all())


@pytest.mark.parametrize("spoilt", [float("inf"), float("nan"), 1e30])
def test_held_out_contexts_without_a_finite_distance_are_refused(spoilt: float) -> None:
    held_out = contexts(25, 1)
    held_out.values[:3, 0] = spoilt
    with pytest.raises(DataError, match=r"held-out contexts .* finite"):
        FrameDensity.fit([cloud(30, 0)], [held_out])


def _parts(frames: Frames) -> tuple[Tensor, Tensor]:
    return frames.values, frames.mask


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_frames_of_other_precision(dtype: torch.dtype) -> None:
    density, frames = fitted(), contexts(10, 4)
    found = density.distance(Frames(frames.values.to(dtype), frames.mask))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, density.distance(frames), rtol=0.05, atol=0.05)
    low = FrameDensity.fit([cloud(400, 0).to(dtype)], [contexts(40, 9)])
    assert {b.dtype for b in low.buffers()} == {torch.float32}
    torch.testing.assert_close(low.means[0], cloud(400, 0).mean(0), rtol=0.05, atol=0.05)


def test_fit_keeps_no_graph_and_stores_no_parameters() -> None:
    density = FrameDensity.fit([cloud(50, 0).requires_grad_()], [contexts(30, 1)])
    assert not any(b.requires_grad for b in density.buffers())
    assert list(density.parameters()) == []


def test_an_unfitted_density_trusts_nothing_silently() -> None:
    frames = contexts(3, 1)
    for density in (FrameDensity(D, 2), fitted()):
        density.limit.fill_(torch.inf)
        with pytest.raises(ConfigError, match=r"not fitted.*FrameDensity\.fit.*load an adapter"):
            density(frames)


def test_errors_of_fit() -> None:
    good, held_out = cloud(30, 0), contexts(25, 1)
    with pytest.raises(DataError, match="at least one group"):
        FrameDensity.fit([], [held_out])
    with pytest.raises(DataError, match="Group 1 has 1 frame of width 4"):
        FrameDensity.fit([good, good[:1]], [held_out])
    with pytest.raises(DataError, match="at least 20 held-out contexts; got 0"):
        FrameDensity.fit([good], [])
    silent = Frames(held_out.values, held_out.mask & (torch.arange(25) < 19)[:, None])
    with pytest.raises(DataError, match="at least 20 held-out contexts; got 19"):
        FrameDensity.fit([good], [silent])
    with pytest.raises(DataError, match=r"one width; got \[3, 4\]"):
        FrameDensity.fit([good, good[:, :3]], [held_out])
    with pytest.raises(DataError, match="group 1 have no usable covariance"):
        FrameDensity.fit([good, torch.ones(5, D)], [held_out])
    with pytest.raises(DataError, match="group 0 have no usable covariance"):
        FrameDensity.fit([good.index_fill(0, torch.tensor([3]), torch.nan)], [held_out])
    with pytest.raises(ConfigError, match="at least one component; got 0"):
        FrameDensity(D, 0)


def gaussians() -> tuple[Any, Any]:
    r = rng(3)
    loc, scale = torch.randn(3, 2, 2, 2, generator=r), 0.1 + torch.rand(3, 2, 2, 2, generator=r)
    return dist.Normal(loc, scale).to_event(2), dist.Normal(torch.eye(2), torch.full((2, 2), 0.7)).to_event(2)


@pytest.mark.parametrize("scale", [None, 1.3])
def test_falling_back_has_the_moments_of_the_mixture(scale: float | None) -> None:
    q, p = gaussians()
    gamma = torch.tensor([0.25, 0.6, 0.9])
    found = base_distribution(fall_back(q, p, gamma, scale, Fallback.PRIOR))
    wide = Normal(torch.eye(2), 0.7 if scale is None else scale)
    count, r = 200_000, rng(0)
    own = torch.randn(count, 3, 2, 2, 2, generator=r) * base_distribution(q).scale + base_distribution(q).loc
    other = torch.randn(count, 3, 2, 2, 2, generator=r) * wide.scale + wide.loc
    trusted = torch.rand(count, 3, 1, 1, 1, generator=r) < gamma[:, None, None, None]
    draws = torch.where(trusted, own, other).double()
    torch.testing.assert_close(found.loc.double(), draws.mean(0), rtol=0.0, atol=0.02)
    torch.testing.assert_close(found.variance.double(), draws.var(0), rtol=0.03, atol=0.01)
    b, mu, sigma = 1, float(base_distribution(q).loc[1, 0, 0, 1]), float(base_distribution(q).scale[1, 0, 0, 1])
    beta = 0.7 if scale is None else scale
    second = 0.6 * (sigma**2 + mu**2) + 0.4 * (beta**2 + 0.0)
    assert float(found.variance[b, 0, 0, 1]) == pytest.approx(second - (0.6 * mu) ** 2, rel=1e-5)


@pytest.mark.parametrize("scale", [None, 1.3])
def test_full_trust_is_the_posterior_bit_for_bit_and_none_is_the_prior(scale: float | None) -> None:
    q, p = gaussians()
    full = base_distribution(fall_back(q, p, torch.ones(3), scale, Fallback.PRIOR))
    assert torch.equal(full.loc, base_distribution(q).loc)
    assert torch.equal(full.scale, base_distribution(q).scale)
    for gamma in (0.0, 1e-8):
        none = base_distribution(fall_back(q, p, torch.full((3,), gamma), scale, Fallback.PRIOR))
        torch.testing.assert_close(none.loc, torch.eye(2).expand(3, 2, 2, 2))
        torch.testing.assert_close(none.scale, torch.full((3, 2, 2, 2), 0.7 if scale is None else scale))


@pytest.mark.parametrize("scale", [None, 1.3])
def test_widening_keeps_the_mean_and_has_the_mixtures_variance(scale: float | None) -> None:
    q, p = gaussians()
    gamma = torch.tensor([0.0, 0.6, 1.0])
    found, own = base_distribution(fall_back(q, p, gamma, scale)), base_distribution(q)
    assert torch.equal(found.loc, own.loc)
    wide = torch.full((3, 2, 2, 2), 0.7 if scale is None else scale)
    weights = gamma[:, None, None, None]
    torch.testing.assert_close(found.variance, weights * own.variance + (1 - weights) * wide.square())
    assert torch.equal(found.scale[2], own.scale[2])


def test_falling_back_needs_gaussians() -> None:
    q, p = gaussians()
    for first, second, name in (
        (q, dist.Laplace(0.0, 1.0), "prior Laplace"),
        (dist.Laplace(q.mean, 1.0), p, "Laplace"),
    ):
        with pytest.raises(ConfigError, match=name):
            fall_back(first, second, torch.ones(3))


# ---- guides ----


def guide_of(kind: str, model: AdapterModel | None = None, **options: Any) -> AdapterGuide:
    how = {name: options.pop(name) for name in ("density", "fallback", "scale") if name in options}
    reliability = Reliability(**({"density": fitted(CONTEXT, shifts=(0.0,)), "fallback": "prior"} | how))
    settings = {"context_dim": CONTEXT, "dim": 4, "reliability": reliability} | options
    return KINDS[kind](model or core_model(), **settings)


@pytest.mark.parametrize("kind", list(KINDS))
def test_widening_raises_the_epistemic_part_and_leaves_the_mean_pass_alone(kind: str) -> None:
    model = core_model()
    guide, batch = guide_of(kind, model, fallback="widen", scale=1.0), heard(shift=6.0)
    far, mean = predict(model, guide, batch, num_samples=32), predict(model, guide, batch, mean_only=True)
    guide.reliability = None
    trusting = predict(model, guide, batch, num_samples=32)
    present = torch.tensor([0, 1, 3, 4])
    assert bool((far.epistemic[present] > trusting.epistemic[present]).all())
    assert far.epistemic[2] == trusting.epistemic[2]  # missing: nothing to distrust
    assert torch.isfinite(mean.mean).all()


def heard(shift: float = 0.0, size: int = 5) -> Batch:
    """Tokens with audio from the training distribution, moved by ``shift``; row 2's is missing."""
    batch = token_batch(size)
    values = cloud(size * 9, 31, CONTEXT).reshape(size, 9, CONTEXT) + shift
    mask = torch.ones(size, 9, dtype=torch.bool)
    mask[2::3] = False
    return Batch(batch.inputs, batch.targets, {"audio": Frames(values, mask)})


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("scale", [None, 1.0])
def test_a_guide_weighs_each_example_by_its_own_distance(kind: str, scale: float | None) -> None:
    guide, batch = guide_of(kind, scale=scale), heard(shift=4.0)
    batch.context["audio"].values[1] = cloud(9, 31, CONTEXT)  # near
    gamma = guide.reliability.density(batch.context["audio"])
    assert gamma[1] == 1.0
    assert gamma[2] == 1.0  # missing
    assert bool((gamma[[0, 3, 4]] < 0.9).all())
    plain = KINDS[kind](guide.model, context_dim=CONTEXT, dim=4)
    plain.load_state_dict({k: v for k, v in guide.state_dict().items() if not k.startswith("reliability.")})
    first = guide.model.sites[0].name
    expected_loc, expected_scale = moments(plain, batch)[first]
    loc, found_scale = moments(guide, batch)[first]
    g = gamma[:, None, None, None]
    beta = 0.2 if scale is None else scale
    torch.testing.assert_close(loc, g * expected_loc)
    variance = g * expected_scale**2 + (1 - g) * beta**2 + g * (1 - g) * expected_loc**2
    torch.testing.assert_close(found_scale, variance.sqrt())
    for row in (1, 2):
        assert torch.equal(loc[row], expected_loc[row])


@pytest.mark.parametrize("kind", list(KINDS))
def test_missing_audio_makes_no_difference_to_a_guide_with_reliability(kind: str) -> None:
    guide = guide_of(kind, scale=1.0)
    plain = KINDS[kind](guide.model, context_dim=CONTEXT, dim=4)
    plain.load_state_dict({k: v for k, v in guide.state_dict().items() if not k.startswith("reliability.")})
    for batch in (heard().without("audio"), Batch(heard().inputs, None, {"audio": _masked(heard())})):
        a, b = (predict(guide.model, g, batch, num_samples=4) for g in (guide, plain))
        assert torch.equal(a.probs, b.probs)
    far = heard(shift=8.0)
    assert not torch.equal(*(predict(guide.model, g, far, num_samples=4).probs for g in (guide, plain)))


def _masked(batch: Batch) -> Frames:
    frames = batch.context["audio"]
    return Frames(frames.values, torch.zeros_like(frames.mask))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("scale", [None, 1.0])
def test_the_elbo_holds_the_kl_of_the_fallen_back_posterior(kind: str, scale: float | None) -> None:
    model = core_model(backbone=bert(layers=1), targets=["query"])
    guide, batch = guide_of(kind, model, scale=scale), heard(shift=6.0)
    terms = ELBO(model, guide, kl_weight=0.3).terms(batch)
    loc, sigma = moments(guide, batch)[model.sites[0].name]  # the only site's feature does not depend on a draw
    each = kl_divergence(Normal(loc, sigma), Normal(0.0, 0.2)).sum((-1, -2))
    expected = (each * batch.token_mask).sum(-1).mean()
    torch.testing.assert_close(terms.kl, 0.3 * expected)
    torch.testing.assert_close(terms.loss, terms.nll + terms.kl)
    plain = KINDS[kind](model, context_dim=CONTEXT, dim=4)
    plain.load_state_dict({k: v for k, v in guide.state_dict().items() if not k.startswith("reliability.")})
    without = ELBO(model, plain, kl_weight=0.3).terms(batch)
    assert abs(terms.kl.item() - without.kl.item()) > 1e-2
    terms.loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in guide.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", list(KINDS))
def test_kl_and_gradients_are_finite_however_far_the_context_is(kind: str) -> None:
    model = core_model()
    guide, batch = guide_of(kind, model, scale=1.0), heard(shift=1e4)
    assert float(guide.reliability.density(batch.context["audio"]).min()) == 0.0
    loss = ELBO(model, guide)(batch)
    loss.backward()
    assert bool(loss.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in guide.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", list(KINDS))
def test_epistemic_uncertainty_grows_with_the_distance(kind: str) -> None:
    guide = guide_of(kind, scale=1.0)
    with torch.no_grad():
        for head in guide.heads.values():
            head.net[2].bias[9:] = -4.0  # a confident network: σ = sigmoid(-4)² = 0.0003 where it is believed
    direction = torch.ones(CONTEXT)
    near = cloud(9, 31, CONTEXT)
    shifts = torch.tensor([0.0, 2.0, 4.0, 30.0])
    values = near + shifts[:, None, None] * direction
    tokens = token_batch(1).inputs
    batch = Batch(
        {k: v.expand(4, -1) for k, v in tokens.items()},
        None,
        {"audio": Frames(values, torch.ones(4, 9, dtype=torch.bool))},
    )
    gamma = guide.reliability.density(batch.context["audio"])
    assert gamma[0] == 1.0
    assert bool((gamma.diff() < 0).all())
    epistemic = predict(guide.model, guide, batch, num_samples=256).epistemic
    assert bool((epistemic.diff() > 0).all()), epistemic
    assert float(epistemic[3]) > 20 * float(epistemic[0])


@pytest.mark.parametrize("kind", list(KINDS))
def test_draws_stay_repeatable_and_independent_of_the_batching(kind: str) -> None:
    guide, batch = guide_of(kind, scale=1.0), heard(shift=4.0)
    whole = predict(guide.model, guide, batch, num_samples=6)
    parts = predict(guide.model, guide, [batch[:2], batch[2:]], num_samples=6, chunk_size=4)
    torch.testing.assert_close(whole.probs, parts.probs)
    assert torch.equal(whole.probs, predict(guide.model, guide, batch, num_samples=6).probs)
    assert not torch.equal(whole.probs, predict(guide.model, guide, batch, num_samples=6, seed=1).probs)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("scale", [None, 0.8])
def test_saved_and_loaded(kind: str, scale: float | None, tmp_path: Path) -> None:
    guide, batch = guide_of(kind, scale=scale), heard(shift=4.0)
    before = predict(guide.model, guide, batch, num_samples=5)
    save(tmp_path / "adapter", guide.model, guide)
    model, loaded = load(tmp_path / "adapter", bert())
    after = predict(model, loaded, batch, num_samples=5)
    assert torch.equal(before.probs, after.probs)
    assert torch.equal(before.epistemic, after.epistemic)
    assert loaded.reliability.config() == guide.reliability.config()
    assert loaded.reliability.scale == scale
    assert loaded.reliability.fallback is Fallback.PRIOR
    for name, buffer in guide.reliability.named_buffers():
        assert torch.equal(buffer, loaded.reliability.get_buffer(name)), name


@pytest.mark.parametrize("kind", list(KINDS))
def test_training_leaves_the_density_as_it_is(kind: str) -> None:
    guide = guide_of(kind, scale=1.0)
    before = {k: v.clone() for k, v in guide.reliability.density.named_buffers()}
    assert {"means", "whitening", "limit", "tail"} == set(before)
    weights = [p.detach().clone() for p in guide.parameters()]
    fit(guide.model, guide, [heard(shift=4.0)], epochs=3, clip_norm=1.0, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in guide.reliability.density.named_buffers())
    assert any(not torch.equal(a, b) for a, b in zip(weights, guide.parameters(), strict=True))


@pytest.mark.parametrize("kind", list(KINDS))
def test_errors_at_construction(kind: str) -> None:
    with pytest.raises(ConfigError, match="density is 4 wide and the guide has context_dim=6"):
        guide_of(kind, density=fitted(D))
    with pytest.raises(ConfigError, match=r"falls back to a Gaussian prior; the prior of 'core\..*' is Laplace"):
        guide_of(kind, core_model(prior=dist.Laplace(0.0, 1.0)))
    mixed = {"*.query": dist.Normal(0.0, 1.0), "*": dist.Laplace(0.0, 1.0)}
    with pytest.raises(ConfigError, match=r"prior of 'core\..*value' is Laplace"):
        guide_of(kind, core_model(prior=mixed))
    KINDS[kind](core_model(prior=dist.Laplace(0.0, 1.0)), context_dim=CONTEXT)


def test_errors_of_reliability() -> None:
    density = fitted()
    for value in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=f"scale is a standard deviation .* got {value}"):
            Reliability(density, scale=value)
    with pytest.raises(ConfigError, match=r"Unknown fallback 'wide'.*Did you mean 'widen'"):
        Reliability(density, "wide")
    whole = Reliability(density, "prior", 0.5).config()
    for broken in ({}, {"density": whole["density"]}, whole | {"fallback_scale": 1.0}, whole | {"density": {}}):
        with pytest.raises(ConfigError, match=r"Reliability\.config\(\)"):
            Reliability.from_config(broken)


def test_reliability_comes_back_from_its_config_unfitted() -> None:
    config = Reliability(fitted(), "prior", 0.5).config()
    assert config == {"density": {"context_dim": D, "components": 2}, "fallback": "prior", "scale": 0.5}
    again = Reliability.from_config(json.loads(json.dumps(config)))
    assert again.config() == config
    assert again.density.means.shape == (2, D)
    assert bool(again.density.limit.isinf())


def test_reliability_weighs_like_fall_back_and_leaves_absent_context_alone() -> None:
    q, p = gaussians()
    reliability, frames = Reliability(fitted(), "prior", 1.3), contexts(3, 7, shift=6.0)
    scratch: dict[str, Tensor] = {}
    found = base_distribution(reliability(q, p, frames, scratch))
    expected = base_distribution(fall_back(q, p, reliability.density(frames), 1.3, Fallback.PRIOR))
    assert torch.equal(found.loc, expected.loc)
    assert torch.equal(found.scale, expected.scale)
    assert not torch.equal(found.scale, base_distribution(q).scale)
    assert reliability(q, p, None, {}) is q
    reliability.density.limit.fill_(100.0)
    assert torch.equal(base_distribution(reliability(q, p, frames, scratch)).scale, expected.scale), "one γ a pass"
    assert torch.equal(base_distribution(reliability(q, p, frames, {})).scale, base_distribution(q).scale)


def test_two_reliabilities_in_one_pass_do_not_share_their_weight() -> None:
    q, p = gaussians()
    frames, scratch = contexts(3, 7, shift=6.0), {}
    strict, lenient = Reliability(fitted()), Reliability(fitted())
    lenient.density.limit.fill_(100.0)
    strict(q, p, frames, scratch)
    assert torch.equal(base_distribution(lenient(q, p, frames, scratch)).scale, base_distribution(q).scale)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_guide_from_its_config_can_be_built_but_not_used_before_its_tensors_are_loaded(kind: str) -> None:
    guide, batch = guide_of(kind, scale=1.0), heard(shift=4.0)
    again = KINDS[kind](guide.model, **json.loads(json.dumps(guide.config())))
    with pytest.raises(ConfigError, match="load an adapter"):
        predict(guide.model, again, batch, num_samples=2)
    predict(guide.model, again, batch.without("audio"), num_samples=2)  # there is no frame to weigh
    again.load_state_dict(guide.state_dict())
    a, b = (predict(guide.model, g, batch, num_samples=2).probs for g in (guide, again))
    assert torch.equal(a, b)


def test_an_identity_prior_is_fallen_back_to() -> None:
    prior = dist.Normal(torch.eye(3), torch.full((3, 3), 0.2))
    guide = guide_of("pooled_context", core_model(prior=prior))
    loc, scale = moments(guide, heard(shift=1e4))[guide.model.sites[0].name]
    torch.testing.assert_close(loc[0], torch.eye(3).expand_as(loc[0]))
    torch.testing.assert_close(scale[0], torch.full_like(scale[0], 0.2))


@pytest.mark.parametrize("kind", list(KINDS))
def test_several_draws_share_one_weight(kind: str) -> None:
    """Sample plates around the model: γ of example b must meet row b of every sample."""
    guide, batch = guide_of(kind), heard(shift=4.0)
    single = moments(guide, batch)
    with torch.no_grad(), PosteriorMean(), pyro_plates():
        guide(batch)
    name = guide.model.sites[0].name
    fn = base_distribution(guide.trace.nodes[name]["fn"])
    assert fn.loc.shape[:3] == (2, 3, 5)
    assert_same({name: (fn.loc[1, 2], fn.scale[1, 2])}, {name: single[name]})


def pyro_plates() -> Any:
    from contextlib import ExitStack

    import pyro

    stack = ExitStack()
    stack.enter_context(pyro.plate("outer", 2, dim=-3))
    stack.enter_context(pyro.plate("inner", 3, dim=-2))
    return stack


def test_the_density_follows_its_guide() -> None:
    guide = guide_of("cross_attention")
    assert {b.device.type for b in guide.to("meta").reliability.buffers()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_density_on_a_gpu() -> None:
    on_gpu = FrameDensity.fit([cloud(400, 0).cuda()], [contexts(40, 9).to("cuda")])
    here = FrameDensity.fit([cloud(400, 0)], [contexts(40, 9)])
    frames = contexts(10, 4, shift=1.0)
    torch.testing.assert_close(on_gpu(frames.to("cuda")).cpu(), here(frames), rtol=1e-3, atol=1e-3)
    guide = guide_of("cross_attention")
    guide.model.to("cuda")
    guide.to("cuda")
    batch = heard(shift=4.0)
    assert predict(guide.model, guide, batch, num_samples=2).probs.device.type == "cuda"
