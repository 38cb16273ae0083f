"""Attribution of games whose values are known."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_adapters import Categorical, HeteroscedasticGaussian
from bayes_adapters.analysis.attribution import shapley
from bayes_adapters.errors import ConfigError
from tests.analysis.attribution.parts import PARTS, game_batch, play
from tests.information import of_classes
from tests.refusals import refuses

LN2 = math.log(2)


def entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(("method", "expected"), [("withhold", -LN2), ("shapley", -LN2 / 2)])
def test_exclusive_or_needs_both(method: str, expected: float) -> None:
    """y = a xor b: one of them says nothing, both say all."""
    found = play(torch.tensor([0.0, 0.0, 0.0, 60.0])[:, None, None], method=method)
    for name in "ab":
        torch.testing.assert_close(found.changes[name].total, torch.full((3,), expected).double(), rtol=1e-6, atol=0)
        assert (found.changes[name].epistemic == 0).all()
    torch.testing.assert_close(found.changes["a"], found.changes["b"], rtol=0, atol=0)


def test_additive_gaussian_in_closed_form() -> None:
    """y = a + b + ε with Var a = 3, Var b = 1, Var ε = 1: what is not given adds its variance."""
    variance = torch.tensor([5.0, 2.0, 4.0, 1.0])  # given: none, a, b, both
    inverse_softplus = (variance.sqrt() - 1e-4).expm1().log() - math.log(math.e - 1)
    outputs = torch.stack([torch.zeros(4), inverse_softplus], -1)[:, None]
    found = play(outputs, likelihood=HeteroscedasticGaussian())
    h = {
        k: 0.5 * math.log(2 * math.pi * math.e * v)
        for k, v in zip(("", "a", "b", "ab"), variance.tolist(), strict=True)
    }
    expected = {
        "a": ((h["a"] - h[""]) + (h["ab"] - h["b"])) / 2,  # −½ (½ log 5/2 + ½ log 4)
        "b": ((h["b"] - h[""]) + (h["ab"] - h["a"])) / 2,
    }
    alone = play(outputs, likelihood=HeteroscedasticGaussian(), method="withhold")
    for name, other in (("a", "b"), ("b", "a")):
        assert found.changes[name].total.tolist() == pytest.approx([expected[name]] * 3, rel=1e-5)
        assert alone.changes[name].total.tolist() == pytest.approx([h["ab"] - h[other]] * 3, rel=1e-5)
    assert found.uncertainty[frozenset()].total.tolist() == pytest.approx([h[""]] * 3, rel=1e-6)


def test_one_modality_is_epistemic_and_the_other_aleatoric() -> None:
    """Without a the draws contradict each other, without b every draw is undecided."""
    c = 2.0
    outputs = torch.tensor([[0.0, 0.0], [0.0, 0.0], [c, -c], [8.0, 8.0]])[..., None]
    found = play(outputs, method="withhold", num_samples=4)
    sure, torn = entropy(sigmoid(8.0)), entropy(sigmoid(c))
    a, b = ([float(getattr(found.changes[m], part)[0]) for part in PARTS] for m in "ab")
    assert a == pytest.approx([sure - LN2, sure - torn, -(LN2 - torn)], abs=1e-6)
    assert b == pytest.approx([sure - LN2, sure - LN2, 0.0], abs=1e-6)


def test_a_modality_that_is_not_read_changes_nothing_and_symmetric_ones_share() -> None:
    by_number = torch.tensor([[0.1, 0.9], [1.0, 2.0], [3.0, -1.0]])  # of the readers a and c that are given
    counts = torch.tensor([(i & 1) + (i >> 2) for i in range(8)])
    found = play(by_number[counts][..., None], names="abc")
    for part in range(3):
        assert (found.changes["b"][part] == 0).all(), "exactly"
        torch.testing.assert_close(found.changes["a"][part], found.changes["c"][part], rtol=0, atol=1e-15)
    assert (found.changes["a"].aleatoric.abs() > 0.01).all()


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 3), st.integers(0, 10**6))
def test_shapley_is_the_average_over_all_orders_and_adds_up(count: int, seed: int) -> None:
    names = "abc"[:count]
    outputs = 2 * torch.randn(2**count, 3, 2, generator=torch.Generator().manual_seed(seed))
    found = play(outputs, names, Categorical(2))
    everything, nothing = found.uncertainty[frozenset(names)], found.uncertainty[frozenset()]
    assert len(found.uncertainty) == 2**count
    for part in range(3):
        total = torch.stack([found.changes[name][part] for name in names]).sum(0)
        torch.testing.assert_close(total, everything[part] - nothing[part], rtol=0, atol=1e-14)
    splits = [torch.stack(of_classes(draws.softmax(-1))) for draws in outputs]  # of each subset, numbered by bits
    value = {given: splits[sum(1 << names.index(name) for name in given)] for given in found.uncertainty}
    for name in names:
        marginal = []
        for order in permutations(names):
            before = frozenset(order[: order.index(name)])
            marginal.append(value[before | {name}] - value[before])
        for part, expected in zip(PARTS, torch.stack(marginal).mean(0), strict=True):
            change = getattr(found.changes[name], part)
            torch.testing.assert_close(change, expected.expand(3), rtol=0, atol=1e-6)


def test_shapley_of_a_game_that_lacks_a_subset() -> None:
    with refuses(ConfigError, 2, 4, 3):
        shapley({frozenset(s): torch.zeros(1) for s in ("", "a", "ab")})


def test_examples_that_lack_a_modality_are_not_changed_by_it() -> None:
    outputs = torch.tensor([0.0, 1.0, 2.0, 4.0])[:, None, None]
    batch = game_batch("ab", lacking={"a": [1]})
    for method in ("withhold", "shapley"):
        found = play(outputs, method=method, data=batch)
        assert found.changes["a"].total[1] == 0
        assert (found.changes["a"].total[[0, 2]] != 0).all()
        assert found.changes["b"].total[1].item() == pytest.approx(entropy(sigmoid(2.0)) - LN2, abs=1e-6)


def test_what_is_not_asked_about_is_always_given() -> None:
    outputs = torch.tensor([0.0, 1.0, 2.0, 4.0])[:, None, None]
    found = play(outputs, modalities=["b"])
    expected = entropy(sigmoid(4.0)) - entropy(sigmoid(1.0))
    assert found.modalities == ["b"]
    assert found.changes["b"].total[0].item() == pytest.approx(expected, abs=1e-6)
    assert found.changes["b"].total.tolist() == play(outputs, method="withhold").changes["b"].total.tolist()
