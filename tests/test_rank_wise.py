"""Random A and B with one variance a rank: the density, its KL, the moment forward, and where it may be used."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters import ELBO, AdapterGuide, Batch, Bernoulli, adapted_layers, evaluating, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.forward_pass import ForwardPass, Weight, running
from bayes_adapters.guides import MeanField, RankWise
from bayes_adapters.handlers import PosteriorMean
from bayes_adapters.layer import AdaptedLinear
from bayes_adapters.models import LoRA, StochasticCore, StochasticDown, StochasticFactors
from bayes_adapters.priors import Prior, zero_normal
from bayes_adapters.sites import Granularity, Part, Site
from tests.helpers import WIDTH, bert, gpt2, loc_scale, token_batch

LAYERS = [f"encoder.layer.{i}.attention.self.{name}" for i in range(2) for name in ("query", "value")]


def pair(rank: int = 3, scale: float = 0.3, **options: Any) -> tuple[StochasticFactors, RankWise]:
    """A two-layer BERT, N = 50, whose B is not near zero."""
    model = StochasticFactors(bert(), Bernoulli(), rank=rank, num_data=50)
    guide = RankWise(model, **options)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, loc in guide.loc.items():
            if name.startswith("B"):
                loc.copy_(scale * torch.randn(loc.shape, generator=rng))
    return model, guide


def logits(guide: AdapterGuide, batch: Batch) -> Tensor:
    with torch.no_grad():
        guide(batch)
    return guide.trace.nodes["obs"]["fn"].logits  # type: ignore[attr-defined]


class Linear(nn.Module):
    """A backbone of one linear layer, so that everything can be computed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"hidden_size": 3})()
        self.query = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return type("Output", (), {"last_hidden_state": self.query(x)})()


# structure and parameters


def test_sites_are_A_and_B_of_each_layer() -> None:
    model, _ = pair()
    found = {site.name: (site.part, site.layers, site.shape) for site in model.sites}
    expected = {f"A.{path}": (Part.A, (path,), (1, 3, WIDTH)) for path in LAYERS}
    assert found == expected | {f"B.{path}": (Part.B, (path,), (1, WIDTH, 3)) for path in LAYERS}
    assert not any("lora" in name for name in model.trainable_parameters())
    assert model.config()["num_data"] == 50


def test_tied_variances_cost_r_parameters_a_layer() -> None:
    plain = sum(p.numel() for p in LoRA(bert(), Bernoulli(), rank=3).trainable_parameters().values())
    model, guide = pair()
    trained = [*model.trainable_parameters().values(), *guide.parameters()]
    assert sum(p.numel() for p in trained) == plain + 3 * len(LAYERS)
    _, free = pair(tie=False)
    assert sum(p.numel() for p in free.log_variance.parameters()) == 2 * 3 * WIDTH * len(LAYERS)


def test_where_means_and_variances_start() -> None:
    model = StochasticFactors(bert(), Bernoulli(), rank=3, num_data=50)
    guide = RankWise(model)
    A, B = guide.loc[f"A-{LAYERS[0].replace('.', '-')}"], guide.loc[f"B-{LAYERS[0].replace('.', '-')}"]
    assert 0.8 / math.sqrt(WIDTH) < A.abs().max() <= 1 / math.sqrt(WIDTH)
    assert 0.8e-3 < B.abs().max() <= 1e-3
    assert {v.item() for p in guide.log_variance.values() for v in p.flatten()} == {-8.0}
    assert guide.config() == {"init_log_variance": -8.0, "tie": True, "local_reparametrisation": False}


def test_row_i_of_A_and_column_i_of_B_share_a_variance() -> None:
    _, guide = pair()
    with torch.no_grad():
        guide.log_variance[LAYERS[1].replace(".", "-")].copy_(torch.tensor([-2.0, 5.0, -30.0]))
        guide(token_batch())
    A, B = (loc_scale(guide.trace.nodes[f"{part}.{LAYERS[1]}"]["fn"])[1][0] for part in "AB")
    expected = torch.tensor([-1.0, 1.0, -10.0]).exp()  # log σ² is clamped to [-20, 2]
    torch.testing.assert_close(A, expected[:, None].expand(3, WIDTH))
    torch.testing.assert_close(B, expected.expand(WIDTH, 3))


@pytest.mark.parametrize("init", [-20.1, 2.1, math.nan])
def test_a_start_outside_the_clamp_is_refused(init: float) -> None:
    with pytest.raises(ConfigError, match=r"natural log of a variance in \[-20, 2\]; got"):
        pair(init_log_variance=init)


def test_other_parts_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"RankWise cannot infer 'core.*it serves A, B"):
        RankWise(StochasticCore(bert(), Bernoulli(), granularity="global", num_data=5))


def test_the_model_alone_says_that_its_prior_has_no_draws() -> None:
    with pytest.raises(ConfigError, match=r"improper and has no draws.*RankWise"):
        pair()[0](token_batch())


# the objective


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize(
    ("alpha", "kl"),
    [(1e-4, 5.240976), (0.01, 2.938956), (0.1, 1.723453), (1, 0.431239), (10, 0.050822), (1e3, 5.03e-4)],
)
def test_kl_of_variational_dropout_once_per_data_set(alpha: float, kl: float, local: bool) -> None:
    model, guide = pair(local_reparametrisation=local)
    with torch.no_grad():
        for loc in guide.loc.values():
            loc.fill_(math.exp(-2.0) / math.sqrt(alpha))
        for log_variance in guide.log_variance.values():
            log_variance.fill_(-4.0)
    entries = len(LAYERS) * 3 * (WIDTH + WIDTH)
    # the prior's eps of 1e-8 changes the largest dropout rate by 5e-4 of itself
    assert ELBO(model, guide).terms(token_batch()).kl.item() == pytest.approx(kl * entries / 50, rel=2e-3)


@pytest.mark.parametrize("local", [False, True])
def test_the_elbo_by_hand(local: bool) -> None:
    torch.manual_seed(1)
    model = StochasticFactors(Linear(), Bernoulli(), targets=["query"], rank=2, alpha=6.0, num_data=20)
    guide = RankWise(model, init_log_variance=-1.0, local_reparametrisation=local)
    M, L = guide.loc["A-query"].detach()[0], guide.loc["B-query"].detach()[0]
    L.copy_(torch.randn(3, 2))
    guide.log_variance["query"].data.copy_(torch.tensor([-1.0, 0.5]))
    batch = Batch({"x": torch.randn(5, 7, 4)}, torch.tensor([0.0, 1, 1, 0, 1]))

    torch.manual_seed(3)
    terms = ELBO(model, guide).terms(batch)
    torch.manual_seed(3)
    x, sigma = batch.inputs["x"], torch.tensor([-0.5, 0.25]).exp()
    if local:
        delta = torch.empty(5, 7, 3)
        noise = torch.randn(5, 7, 3)
        for b in range(5):
            for t in range(7):
                m = [sum(M[i, j] * x[b, t, j] for j in range(4)) for i in range(2)]
                v = [sum(sigma[i] ** 2 * x[b, t, j] ** 2 for j in range(4)) for i in range(2)]
                for k in range(3):
                    mean = sum(L[k, i] * m[i] for i in range(2))
                    var = sum((L[k, i] ** 2 + sigma[i] ** 2) * v[i] + sigma[i] ** 2 * m[i] ** 2 for i in range(2))
                    delta[b, t, k] = mean + noise[b, t, k] * math.sqrt(var)
    else:
        A = M + sigma[:, None] * torch.randn(1, 2, 4)[0]
        B = L + sigma * torch.randn(1, 3, 2)[0]
        delta = x @ (B @ A).T
    base = model.backbone.query.base_layer
    hidden = x @ base.weight.T + base.bias + 3.0 * delta
    logit = (hidden.mean(1) @ model.head.weight.T + model.head.bias)[:, 0]
    nll = F.softplus(-(2 * batch.targets - 1) * logit).mean()
    kl = 0.0
    for value, i in [(M[i, j], i) for i in range(2) for j in range(4)] + [
        (L[k, i], i) for k in range(3) for i in range(2)
    ]:
        log_alpha = math.log(sigma[i] ** 2 / (value**2 + 1e-8))
        inside = 1.87320 + 1.48695 * log_alpha
        kl += 0.63576 - 0.63576 / (1 + math.exp(-inside)) + 0.5 * math.log(1 + math.exp(-log_alpha))
    assert terms.nll.item() == pytest.approx(nll.item(), rel=1e-5)
    assert terms.kl.item() == pytest.approx(kl / 20, rel=1e-5)
    assert terms.loss.item() == pytest.approx(nll.item() + kl / 20, rel=1e-5)


# local reparametrisation


def _layer(A: Weight, B: Weight) -> tuple[AdaptedLinear, ForwardPass]:
    sites = [
        Site("A.l", Part.A, ("l",), (2, 5), Granularity.GLOBAL),
        Site("B.l", Part.B, ("l",), (3, 2), Granularity.GLOBAL),
    ]
    base = nn.Linear(5, 3, bias=False)
    nn.init.zeros_(base.weight)
    state = ForwardPass(
        Batch({"x": torch.zeros(1, 1)}), (), Prior(zero_normal(), sites), {(Part.A, "l"): A, (Part.B, "l"): B}, 2, {}
    )
    return AdaptedLinear(base, 2, 2.0, path="l", sites=sites), state


def test_moments_are_those_of_weight_draws() -> None:
    """200 000 draws of (A, B) of each kind; tolerance 5 standard errors of mean and variance."""
    M, L = torch.randn(2, 5), torch.randn(3, 2)
    SA, SB = torch.rand(2, 5) + 0.3, torch.rand(3, 2) + 0.3
    x, count = torch.randn(5), 200_000
    layer, state = _layer(Weight(M, M, SA), Weight(L, L, SB))
    with running(state), torch.no_grad():
        local = layer(x.expand(count, 1, 5))[:, 0]
    A, B = M + SA * torch.randn(count, 2, 5), L + SB * torch.randn(count, 3, 2)
    drawn = (B @ (A @ x)[..., None])[..., 0]
    error = (drawn.var(0) / count).sqrt()
    assert ((local.mean(0) - drawn.mean(0)).abs() < 5 * math.sqrt(2) * error).all()
    spread = ((drawn - drawn.mean(0)) ** 2).std(0) / math.sqrt(count)
    assert ((local.var(0) - drawn.var(0)).abs() < 5 * math.sqrt(2) * spread).all()


def test_noise_is_drawn_anew_for_every_token_and_output() -> None:
    M, L = torch.randn(2, 5), torch.randn(3, 2)
    layer, state = _layer(Weight(M, M, torch.ones(2, 5)), Weight(L, L, torch.ones(3, 2)))
    with running(state), torch.no_grad():
        out = layer(torch.ones(4000, 2, 5)).flatten(1)
    correlation = torch.corrcoef(out.T) - torch.eye(6)
    assert correlation.abs().max() < 5 / math.sqrt(4000)


def test_gradients_are_finite_where_the_variance_is_zero() -> None:
    M, scale = torch.randn(2, 5, requires_grad=True), torch.ones(2, 5, requires_grad=True)
    L = torch.zeros(3, 2)
    layer, state = _layer(Weight(M, M, scale), Weight(L, L, torch.full((3, 2), 0.5)))
    with running(state):
        out = layer(torch.zeros(2, 1, 5))
    assert out.abs().max() < 1e-8
    out.sum().backward()
    assert M.grad is not None
    assert scale.grad is not None
    assert M.grad.isfinite().all()
    assert scale.grad.isfinite().all()


def test_only_a_random_A() -> None:
    """The asymmetric variant: sites of several layers, B a parameter."""
    model = StochasticDown(bert(), Bernoulli(), rank=3, num_data=50, flipout=False)
    guide = RankWise(model, local_reparametrisation=True)
    with torch.no_grad():
        for layer in adapted_layers(model.backbone).values():
            layer.lora_B.normal_()
    assert sum(p.numel() for p in guide.log_variance.parameters()) == 3 * len(LAYERS)
    batch = token_batch()
    assert not torch.equal(logits(guide, batch), logits(guide, batch))
    ELBO(model, guide)(batch).backward()
    assert all(p.grad is not None for p in [*guide.parameters(), *model.trainable_parameters().values()])


def test_training_mode_uses_moments_and_prediction_draws_weights() -> None:
    model, guide = pair(init_log_variance=-3.0, local_reparametrisation=True)
    plain_model, plain = pair(init_log_variance=-3.0)
    batch, site = token_batch(), f"A.{LAYERS[0]}"
    logits(guide, batch)
    assert torch.equal(guide.trace.nodes[site]["value"], guide.loc[site.replace(".", "-")]), "the value is the mean"
    with evaluating(model, guide):
        logits(guide, batch)
        assert not torch.equal(guide.trace.nodes[site]["value"], guide.loc[site.replace(".", "-")])
    first = predict(model, guide, batch, num_samples=4, return_samples=True).samples
    second = predict(plain_model, plain, batch, num_samples=4, return_samples=True).samples
    assert first is not None
    assert torch.equal(first, second), "prediction does not depend on how training drew"  # type: ignore[arg-type]
    assert (first.std(0) > 1e-4).all()


@pytest.mark.parametrize("local", [False, True])
def test_draws_do_not_depend_on_how_the_data_is_cut(local: bool) -> None:
    model, guide = pair(init_log_variance=-3.0, local_reparametrisation=local)
    batch = token_batch()
    whole = predict(model, guide, batch, num_samples=4, return_samples=True)
    parts = predict(model, guide, [batch[:2], batch[2:]], num_samples=4, chunk_size=3, return_samples=True)
    torch.testing.assert_close(whole.samples, parts.samples, rtol=1e-5, atol=1e-6)


def test_the_posterior_mean_is_one_pass_without_noise_in_training_mode_too() -> None:
    _, guide = pair(init_log_variance=0.0, local_reparametrisation=True)
    batch = token_batch()
    with PosteriorMean():
        first, second = logits(guide, batch), logits(guide, batch)
    assert torch.equal(first, second)
    assert not torch.equal(logits(guide, batch), first)


def test_a_conditioned_draw_is_used_as_given() -> None:
    _, guide = pair(init_log_variance=-20.0, local_reparametrisation=True)
    batch, name = token_batch(), f"B.{LAYERS[3]}"
    value = torch.randn(1, WIDTH, 3)
    with torch.no_grad():
        pyro.poutine.condition(guide, {name: value})(batch)
        found = guide.trace.nodes["obs"]["fn"].logits
        guide.loc[name.replace(".", "-")].copy_(value)
    torch.testing.assert_close(found, logits(guide, batch), rtol=1e-3, atol=1e-3)


def test_several_particles_have_noise_of_their_own() -> None:
    model, guide = pair(init_log_variance=-2.0, local_reparametrisation=True)
    with pyro.plate("particles", 3, dim=-2), torch.no_grad():
        guide(token_batch())
    found = guide.trace.nodes["obs"]["fn"].logits
    assert found.shape == (3, 5)
    assert (found.std(0) > 1e-3).all()
    one = ELBO(model, guide).terms(token_batch())
    many = ELBO(model, guide, num_particles=4).terms(token_batch())
    assert many.kl.item() == pytest.approx(one.kl.item(), rel=1e-5)


@pytest.mark.parametrize("kind", [Trace_ELBO, TraceMeanField_ELBO])
def test_pyros_own_elbos_are_refused_with_local_reparametrisation(kind: Any) -> None:
    model, guide = pair(local_reparametrisation=True)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), kind())
    with pytest.raises(ConfigError, match=r"traced in training mode.*bayes_adapters.ELBO"):
        svi.step(token_batch())


def test_pyros_mean_field_elbo_agrees_with_weight_draws() -> None:
    model, guide = pair(init_log_variance=-20.0)
    batch = token_batch()
    ours = ELBO(model, guide)(batch).item()
    theirs = TraceMeanField_ELBO().loss(model, guide, batch)
    assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("tie", [False, True])
def test_every_parameter_is_trained(tie: bool, local: bool) -> None:
    model, guide = pair(tie=tie, local_reparametrisation=local)
    ELBO(model, guide, kl_weight=0.0)(token_batch()).backward()  # the likelihood alone reaches all of them
    for name, p in [*guide.named_parameters(), *model.trainable_parameters().items()]:
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name


@pytest.mark.parametrize("options", [{}, {"tie": False, "local_reparametrisation": True, "init_log_variance": -12.0}])
def test_saved_and_loaded(options: dict[str, Any], tmp_path: Any) -> None:
    model, guide = pair(**options)
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, bert())
    assert type(again) is StochasticFactors
    assert guide_again.config() == guide.config()
    batch = token_batch().without_targets()
    assert torch.equal(predict(model, guide, batch).mean, predict(again, guide_again, batch).mean)


def test_other_guides_and_backbones() -> None:
    model = StochasticFactors(gpt2(), Bernoulli(), targets=["c_attn"], rank=2, num_data=50)
    batch = token_batch()
    for guide in (MeanField(model, init_scale=0.01), RankWise(model, local_reparametrisation=True)):
        assert ELBO(model, guide)(batch).isfinite()
