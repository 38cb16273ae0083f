"""Guides that weigh each example by its distance: predictions, the ELBO, files and training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from bayes_adapters import ELBO, Batch, Frames, load, predict, save
from bayes_adapters.distributions import base_distribution
from bayes_adapters.errors import ConfigError
from bayes_adapters.inference.handlers import PosteriorMean
from bayes_adapters.priors import GlobalWeights
from bayes_adapters.reliability import Fallback, FrameDensity
from bayes_adapters.training import fit
from tests.helpers import CONTEXT, assert_same, bert, core_model, moments, token_batch
from tests.refusals import refuses
from tests.reliability.parts import KINDS, D, cloud, contexts, fitted, guide_of, heard


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
    assert {"means", "whitening", "limit", "tail", "low", "low_tail"} == set(before)
    weights = [p.detach().clone() for p in guide.parameters()]
    fit(guide.model, guide, [heard(shift=4.0)], epochs=3, clip_norm=1.0, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in guide.reliability.density.named_buffers())
    assert any(not torch.equal(a, b) for a, b in zip(weights, guide.parameters(), strict=True))


@pytest.mark.parametrize("kind", list(KINDS))
def test_errors_at_construction(kind: str) -> None:
    with refuses(ConfigError, 4, "context_dim=6"):
        guide_of(kind, density=fitted(D))
    with refuses(ConfigError, "Gaussian", "Laplace", "'core.encoder.layer.0.attention.self.query'"):
        guide_of(kind, core_model(prior=dist.Laplace(0.0, 1.0)))
    mixed = {"*.query": dist.Normal(0.0, 1.0), "*": dist.Laplace(0.0, 1.0)}
    with refuses(ConfigError, "Gaussian", "Laplace", "'core.encoder.layer.0.attention.self.value'"):
        guide_of(kind, core_model(prior=mixed))
    KINDS[kind](core_model(prior=dist.Laplace(0.0, 1.0)), context_dim=CONTEXT)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_guide_from_its_config_can_be_built_but_not_used_before_its_tensors_are_loaded(kind: str) -> None:
    guide, batch = guide_of(kind, scale=1.0), heard(shift=4.0)
    again = KINDS[kind](guide.model, **json.loads(json.dumps(guide.config())))
    with refuses(ConfigError, "FrameDensity.fit"):
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


def test_falling_back_to_a_prior_whose_weights_are_drawn() -> None:
    """Where nothing is trusted each draw's cores are about its own weights W, as wide as the prior says."""
    model = core_model(prior=GlobalWeights(0.3, 0.2), backbone=bert(1))
    guide, batch = guide_of("pooled_context", model, fallback="prior"), heard(shift=1e4)
    with torch.no_grad(), pyro.plate("samples", 3, dim=-2):
        guide(batch)
    node: Any = guide.trace.nodes[model.sites[0].name]
    weight = guide.trace.nodes[f"weight.{model.sites[0].name}"]["value"]
    guide.trace = type(guide.trace)()
    found = node["fn"].mean[:, 0, 0]
    torch.testing.assert_close(found, weight.reshape(found.shape))
    torch.testing.assert_close(node["fn"].stddev[:, 0, 0], torch.full_like(found, 0.2))
    both = predict(model, guide, batch, num_samples=3, local_samples=2)
    one = predict(model, guide, batch, num_samples=3, local_samples=2, chunk_size=1)
    torch.testing.assert_close(both.mean, one.mean)
