"""Agreement of pairs: pointwise mutual information of a joint Gaussian, and who does not belong together."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from bayes_adapters import Frames, Prediction
from bayes_adapters.analysis.dose_response import dose_response
from bayes_adapters.analysis.marginal import Marginal
from bayes_adapters.analysis.metrics import auroc
from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.reliability import PairDensity, blend, frozen_pairs
from tests.helpers import WIDTH, core_model, pad, token_batch
from tests.instrument import unchecked
from tests.refusals import refuses
from tests.reliability.parts import rng

RHO = torch.tensor([0.9, 0.5, 0.0])


def pairs(count: int, seed: int, width: int = 3) -> tuple[Tensor, Tensor]:
    """Features of two sides, mixed and moved, whose canonical correlations are known."""
    r = rng(seed)
    rho = torch.cat([RHO, torch.zeros(width - 3)])
    u = torch.randn(count, width, generator=r)
    v = rho * u + (1 - rho.square()).sqrt() * torch.randn(count, width, generator=r)
    mix = torch.randn(2, width, width, generator=rng(7)) + 2 * torch.eye(width)
    return u @ mix[0] + 5.0, 100.0 * v @ mix[1] - 3.0


def fitted(count: int = 4000, width: int = 3) -> PairDensity:
    return PairDensity.fit(*pairs(count, 0, width), *pairs(4000, 1, width), components=3)


def test_it_is_the_log_ratio_of_the_joint_gaussian_and_the_product_of_its_sides() -> None:
    density = fitted()
    x, a = pairs(6, 3)
    u, v = density._variates("input", x), density._variates("context", a)
    expected = torch.zeros(6)
    for j, rho in enumerate(density.correlation):
        joint = MultivariateNormal(
            torch.zeros(2), torch.stack([torch.stack([rho**0, rho]), torch.stack([rho, rho**0])])
        )
        alone = Normal(0.0, 1.0)
        expected += (
            joint.log_prob(torch.stack([u[:, j], v[:, j]], -1)) - alone.log_prob(u[:, j]) - alone.log_prob(v[:, j])
        )
    torch.testing.assert_close(density.agreement(x, a), expected, rtol=1e-4, atol=1e-4)


def test_known_correlations_are_found_whatever_the_units_and_the_mean_is_the_mutual_information() -> None:
    density = fitted(20_000)
    torch.testing.assert_close(density.correlation, RHO, rtol=0.0, atol=0.04)
    found = density.agreement(*pairs(20_000, 5)).mean()
    torch.testing.assert_close(found, -0.5 * (1 - RHO.square()).log().sum(), rtol=0.05, atol=0.0)
    x, a = pairs(9, 8)
    stretch = torch.tensor([1e-3, 1.0, 50.0])
    other = PairDensity.fit(
        *(p * stretch for p in pairs(4000, 0)), *(p * stretch for p in pairs(4000, 1)), components=3
    )
    torch.testing.assert_close(
        other.agreement(x * stretch, a * stretch), fitted().agreement(x, a), rtol=1e-2, atol=1e-2
    )


def test_correlations_of_few_pairs_with_many_features_are_not_believed() -> None:
    """Twelve more numbers of noise on each side, and forty pairs: in-sample some pair of variates correlates by .9."""
    few = pairs(40, 0, 15)
    held_out, in_sample = (PairDensity.fit(*few, *held, components=15) for held in (pairs(2000, 1, 15), few))
    assert bool((held_out.correlation.diff() <= 0).all())
    assert float(held_out.correlation.sum()) < 0.5 * float(in_sample.correlation.sum())
    x, a = pairs(2000, 2, 15)
    first, second = (
        auroc(-torch.cat([d.agreement(x, a), d.agreement(x, a.roll(1, 0))]), torch.arange(4000) >= 2000)
        for d in (held_out, in_sample)
    )
    assert first > second + 0.02
    # what they promise is what is there: the mean of the agreement of new pairs is not far from its own
    expected = -0.5 * (1 - held_out.correlation.square()).log().sum()
    assert float((held_out.agreement(x, a).mean() - expected).abs()) < 0.2 < float(-in_sample.agreement(x, a).mean())


def test_a_context_of_another_example_is_told_and_the_answer_gives_way() -> None:
    density = fitted()
    x, a = pairs(400, 9)
    gamma, swapped = density(x, a), density(x, a.roll(1, 0))
    assert float((gamma == 1.0).float().mean()) == pytest.approx(0.95, abs=0.03)
    assert auroc(-torch.cat([gamma, swapped]), torch.arange(800) >= 400) > 0.7
    zero = torch.zeros(400)
    sure = Prediction(torch.full((400,), 0.99), zero + 0.056, zero + 0.056, zero, num_samples=1)
    blind = Marginal.of(torch.tensor([0.0, 1.0]))
    found = dose_response({0: blend(sure, gamma, blind), 1: blend(sure, swapped, blind)})
    assert found.spearman["total"][0] > 0.4


def test_features_of_frozen_encoders_know_no_adapter_and_no_padding() -> None:
    model, batch = core_model(), token_batch()
    x, a, present = frozen_pairs(model, [batch[:2], batch[2:]])
    assert x.shape == (5, WIDTH)
    assert present.tolist() == [True, True, False, True, True]
    with model.adapters_disabled() as plain, torch.no_grad():
        hidden = plain(**batch.inputs).last_hidden_state
    real = batch.inputs["attention_mask"][3].bool()
    torch.testing.assert_close(x[3], hidden[3][real].mean(0), rtol=1e-4, atol=1e-5)
    frames = batch.context["audio"]
    torch.testing.assert_close(a[0], frames.values[0][frames.mask[0]].mean(0))
    wide = pad(batch, 3, frames=2)
    for one, two in zip(frozen_pairs(model, wide), (x, a, present), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    lidar = Batch(batch.inputs, None, {"lidar": Frames(frames.values, frames.mask)})
    torch.testing.assert_close(frozen_pairs(model, lidar, "lidar")[1], a)


def test_it_comes_back_from_its_config_and_tensors() -> None:
    density, (x, a) = fitted(), pairs(5, 4)
    again = PairDensity(**json.loads(json.dumps(density.config())))
    with refuses(ConfigError, "PairDensity.fit"):
        again(x, a)
    again.load_state_dict(density.state_dict())
    assert torch.equal(again(x, a), density(x, a))


def test_errors() -> None:
    x, a = pairs(30, 0)
    with unchecked():
        with refuses(DataError, "(N, d)", (30, 3), (29, 3)):
            PairDensity.fit(x, a[:29], x, a, components=2)
        with refuses(DataError, "widths", (30, 2)):
            PairDensity.fit(x, a, x, a[:, :2], components=2)
        with refuses(DataError, 20, 30, 19):
            PairDensity.fit(x, a, x[:19], a[:19], components=2)
        with refuses(DataError, "NaN"):
            PairDensity.fit(x, a * torch.nan, x, a, components=2)
        with refuses(ConfigError, "components", 3, 4):
            PairDensity.fit(x, a, x, a, components=4)
        copied = torch.cat([x, x, torch.full((30, 1), 1234.567)], 1)
        with refuses(ConfigError, "inputs", "components=6", 3):
            PairDensity.fit(copied, torch.cat([a] * 6, 1), copied, torch.cat([a] * 6, 1), components=6)
        with refuses(ConfigError, "contexts", "components=3", 1):
            PairDensity.fit(x, a[:, :1].expand(30, 3), x, a[:, :1].expand(30, 3), components=3)
        with refuses(DataError, "(B, 3)", (30, 2)):
            fitted().agreement(x, a[:, :2])
    batch = token_batch()
    with refuses(DataError, "Batch 1", "lidar", ["audio"], "modality="):
        frozen_pairs(core_model(), [Batch(batch.inputs, None, {"lidar": batch.context["audio"]}), batch], "lidar")
    with refuses(DataError, "no batch"):
        frozen_pairs(core_model(), [])


def test_a_constant_feature_says_nothing_and_a_damaged_pair_is_not_believed() -> None:
    density, (x, a) = fitted(), pairs(200, 4)
    constant = torch.full((200, 1), 0.1)
    more = PairDensity.fit(torch.cat([x, constant], 1), a, torch.cat([x, constant], 1), a, components=3)
    same = PairDensity.fit(x, a, x, a, components=3)
    moved = torch.cat([x, constant + 1e-3], 1)
    torch.testing.assert_close(more.agreement(moved, a), same.agreement(x, a), rtol=1e-3, atol=1e-3)
    for value in (math.nan, math.inf, -math.inf):
        broken = x.clone()
        broken[0, 1] = value
        found = density(broken, a)
        assert found[0] == 0.0
        assert torch.equal(found[1:], density(x, a)[1:])
