"""A rank's score by hand, on a fresh adapter, and after fixing the gauge."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from bayes_adapters import Bernoulli
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, RankWise
from bayes_adapters.models import StochasticFactors
from bayes_adapters.surgery.pruning import PruneSchedule, prune, scores
from tests.helpers import Linear, bert
from tests.rank_wise.parts import LAYERS
from tests.refusals import refuses
from tests.surgery.pruning.parts import key, pair


def hand_score(guide: RankWise, layer: int, i: int) -> float:
    """The formula with sorted lists and no tensor functions."""

    def middle(values: list[float]) -> float:
        values, half = sorted(values), len(values) // 2
        return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2

    log_variance = guide.log_variance[LAYERS[layer].replace(".", "-")][i].item()
    row, column = guide.loc[key("A", layer)][0, i].tolist(), guide.loc[key("B", layer)][0, :, i].tolist()
    rates = [[log_variance - math.log(m * m + 1e-8) for m in means] for means in (row, column)]
    return 0.5 * (middle(rates[0]) + middle(rates[1]))


def test_scores_by_hand() -> None:
    model, guide = pair()
    with torch.no_grad():
        for p in guide.log_variance.values():
            p.normal_(-6.0)
    found = scores(model, guide)
    assert list(found) == LAYERS
    for layer, path in enumerate(LAYERS):
        assert found[path].tolist() == pytest.approx([hand_score(guide, layer, i) for i in range(3)], abs=1e-4)


def test_scores_of_a_posterior_in_half_precision() -> None:
    model, guide = pair()
    exact = scores(model, guide)
    found = scores(model.bfloat16(), guide.bfloat16())
    assert found[LAYERS[0]].tolist() == pytest.approx(exact[LAYERS[0]].tolist(), rel=0.02)


def test_a_fresh_adapter_scores_above_common_thresholds_and_is_not_emptied() -> None:
    """The trap: at log σ² = −8 and with B at ±0.001 every rank of a wide layer scores about 3.6."""
    torch.manual_seed(0)

    class Wide(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Linear(768, 3)

    model = StochasticFactors(Wide(), Bernoulli(), targets=["query"], rank=8, num_data=10)
    guide = RankWise(model)
    guide.loc["B-query"].data.uniform_(-1e-3, 1e-3)
    # means of the formula's terms: A 0.03 (U(±0.036)), B 7.2 ± its few rows
    assert scores(model, guide)["query"].mean().item() == pytest.approx(3.6, abs=0.5)
    before = copy.deepcopy(guide.state_dict())
    with refuses(ConfigError, "threshold=2", 8, "PruneSchedule(start=…)", "init_log_variance=-12"):
        prune(model, guide, threshold=2.0)
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())
    assert PruneSchedule(threshold=2.0).start > 1, "the schedule waits by default"
    assert (scores(model, RankWise(model, init_log_variance=-12.0))["query"] < 2).all()
    assert prune(model, guide, threshold=2.0, allow_empty=True).after == {"query": 0}


def test_gauge_fixing_scores_equal_norms_and_changes_nothing_else() -> None:
    model, guide = pair(weak=())
    before = copy.deepcopy(guide.state_dict())
    fixed = scores(model, guide, gauge_fix=True)
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())
    with torch.no_grad():  # the same product B A in another gauge, in which B is near the formula's 1e-8
        guide.loc[key("A", 1)].mul_(3000.0)
        guide.loc[key("B", 1)].div_(3000.0)
    again = scores(model, guide, gauge_fix=True)[LAYERS[1]]
    torch.testing.assert_close(again, fixed[LAYERS[1]], rtol=0, atol=1e-3)
    assert (scores(model, guide)[LAYERS[1]] - fixed[LAYERS[1]]).abs().max() > 0.1


def test_gauge_fixing_leaves_scores_of_untied_variances() -> None:
    model, guide = pair(weak=(), tie=False)
    with torch.no_grad():
        for p in guide.log_variance.values():
            p.normal_(-6.0)
    for path, values in scores(model, guide, gauge_fix=True).items():
        torch.testing.assert_close(values, scores(model, guide)[path], rtol=0, atol=1e-3)


def test_gauge_fixing_of_a_rank_that_is_exactly_zero() -> None:
    model, guide = pair()
    with torch.no_grad():
        guide.loc[key("B", 0)][0, :, 2] = 0.0
    assert scores(model, guide, gauge_fix=True)[LAYERS[0]].isfinite().all()


def test_a_point_estimate_has_no_scores() -> None:
    model = StochasticFactors(bert(), Bernoulli(), rank=3, num_data=9)
    with refuses(ConfigError, "Gaussian", "Delta", "RankWise"):
        scores(model, Delta(model))
