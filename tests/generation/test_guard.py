"""A guard answers where it promised to, and semantic entropy counts meanings."""

from __future__ import annotations

import math

import pytest
import torch

from bayes_adapters import Prediction
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.generation import Action, Guard, generate, semantic_entropy
from tests.generation.parts import llama, pair, prompts
from tests.refusals import refuses


def _said(u: torch.Tensor) -> Prediction:
    return Prediction(torch.full_like(u, 0.8), u, 0.25 * u, 0.75 * u, num_samples=4)


def test_few_answers_are_given_and_wrong() -> None:
    """Over many calibrations of 60 examples each, the mean share of given and wrong answers keeps to the risk."""
    torch.manual_seed(0)
    shares = []
    for _ in range(300):
        u = torch.rand(120)
        wrong = torch.rand(120) < u
        guard = Guard.fit(_said(u[:60]), wrong[:60], risk=0.1, part="epistemic")
        given = torch.tensor([action == Action.ANSWER for action in guard(_said(u[60:]))])
        shares.append(float((given & wrong[60:]).float().mean()))
    assert 0.06 < sum(shares) / 300 <= 0.1
    assert guard.part == "epistemic"
    assert 0.2 < guard.coverage < 0.8


def test_two_thresholds_have_three_actions() -> None:
    guard = Guard(1.0, beyond="tool", limit=2.0)
    assert guard(_said(torch.tensor([1.0, 1.5, 2.0, 2.5]))) == [Action.ANSWER, Action.ASK, Action.ASK, Action.TOOL]
    assert Guard(-math.inf)(_said(torch.zeros(2))) == [Action.ABSTAIN] * 2


def test_a_text_is_judged_by_the_mean_over_its_tokens() -> None:
    model, guide = pair("blob", llama(), ["q_proj"])
    found = generate(model, guide, prompts(), num_samples=3, max_new_tokens=4)
    means = found.epistemic.mean(-1)
    guard = Guard(float(means.median()), part="epistemic")
    assert [action == Action.ANSWER for action in guard(found)] == (means <= means.median()).tolist()


def test_guards_that_cannot_be_are_refused() -> None:
    with refuses(ConfigError, "part", "'totl'", "'total'"):
        Guard(1.0, part="totl")
    with refuses(ConfigError, "beyond", "'shout'", "abstain"):
        Guard(1.0, beyond="shout")
    with refuses(ConfigError, "limit=0.5", "threshold=1.0"):
        Guard(1.0, limit=0.5)
    with refuses(ConfigError, "threshold=nan"):
        Guard(math.nan)
    with refuses(ConfigError, "(2, 3)", "total"):
        Guard(1.0)(_said(torch.rand(2, 3)))


def test_meanings_are_counted() -> None:
    def same(a: str, b: str) -> bool:
        return a.split()[-1] == b.split()[-1]

    texts = ["it is 4", "four: 4", "5", "4"]
    found = semantic_entropy(texts, same)
    assert found.clusters == [[0, 1, 3], [2]]
    assert found.entropy == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert semantic_entropy(["a", "b", "c"], same).entropy == pytest.approx(math.log(3))
    assert semantic_entropy(["a"] * 3, same).entropy == 0.0
    one_way = semantic_entropy(["a", "a b"], lambda a, b: a in b)
    assert one_way.clusters == [[0], [1]]  # both ways are asked for


def test_probabilities_of_texts_weigh_meanings() -> None:
    log_probs = torch.tensor([0.2, 0.2, 0.1, 0.3], dtype=torch.float64).log()
    found = semantic_entropy(["yes", "yes", "no", "YES"], lambda a, b: a.lower() == b.lower(), log_probs - 700.0)
    assert found.shares == pytest.approx([0.5 / 0.6, 0.1 / 0.6])  # "yes", written twice, counts once
    different = torch.tensor([0.4, 0.2, 0.3], dtype=torch.float64).log()  # two draws give one text another p
    for order in ([0, 1, 2], [1, 0, 2]):
        each = semantic_entropy(["yes", "yes", "no"], lambda a, b: a == b, different[order])
        assert each.shares == pytest.approx([0.5, 0.5])
    never = semantic_entropy(["yes", "no"], lambda a, b: a == b, torch.tensor([-math.inf, -1.0]))
    assert never.shares == [0.0, 1.0]
    for wrong in (-math.inf, math.nan, math.inf):
        with refuses(DataError, str(wrong)):
            semantic_entropy(["a", "b"], lambda a, b: a == b, torch.full((2,), wrong))
    with refuses(DataError, 2, "(3,)"):
        semantic_entropy(["a", "b"], lambda a, b: a == b, torch.zeros(3))
    with refuses(DataError, 0):
        semantic_entropy([], lambda a, b: a == b)
