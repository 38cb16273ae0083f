"""Coverage of intervals over seeds and units: the truth is that of what is simulated, and widths move with it."""

from __future__ import annotations

import pytest
import torch

from bayes_adapters.analysis.metrics import auc as library_auc
from examples.studies import coverage
from examples.studies.coverage import METHODS, WORLDS, World, auc, measure, pseudo_values, simulate


def test_the_truth_is_the_difference_over_many_seeds_and_units() -> None:
    world = World(seeds=0.6)
    scores, y = simulate(world, 40, 600, torch.Generator().manual_seed(0))
    one, two = auc(scores, y).mean(1)
    assert float(one - two) == pytest.approx(world.truth, abs=0.04)
    assert world.truth == pytest.approx(0.05, abs=0.02)


def test_pseudo_values_have_the_auc_as_their_mean_and_its_variance() -> None:
    """Of two equal halves: the variance over resampled data sets is that of the mean of independent values."""
    scores, y = simulate(World(), 1, 40, torch.Generator().manual_seed(1))
    values = pseudo_values(scores, y)
    torch.testing.assert_close(values.mean(-1), auc(scores, y))
    assert float(auc(scores, y)[0, 0]) == pytest.approx(float(library_auc(scores[0, 0].sigmoid(), y)), abs=1e-6)
    one_seed = World(seeds=0.0)
    many = torch.stack([simulate(one_seed, 1, 40, torch.Generator().manual_seed(s))[0][0, 0] for s in range(150)])
    found, each = auc(many, y), pseudo_values(many, y)
    assert float(each.var(1).mean() / 40) == pytest.approx(float(found.var()), rel=0.4)
    assert float(pseudo_values(torch.ones(4), torch.tensor([0.0, 1.0, 0.0, 1.0])).mean()) == 0.5


def test_intervals_that_hold_the_seeds_fixed_miss_where_seeds_differ() -> None:
    found = measure(WORLDS["seeds differ"], 5, units=40, sets=150, resampled=2, draws=20)
    assert set(found) == set(METHODS)
    assert found["seeds_and_units"].share > 0.88
    assert found["units only"].share < 0.7
    assert found["seeds_and_units"].width > 1.5 * found["units only"].width


def test_the_command_prints_a_row_for_every_world(capsys: pytest.CaptureFixture[str]) -> None:
    assert coverage.main(["--sets", "2", "--resampled", "1", "--draws", "5", "--seeds", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(WORLDS)
    assert lines[2].startswith("| seeds differ | 3 | ")
