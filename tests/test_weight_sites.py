"""Random parts other than the core: keep masks, A and the diagonal, in the models that have them."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

from bayes_adapters import ELBO, Batch, Bernoulli, adapted_layers, evaluating, forward_pass, predict
from bayes_adapters import layer as layer_module
from bayes_adapters.distributions import LogUniform
from bayes_adapters.errors import ConfigError
from bayes_adapters.forward_pass import ForwardPass, Weight, running
from bayes_adapters.guides import Contextual, Delta, MCDropout, MeanField
from bayes_adapters.handlers import PosteriorMean
from bayes_adapters.layer import AdaptedLinear
from bayes_adapters.models import AdapterDropout, DiagonalCore, LoRA, StochasticCore, StochasticDown
from bayes_adapters.priors import Prior, zero_normal
from bayes_adapters.sites import Granularity, Part, Site, build_sites
from tests.helpers import WIDTH, bert, fill_B, token_batch


def down(rank: int = 3, **options: Any) -> StochasticDown:
    return fill_B(StochasticDown(bert(), Bernoulli(), rank=rank, num_data=50, **options))  # type: ignore[return-value]


def outputs(guide: Any, batch: Batch) -> torch.Tensor:
    """Logits of one pass."""
    guide(batch)
    return guide.trace.nodes["obs"]["fn"].logits.detach()


# sites


def test_sites_are_grouped_by_shape() -> None:
    sizes = {"a": (2, 4, 4), "b": (2, 4, 8), "c": (2, 4, 4)}
    found = {s.name: (s.layers, s.shape) for s in build_sites(sizes, (Part.A, Part.B), Granularity.GLOBAL)}
    assert found == {
        "A.global": (("a", "b", "c"), (3, 2, 4)),
        "B.global.4x2": (("a", "c"), (2, 4, 2)),
        "B.global.8x2": (("b",), (1, 8, 2)),
    }
    alone = build_sites(sizes, (Part.A,), Granularity.GLOBAL, grouped=False)
    assert [(s.name, s.shape) for s in alone] == [("A.a", (1, 2, 4)), ("A.b", (1, 2, 4)), ("A.c", (1, 2, 4))]


def test_a_mask_has_no_rank() -> None:
    with pytest.raises(ConfigError, match="mask over a layer's input; it has no rank"):
        _ = Site("mask.a", Part.MASK, ("a",), (4,), Granularity.TOKEN).rank


# a conditioned draw is the weight of the adapted layer


def test_conditioning_A_sets_the_weight() -> None:
    model, batch = down(), token_batch()
    plain = LoRA(bert(), Bernoulli(), rank=3)
    value = torch.randn(4, 3, WIDTH)
    with torch.no_grad():
        for i, (layer, own) in enumerate(
            zip(adapted_layers(plain.backbone).values(), adapted_layers(model.backbone).values(), strict=True)
        ):
            layer.lora_A.copy_(value[i])
            layer.lora_B.copy_(own.lora_B)
        plain.head.load_state_dict(model.head.state_dict())
        expected = plain(batch)
        found = pyro.poutine.condition(model.eval(), {"A.global": value})(batch)
    torch.testing.assert_close(found, expected)


def test_conditioning_the_diagonal_scales_the_rows_of_A() -> None:
    model, batch = fill_B(DiagonalCore(bert(), Bernoulli(), rank=3, num_data=50)), token_batch()
    plain = LoRA(bert(), Bernoulli(), rank=3)
    value = torch.rand(4, 3)
    with torch.no_grad():
        for i, (layer, own) in enumerate(
            zip(adapted_layers(plain.backbone).values(), adapted_layers(model.backbone).values(), strict=True)
        ):
            layer.lora_A.copy_(value[i][:, None] * own.lora_A)
            layer.lora_B.copy_(own.lora_B)
        plain.head.load_state_dict(model.head.state_dict())
        torch.testing.assert_close(
            pyro.poutine.condition(model, {"diagonal.global": value})(batch), plain(batch), rtol=1e-5, atol=1e-6
        )


def test_a_mask_of_ones_over_the_mean_and_a_mask_of_zeros() -> None:
    model, batch = fill_B(AdapterDropout(bert(), Bernoulli(), rank=3, drop=0.25, granularity="global")), token_batch()
    assert [s.name for s in model.sites] == ["mask.global"]
    with torch.no_grad():
        with model.adapters_disabled():
            frozen = model(batch)
        nothing = pyro.poutine.condition(model, {"mask.global": torch.zeros(4, WIDTH)})(batch)
        everything = pyro.poutine.condition(model, {"mask.global": torch.full((4, WIDTH), 0.75)})(batch)
        plain = LoRA(bert(), Bernoulli(), rank=3)
        for a, b in zip(adapted_layers(plain.backbone).values(), adapted_layers(model.backbone).values(), strict=True):
            a.lora_A.copy_(b.lora_A)
            a.lora_B.copy_(b.lora_B)
        plain.head.load_state_dict(model.head.state_dict())
        torch.testing.assert_close(nothing, frozen)
        torch.testing.assert_close(everything, plain(batch), rtol=1e-5, atol=1e-6)


# a layer of which every part is random


PARTS = (Part.MASK, Part.A, Part.CORE, Part.B)


def _all_random() -> tuple[AdaptedLinear, dict[Part, torch.Tensor], ForwardPass]:
    sites = build_sites({"l": (2, 6, 4)}, PARTS, Granularity.GLOBAL)
    values = {site.part: torch.randn(site.event) for site in sites}
    values[Part.MASK] = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    prior = Prior({"mask.*": dist.Bernoulli(probs=torch.tensor(0.75)), "*": zero_normal()}, sites)
    weights = {(part, "l"): Weight(value) for part, value in values.items()}
    batch = Batch({"input_ids": torch.zeros(3, 5, dtype=torch.long)})
    layer = AdaptedLinear(nn.Linear(6, 4), 2, 6.0, path="l", sites=sites)
    return layer, values, ForwardPass(batch, (), prior, weights, len(sites), {})


def test_the_layer_computes_its_formula_from_the_draws_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, value, state = _all_random()
    asked: list[ForwardPass | None] = []

    def current_pass() -> ForwardPass | None:
        asked.append(found := forward_pass.current_pass())
        return found

    monkeypatch.setattr(layer_module, "current_pass", current_pass)
    x = torch.randn(3, 5, 6)
    with running(state):
        h = layer(x)
    z = (x * value[Part.MASK] / 0.75) @ value[Part.A].T @ value[Part.CORE].T @ value[Part.B].T
    torch.testing.assert_close(h, layer.base_layer(x) + 3.0 * z)
    assert asked == [state], "one lookup, and its draws are handed on"


@pytest.mark.parametrize("part", [*PARTS, Part.DIAGONAL])
def test_a_layer_with_a_random_part_runs_in_its_model_only(part: Part) -> None:
    sites = build_sites({"l": (2, 6, 4)}, (part,), Granularity.GLOBAL)
    layer = AdaptedLinear(nn.Linear(6, 4), 2, 6.0, path="l", sites=sites)
    with pytest.raises(ConfigError, match=rf"'l' has a random {part.value}, which only exists inside a model"):
        layer(torch.randn(3, 6))


# MC-dropout


@pytest.mark.parametrize(("granularity", "shape"), [("token", (2, 5, 7, WIDTH)), ("sequence", (2, 5, 1, WIDTH))])
def test_masks_are_zeros_and_ones_of_the_stated_rate(granularity: str, shape: tuple[int, ...]) -> None:
    model = AdapterDropout(bert(), Bernoulli(), rank=3, drop=0.4, granularity=granularity)
    guide, batch = MCDropout(model), token_batch()
    with pyro.plate("samples", 2, dim=-2), torch.no_grad():
        guide(batch)
    values = [guide.trace.nodes[s.name]["value"] for s in model.sites]
    assert all(v.shape == shape and set(v.unique().tolist()) == {0.0, 1.0} for v in values)
    kept = torch.cat([v.flatten() for v in values])
    assert kept.mean().item() == pytest.approx(0.6, abs=4 * math.sqrt(0.24 / len(kept)))


def test_every_other_dropout_stays_off_while_sampling() -> None:
    net = bert()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9
    model = AdapterDropout(net, Bernoulli(), rank=3)  # B = 0: the masks change nothing
    guide = MCDropout(model)
    model.train()
    draws = predict(model, guide, token_batch(), num_samples=6, return_samples=True).samples
    assert draws is not None
    assert torch.equal(draws[0], draws[1])
    assert model.training, "modes are restored"
    assert model.backbone.training
    draws = predict(fill_B(model), guide, token_batch(), num_samples=6, return_samples=True).samples
    assert draws is not None
    assert (draws.std(0) > 1e-4).all()


def test_mc_dropout_has_no_kl_and_trains_only_the_adapters() -> None:
    model = fill_B(AdapterDropout(bert(), Bernoulli(), rank=3))
    guide = MCDropout(model)
    terms = ELBO(model, guide).terms(token_batch())
    assert terms.kl.item() == 0.0
    assert not list(guide.parameters())
    terms.loss.backward()
    assert all(p.grad is not None for p in model.trainable_parameters().values())


# BLoB


def test_kl_of_A_counts_once_per_data_set() -> None:
    model, batch = down(), token_batch()
    guide = MeanField(model, init_scale=0.25)
    with torch.no_grad():
        guide.loc["A-global"].fill_(0.1)
    terms = ELBO(model, guide).terms(batch)
    assert terms.kl.item() == pytest.approx(0.18310645 * 4 * 3 * WIDTH / 50, rel=1e-5)


def test_root_parameter_and_interval_of_blob() -> None:
    guide = MeanField(down(), init_scale=(0.00125, 0.0025), parameter="root")
    rho = guide.rho["A-global"]
    assert rho.min() >= math.sqrt(0.00125)
    assert rho.max() <= 0.05
    assert rho.mean().item() == pytest.approx((math.sqrt(0.00125) + 0.05) / 2, rel=0.05)
    assert guide.config() == {"init_scale": (0.00125, 0.0025), "parameter": "root", "positive_mean": False}
    bound = 1 / math.sqrt(WIDTH)
    assert 0.9 * bound < guide.loc["A-global"].abs().max() <= bound, "Kaiming-uniform, as plain LoRA"


@pytest.mark.parametrize("flipout", [True, False])
def test_the_posterior_mean_is_one_pass_without_noise(flipout: bool) -> None:
    model, batch = down(flipout=flipout), token_batch()
    guide = MeanField(model, init_scale=0.5)
    model.train()
    with torch.no_grad(), PosteriorMean():
        assert torch.equal(outputs(guide, batch), outputs(guide, batch))


def _flipped(rows: int, tokens: int, draws: int) -> torch.Tensor:
    """z = A x of ``rows`` examples of ``tokens`` equal tokens: shape (draws, rows, tokens, 4)."""
    torch.manual_seed(0)
    site = Site("A.l", Part.A, ("l",), (4, 6), Granularity.GLOBAL)
    layer = AdaptedLinear(nn.Linear(6, 4, bias=False), 4, 4.0, path="l", sites=[site], flipout=True).train()
    nn.init.zeros_(layer.base_layer.weight)  # type: ignore[arg-type]
    assert layer.lora_B is not None
    nn.init.eye_(layer.lora_B)
    mean, scale = torch.randn(4, 6), torch.rand(4, 6) + 0.5
    batch = Batch({"input_ids": torch.zeros(rows, tokens, dtype=torch.long)})
    x = torch.linspace(-1, 1, 6).expand(rows, tokens, 6)
    found = []
    for _ in range(draws):
        weight = Weight(mean + scale * torch.randn(4, 6), mean)
        state = ForwardPass(batch, (), Prior(zero_normal(), [site]), {(Part.A, "l"): weight}, 1, {})
        with running(state), torch.no_grad():
            found.append(layer(x))
    expected = scale.square() @ x[0, 0].square()
    return torch.stack(found) / expected.sqrt()


def test_flipout_signs_are_per_example_and_not_per_token() -> None:
    """The mean over 64 equal tokens varies as one token does; signs per token would make it 64 times smaller."""
    z = _flipped(rows=2, tokens=64, draws=3000)
    torch.testing.assert_close(z[:, :, 0], z[:, :, 63])  # all tokens of an example see one function
    pooled = z.mean(2)
    assert pooled.var(0).mean().item() == pytest.approx(1.0, rel=0.05), "the analytic variance"
    left, right = (pooled[:, i] - pooled[:, i].mean(0) for i in (0, 1))
    assert (left * right).mean().abs() < 0.05, "examples are decorrelated"


def test_flipout_is_off_at_prediction_and_without_a_guide() -> None:
    model, batch = down(), token_batch()
    guide = MeanField(model, init_scale=0.5)
    with torch.no_grad(), evaluating(model):
        guide(batch)
        value = guide.trace.nodes["A.global"]["value"]
        expected = guide.trace.nodes["obs"]["fn"].logits
        torch.testing.assert_close(
            pyro.poutine.condition(model, {"A.global": value})(batch)[:, 0], expected, rtol=1e-5, atol=1e-6
        )
    model.train()
    with torch.no_grad():
        again = pyro.poutine.condition(model, {"A.global": value})(batch)[:, 0]
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-6)


# ScalaBL


def test_the_diagonal_starts_at_the_singular_values_of_a_fresh_A() -> None:
    torch.manual_seed(3)
    model = DiagonalCore(bert(), Bernoulli(), rank=3, num_data=50)
    torch.manual_seed(3)
    plain = LoRA(bert(), Bernoulli(), rank=3)
    guide = MeanField(model, init_scale=(0.035, 0.05), positive_mean=True)
    for i, path in enumerate(model.layers):
        own = adapted_layers(model.backbone)[path].lora_A
        fresh = adapted_layers(plain.backbone)[path].lora_A
        torch.testing.assert_close(own @ own.T, torch.eye(3), rtol=0, atol=1e-6)
        s = guide.loc["diagonal-global"][i].exp()
        torch.testing.assert_close((own.T * s.square()) @ own, fresh.T @ fresh, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in guide.parameters()) == 2 * 3 * 4, "2 r a layer"


def test_kl_of_scalabl_is_from_q_to_p() -> None:
    model = DiagonalCore(bert(), Bernoulli(), rank=3, num_data=50)
    guide = MeanField(model, init_scale=0.05, positive_mean=True)
    terms = ELBO(model, guide).terms(token_batch())
    mean = guide.loc["diagonal-global"].exp()
    expected = 0.5 * (0.05**2 + mean.square() - 1 - 2 * math.log(0.05)).sum() / 50
    assert terms.kl.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_positive_mean_needs_a_positive_start() -> None:
    with pytest.raises(ConfigError, match=r"positive_mean=True trains log μ.*DiagonalCore"):
        MeanField(down(), positive_mean=True)


# log-uniform prior


@pytest.mark.parametrize(
    ("alpha", "kl"),
    [(1e-4, 5.240976), (0.01, 2.938956), (0.1, 1.723453), (1, 0.431239), (10, 0.050822), (1e3, 5.03e-4)],
)
def test_variational_dropout_kl(alpha: float, kl: float) -> None:
    q = dist.Normal(torch.tensor(3.0), torch.tensor(3.0 * math.sqrt(alpha)))
    assert kl_divergence(q, LogUniform(1e-20)).item() == pytest.approx(kl, rel=1e-3, abs=1e-6)


def test_the_log_uniform_prior_has_no_draws() -> None:
    with pytest.raises(ConfigError, match=r"improper and has no draws.*RankWise"):
        LogUniform().sample()


# any guide × any model


CASES = {
    "mask": (lambda: AdapterDropout(bert(), Bernoulli(), rank=3), MCDropout),
    "mask sequence": (lambda: AdapterDropout(bert(), Bernoulli(), rank=3, granularity="sequence"), MCDropout),
    "mask global": (lambda: AdapterDropout(bert(), Bernoulli(), rank=3, granularity="global"), MCDropout),
    "A": (down, MeanField),
    "A delta": (down, Delta),
    "diagonal": (lambda: DiagonalCore(bert(), Bernoulli(), rank=3, num_data=50), MeanField),
    "diagonal delta": (lambda: DiagonalCore(bert(), Bernoulli(), rank=3, num_data=50), Delta),
}


@pytest.mark.parametrize("case", CASES)
def test_draws_do_not_depend_on_how_the_data_is_cut(case: str) -> None:
    build, make_guide = CASES[case]
    model = fill_B(build())
    guide, batch = make_guide(model), token_batch()
    whole = predict(model, guide, batch, num_samples=4, return_samples=True)
    parts = predict(model, guide, [batch[:2], batch[2:]], num_samples=4, chunk_size=3, return_samples=True)
    torch.testing.assert_close(whole.samples, parts.samples, rtol=1e-5, atol=1e-6)
    other = predict(model, guide, batch, num_samples=4, seed=1, return_samples=True)
    assert "delta" in case or not torch.allclose(whole.samples, other.samples)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "guide", "says"),
    [
        (lambda: AdapterDropout(bert(), Bernoulli()), MeanField, "MeanField cannot infer 'mask.*MCDropout"),
        (lambda: StochasticCore(bert(), Bernoulli()), MCDropout, "MCDropout cannot infer 'core.*it serves mask"),
        (down, Contextual, "Contextual cannot infer 'A.global', which is global"),
        (lambda: LoRA(bert(), Bernoulli()), MCDropout, "nothing in this LoRA is random"),
    ],
)
def test_pairs_that_cannot_work_are_refused(model: Any, guide: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        guide(model())


def test_rates_outside_their_range() -> None:
    with pytest.raises(ConfigError, match=r"drop is the probability.*\(0, 1\); got 1.0"):
        AdapterDropout(bert(), Bernoulli(), drop=1.0)
