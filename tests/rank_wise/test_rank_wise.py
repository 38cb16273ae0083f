"""Random A and B with one variance a rank: sites, parameters, files, and where it may be used."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bayes_adapters import ELBO, Bernoulli, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import MeanField, RankWise
from bayes_adapters.models import LoRA, StochasticCore, StochasticFactors
from bayes_adapters.sites import Part
from tests.helpers import WIDTH, bert, gpt2, loc_scale, token_batch
from tests.rank_wise.parts import LAYERS, pair
from tests.refusals import refuses


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
    with refuses(ConfigError, "init_log_variance", [-20, 2], init):
        pair(init_log_variance=init)


def test_other_parts_are_refused() -> None:
    with refuses(ConfigError, "RankWise", "'core.global'", "A, B"):
        RankWise(StochasticCore(bert(), Bernoulli(), granularity="global", num_data=5))


def test_the_model_alone_says_that_its_prior_has_no_draws() -> None:
    with refuses(ConfigError, "StochasticFactors", "RankWise", "MeanField"):
        pair()[0](token_batch())


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
