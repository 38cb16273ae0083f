"""The variational last layer: bounds, exact cases, predictions and files, each against arithmetic of another kind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters import (
    ELBO,
    AdapterGuide,
    AdapterModel,
    Batch,
    Bernoulli,
    Categorical,
    Gaussian,
    Tagging,
    load,
    predict,
    save,
)
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, CrossAttention, Delta, MeanField
from bayes_adapters.heads import VariationalLastLayer
from bayes_adapters.inference.draws import weight_draw
from bayes_adapters.likelihoods import GaussianOutputs, HeteroscedasticGaussian, MultiGaussian, StudentT
from bayes_adapters.models import LoRA, StochasticCore
from bayes_adapters.training import fit
from tests.helpers import CONTEXT, WIDTH, Linear, bert, fill_B, pad, token_batch
from tests.refusals import refuses

N = 50
CLASSES = torch.tensor([0, 1, 2, 1, 0])
COVARIANCES = ["diagonal", "low_rank", "dense"]


def last_layer(likelihood: Any = None, **options: Any) -> tuple[AdapterModel, AdapterGuide]:
    """A trained-looking LoRA whose head has a wide posterior."""
    torch.manual_seed(2)
    head = VariationalLastLayer(**({"init_scale": 1.0, "pooling": "cls"} | options))
    model = fill_B(LoRA(bert(), likelihood or Categorical(3), head=head, num_data=N))
    guide = Delta(model)
    with torch.no_grad():
        for name, value in guide.head_posterior.named_parameters():  # type: ignore[union-attr]
            if name.endswith(("factor", "lower")):
                value.normal_(0.0, 0.1)
    return model, guide


def phi(model: AdapterModel, batch: Batch) -> Tensor:
    hidden: Tensor = model.backbone(**batch.inputs).last_hidden_state[:, 0].detach()
    return torch.cat([hidden, hidden.new_full((len(hidden), 1), math.sqrt(hidden.shape[1]))], 1)


def posterior(guide: AdapterGuide) -> tuple[Tensor, Tensor]:
    """M, shape (K, D), and S, shape (K, D, D), by hand from the parameters."""
    values = {name.rsplit(".", 1)[-1]: value.detach() for name, value in guide.head_posterior.named_parameters()}  # type: ignore[union-attr]
    scale = values["log_scale"][0].exp()
    if "lower" in values:
        lower = values["lower"][0].tril(-1) + torch.diag_embed(scale)
        return values["loc"][0], lower @ lower.mT
    low = values["factor"][0] @ values["factor"][0].mT if "factor" in values else 0.0
    return values["loc"][0], torch.diag_embed(scale.square()) + low


def noise(guide: AdapterGuide) -> Tensor:
    return dict(guide.named_parameters())["head_posterior.log_noise"][0].exp().detach()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_loss_by_hand(covariance: str) -> None:
    """Bound, KL per data set, and the density of the noise, each from its formula."""
    model, guide = last_layer(covariance=covariance, noise_prior=(2.0, 0.3))
    batch = token_batch(targets=CLASSES)
    terms = ELBO(model, guide).terms(batch)
    mean, cov = posterior(guide)
    features, sigma = phi(model, batch), noise(guide)
    variance = torch.einsum("bi,kij,bj->bk", features, cov, features) + sigma
    logits = features @ mean.T
    bound = logits[torch.arange(5), CLASSES] - torch.logsumexp(logits + 0.5 * variance, -1)
    torch.testing.assert_close(terms.nll, -bound.mean(), check_dtype=False, rtol=1e-4, atol=1e-5)
    s2, width = 1.0 / WIDTH, features.shape[1]  # s₀ = 1
    trace = cov.diagonal(dim1=-2, dim2=-1).sum(-1) / s2
    kl = 0.5 * (trace + mean.square().sum(-1) / s2 - width + width * math.log(s2) - torch.logdet(cov))
    density = 2.0 * math.log(0.3) - math.lgamma(2.0) - 3.0 * sigma.log() - 0.3 / sigma
    torch.testing.assert_close(terms.kl, (kl - density).sum() / N, check_dtype=False, rtol=1e-4, atol=1e-5)


def test_without_variance_it_is_the_cross_entropy_of_a_linear_layer() -> None:
    model, guide = last_layer(noise_prior=None)
    batch = token_batch(targets=CLASSES)
    with torch.no_grad():
        dict(guide.named_parameters())["head_posterior.weight.log_scale"].fill_(-20.0)
    logits = phi(model, batch) @ posterior(guide)[0].T
    torch.testing.assert_close(ELBO(model, guide).terms(batch).nll, F.cross_entropy(logits, CLASSES))


@pytest.mark.parametrize("size", [0.01, 0.3, 3.0])
def test_it_is_a_bound_and_tight_where_variances_are_small(size: float) -> None:
    """Against 100 000 draws of the outputs; the gap is of the order of the variance."""
    torch.manual_seed(0)
    mean, variance = torch.randn(6, 4), size * torch.rand(6, 4)
    draws = mean + variance.sqrt() * torch.randn(100_000, 6, 4)
    outputs = GaussianOutputs(mean, variance)
    for likelihood, targets, columns in ((Categorical(4), torch.arange(6) % 4, 4), (Bernoulli(), torch.rand(6), 1)):
        part = GaussianOutputs(outputs.mean[:, :columns], outputs.variance[:, :columns])
        scores = likelihood.distribution(draws[..., :columns]).log_prob(targets)
        gap = scores.mean(0) - likelihood.expected(part).log_prob(targets)
        error = scores.std(0) / math.sqrt(100_000)
        assert bool((gap > -4 * error).all())
        assert bool((gap < size).all())


def test_expected_scores_of_numbers_are_exact() -> None:
    torch.manual_seed(0)
    mean, variance, targets = torch.randn(4, 2), torch.rand(4, 2), torch.randn(4, 2)
    draws = mean + variance.sqrt() * torch.randn(400_000, 4, 2)
    for likelihood, columns in ((Gaussian(-0.2, target_mean=1.0, target_scale=3.0), 1), (MultiGaussian(2), 2)):
        wanted = targets[:, 0] if columns == 1 else targets
        part = GaussianOutputs(mean[:, :columns], variance[:, :columns])
        fn = likelihood.expected(part.reshape(1, 4, columns))
        scores = likelihood.distribution(draws[..., :columns]).log_prob(wanted)
        torch.testing.assert_close(fn.log_prob(wanted)[0], scores.mean(0), rtol=0, atol=0.01)
        density = torch.logsumexp(scores, 0) - math.log(400_000)
        torch.testing.assert_close(likelihood.log_density(fn, wanted)[0], density, rtol=0, atol=0.01)
        found = likelihood.predict(likelihood.summarise(fn), 1)
        sampled = likelihood.distribution(draws[:20_000, ..., :columns])
        by_draws = likelihood.predict(likelihood.summarise(sampled), 20_000)
        for name in ("mean", "variance", "total", "aleatoric", "epistemic"):
            torch.testing.assert_close(getattr(found, name), getattr(by_draws, name), rtol=0.03, atol=0.03)


# regression against the conjugate posterior


def regression(**options: Any) -> tuple[AdapterModel, AdapterGuide, Batch, Tensor]:
    """Fixed features of one linear layer, 20 targets, everything in double precision."""
    torch.manual_seed(4)
    head = VariationalLastLayer(**({"covariance": "dense", "prior_scale": 1.5, "noise_prior": None} | options))
    model = LoRA(Linear(), Gaussian(math.log(0.5)), targets=["query"], rank=1, head=head, num_data=20).double()
    batch = Batch({"x": torch.randn(20, 2, 4).double()}, torch.randn(20).double())
    for p in model.parameters():
        p.requires_grad_(False)
    hidden = model.backbone(**batch.inputs).last_hidden_state.mean(1)
    features = torch.cat([hidden, hidden.new_full((20, 1), math.sqrt(3.0))], 1).detach()
    return model, Delta(model).double(), batch, features


def conjugate(features: Tensor, targets: Tensor, sigma2: float, s2: float = 1.5**2 / 3) -> tuple[Tensor, Tensor]:
    cov = torch.linalg.inv(torch.eye(features.shape[1]).double() / s2 + features.T @ features / sigma2)
    return cov @ features.T @ targets / sigma2, cov


def put(guide: AdapterGuide, mean: Tensor, cov: Tensor) -> None:
    lower = torch.linalg.cholesky(cov)
    with torch.no_grad():
        values = dict(guide.named_parameters())
        values["head_posterior.weight.loc"][0, 0] = mean
        values["head_posterior.weight.log_scale"][0, 0] = lower.diagonal().log()
        values["head_posterior.weight.lower"][0, 0] = lower.tril(-1)


def test_at_the_conjugate_posterior_the_loss_is_the_evidence() -> None:
    model, guide, batch, features = regression()
    put(guide, *conjugate(features, batch.targets, 0.25))  # type: ignore[arg-type]
    loss = ELBO(model, guide)(batch)
    cov = 0.25 * torch.eye(20).double() + 1.5**2 / 3 * features @ features.T
    evidence = torch.distributions.MultivariateNormal(torch.zeros(20).double(), cov).log_prob(batch.targets)
    torch.testing.assert_close(loss, -evidence / 20)
    loss.backward()
    for name, value in guide.named_parameters():
        torch.testing.assert_close(value.grad, torch.zeros_like(value), rtol=0, atol=1e-8, msg=name)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_training_finds_the_conjugate_posterior(covariance: str) -> None:
    """Dense: all of it; of fewer numbers: its mean, and where independent the inverse precisions."""
    model, guide, batch, features = regression(covariance=covariance, covariance_rank=1)
    optimizer = torch.optim.LBFGS(guide.parameters(), max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-9)
    elbo = ELBO(model, guide)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = elbo(batch)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    mean, cov = conjugate(features, batch.targets, 0.25)  # type: ignore[arg-type]
    found_mean, found_cov = (value[0] for value in posterior(guide))
    torch.testing.assert_close(found_mean, mean, rtol=1e-3, atol=1e-3)
    if covariance == "dense":
        torch.testing.assert_close(found_cov, cov, rtol=1e-3, atol=1e-3)
    if covariance == "diagonal":
        torch.testing.assert_close(found_cov.diagonal(), 1 / torch.linalg.inv(cov).diagonal(), rtol=1e-3, atol=1e-4)


def test_the_noise_is_where_the_inverse_gamma_says() -> None:
    """``σ² = (b + ½ Σ (r² + φᵀSφ)) / (a + 1 + N/2)`` makes the loss stationary, and by its prior is no other."""
    model, guide, batch, features = regression(noise_prior=(3.0, 2.0))
    mean, cov = conjugate(features, batch.targets, 0.25)  # type: ignore[arg-type]
    put(guide, mean, cov)
    spread = (features @ cov * features).sum(1) + (batch.targets - features @ mean).square()  # type: ignore[operator]
    sigma2 = (2.0 + 0.5 * spread.sum()) / (3.0 + 1.0 + 10.0)
    log_scale: nn.Parameter = model.likelihood.log_scale  # type: ignore[assignment]
    log_scale.requires_grad_(True)
    with torch.no_grad():
        log_scale.copy_(0.5 * sigma2.log())
    ELBO(model, guide)(batch).backward()
    torch.testing.assert_close(log_scale.grad, torch.zeros_like(log_scale), rtol=0, atol=1e-9)


def test_the_predictive_of_numbers_is_exact_and_needs_one_pass() -> None:
    model, guide, batch, features = regression()
    mean, cov = conjugate(features, batch.targets, 0.25)  # type: ignore[arg-type]
    put(guide, mean, cov)
    passes: list[int] = []
    model.backbone.register_forward_hook(lambda *args: passes.append(len(args[2].last_hidden_state)))
    found = predict(model, guide, batch, num_samples=32)
    variance = (features @ cov * features).sum(1) + 0.25
    torch.testing.assert_close(found.mean, (features @ mean).float())
    torch.testing.assert_close(found.variance, variance.float())
    torch.testing.assert_close(found.epistemic, 0.5 * (variance / 0.25).log().float())
    density = torch.distributions.Normal(features @ mean, variance.sqrt()).log_prob(batch.targets)
    torch.testing.assert_close(found.log_density, density, check_dtype=False)
    assert (passes, found.num_samples) == ([20], 32)
    point = predict(model, guide, batch, mean_only=True)
    torch.testing.assert_close(point.variance, torch.full((20,), 0.25))
    assert not point.epistemic.any()


# what is predicted of classes


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_predictive_of_classes_is_that_of_drawn_weights(covariance: str) -> None:
    """Brute force: 20 000 W from torch's generator, and noise on each logit."""
    model, guide = last_layer(covariance=covariance, noise_prior=(1.0, 1.0))
    batch = token_batch(targets=CLASSES)
    found = predict(model, guide, batch, num_samples=4000)
    mean, cov = posterior(guide)
    torch.manual_seed(0)
    weights = torch.distributions.MultivariateNormal(mean, cov).sample((20_000,))
    logits = torch.einsum("bi,ski->sbk", phi(model, batch), weights)
    probs = (logits + noise(guide).sqrt() * torch.randn_like(logits)).softmax(-1)
    expected = probs.mean(0)
    torch.testing.assert_close(found.mean, expected, rtol=0, atol=0.025)
    aleatoric = torch.special.entr(probs).sum(-1).mean(0)
    torch.testing.assert_close(found.aleatoric, aleatoric, rtol=0, atol=0.02)
    torch.testing.assert_close(found.epistemic, torch.special.entr(expected).sum(-1) - aleatoric, rtol=0, atol=0.02)
    point = predict(model, guide, batch, mean_only=True)
    torch.testing.assert_close(point.mean, (phi(model, batch) @ mean.T).softmax(-1))


def test_draws_do_not_depend_on_batch_or_chunk_and_cost_one_pass() -> None:
    model, guide = last_layer()
    batch = token_batch(targets=CLASSES)
    rows: list[int] = []
    model.backbone.register_forward_hook(lambda *args: rows.append(len(args[2].last_hidden_state)))
    whole = predict(model, guide, batch, num_samples=8)
    assert rows == [5]
    numbered = Batch(batch.inputs, batch.targets, batch.context, torch.arange(5))
    parts = [predict(model, guide, numbered[rows], num_samples=8) for rows in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(torch.cat([part.mean for part in parts]), whole.mean)
    torch.testing.assert_close(predict(model, guide, batch, num_samples=8, chunk_size=3).total, whole.total)
    torch.testing.assert_close(predict(model, guide, pad(batch, 4), num_samples=8).mean, whole.mean)
    other = predict(model, guide, batch, num_samples=8, seed=1)
    assert not torch.allclose(other.mean, whole.mean, atol=1e-4)


# beside stochastic adapters


@pytest.mark.parametrize("likelihood", [Categorical(3), Gaussian()], ids=["classes", "numbers"])
def test_beside_a_stochastic_adapter_uncertainties_add(likelihood: Any, tmp_path: Path) -> None:
    head = VariationalLastLayer("low_rank", init_scale=1.0)
    model = fill_B(StochasticCore(bert(), likelihood, rank=3, num_data=N, head=head), 2.0)
    guide = CrossAttention(model, context_dim=CONTEXT, dim=4)
    targets = CLASSES if isinstance(likelihood, Categorical) else torch.randn(5)
    batch = token_batch(targets=targets)
    fit(model, guide, batch, epochs=2, progress=False)
    both = predict(model, guide, batch, num_samples=64)
    torch.testing.assert_close(predict(model, guide, batch, num_samples=64, chunk_size=5).mean, both.mean)
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, bert())
    torch.testing.assert_close(predict(again, guide_again, batch, num_samples=64).epistemic, both.epistemic)
    with torch.no_grad():
        for name, value in guide_again.named_parameters():
            if name.startswith("head_posterior") and ("log_scale" in name or "factor" in name):
                value.fill_(-20.0 if "log_scale" in name else 0.0)
            if name.endswith("log_noise"):
                value.fill_(-20.0)
    adapter_only = predict(again, guide_again, batch, num_samples=64)
    assert bool((both.epistemic > adapter_only.epistemic).all())
    assert bool((adapter_only.epistemic > 0).all())


def test_particles_average_bounds_and_the_kl_stays_one() -> None:
    model, guide = last_layer()
    batch = token_batch(targets=CLASSES)
    one, three = (ELBO(model, guide, num_particles=n).terms(batch) for n in (1, 3))
    torch.testing.assert_close(one.nll, three.nll)
    torch.testing.assert_close(one.kl, three.kl)
    parts = [ELBO(model, guide).terms(part) for part in (batch[:2], batch[2:])]
    torch.testing.assert_close(one.nll, 0.4 * parts[0].nll + 0.6 * parts[1].nll)  # accumulated over a batch
    torch.testing.assert_close(one.kl, parts[0].kl)
    torch.testing.assert_close(ELBO(model, guide)(pad(batch, 3)), one.loss)


@pytest.mark.parametrize("likelihood", [Categorical(3), Gaussian()], ids=["classes", "numbers"])
def test_gradients_against_finite_differences(likelihood: Any) -> None:
    """Nothing is drawn, so that the loss is a function of the parameters."""
    model, guide = last_layer(likelihood, covariance="dense", noise_prior=(2.0, 0.3))
    model, guide = model.double(), guide.double()
    batch = token_batch(targets=CLASSES if isinstance(likelihood, Categorical) else torch.randn(5).double())
    elbo = ELBO(model, guide)
    elbo(batch).backward()
    checked = 0
    for name, p in elbo.named_parameters():
        if not p.requires_grad or ("head_posterior" not in name and "lora_B" not in name and "log_scale" not in name):
            continue
        torch.manual_seed(0)
        direction = torch.randn_like(p)
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                p.add_(step * direction)
                values.append(elbo(batch))
                p.sub_(step * direction)
        found = (values[0] - values[1]) / 2e-4
        torch.testing.assert_close((p.grad * direction).sum(), found, rtol=1e-3, atol=1e-7, msg=name)
        checked += 1
    assert checked >= 5


def test_under_autocast_the_head_stays_in_float32() -> None:
    """With moments in bfloat16, which has 8 bits, the losses would differ in the third digit."""
    model, guide = last_layer(covariance="dense")
    batch = token_batch(targets=CLASSES)
    seen: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = ELBO(model, guide).terms(batch).nll
    features = torch.cat([seen[0].float(), torch.full((5, 1), WIDTH**0.5)], 1)
    mean, cov = posterior(guide)
    variance = torch.einsum("bi,kij,bj->bk", features, cov, features) + noise(guide)
    logits = features @ mean.T
    bound = logits[torch.arange(5), CLASSES] - torch.logsumexp(logits + 0.5 * variance, -1)
    torch.testing.assert_close(loss.detach(), -bound.mean())


def test_what_is_frozen_stays_so(tmp_path: Path) -> None:
    model, guide = last_layer()
    guide.head_posterior.requires_grad_(False)  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in guide.named_parameters()}
    fit(model, guide, token_batch(targets=CLASSES), epochs=1, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in guide.named_parameters())
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, bert())
    assert again.head.config() == model.head.config()
    assert not any(p.requires_grad for p in guide_again.head_posterior.parameters())  # type: ignore[union-attr]


# Pyro's own guides, and mistakes


def test_guides_of_pyro_draw_weights_noise_and_outputs() -> None:
    model, _ = last_layer()
    batch = token_batch(targets=CLASSES)
    guide = AutoNormal(poutine.block(model, hide=["obs"]))
    assert SVI(model, guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(batch) > 0
    assert set(guide.median()) == {"head.weight", "head.noise", "head.outputs"}
    numbers, _ = last_layer(Gaussian())
    nodes: Any = poutine.trace(numbers).get_trace(token_batch(targets=torch.randn(5))).nodes
    drawn = nodes["head.noise"]["value"].squeeze()
    torch.testing.assert_close(nodes["obs"]["fn"].scale, drawn.sqrt().expand(5))
    assert isinstance(nodes["head.noise"]["fn"].base_dist, dist.InverseGamma)


def test_what_cannot_be() -> None:
    for likelihood in (Tagging(3), StudentT(), HeteroscedasticGaussian()):
        with refuses(ConfigError, type(likelihood).__name__, "VariationalLastLayer", "BayesianLinear"):
            LoRA(bert(), likelihood, head=VariationalLastLayer(), num_data=N)
    with refuses(ConfigError, "covariance", "'full'", "dense"):
        VariationalLastLayer("full")
    with refuses(ConfigError, "noise_prior", "(1.0,)"):
        VariationalLastLayer(noise_prior=(1.0,))
    with refuses(ConfigError, "noise_prior b", 0):
        VariationalLastLayer(noise_prior=(1.0, 0))
    with refuses(ConfigError, "num_data="):
        LoRA(bert(), Categorical(3), head=VariationalLastLayer())
    model, guide = last_layer()
    with refuses(ConfigError, "'head.weight'", "VariationalLastLayer", "BayesianLinear"):
        weight_draw(model, guide, 0)
    with refuses(ConfigError, "VariationalLastLayer", "BayesianLinear", "AutoNormal"):
        SVI(model, guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(token_batch(targets=CLASSES))


def test_contextual_cores_train_with_it() -> None:
    model = fill_B(StochasticCore(bert(), Bernoulli(), rank=3, num_data=N, head=VariationalLastLayer()))
    for guide in (Contextual(model), MeanField(model)):
        result = ELBO(model, guide, num_particles=2)(token_batch())
        result.backward()
        assert all(p.grad is not None for p in guide.head_posterior.parameters())  # type: ignore[union-attr]
