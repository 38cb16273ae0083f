"""One number per text: the information of a text averages to the mutual information, and agrees with the interface."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import product
from typing import Any

import numpy as np
import torch

from bayes_adapters.errors import ConfigError
from bayes_adapters.generation import Generation, Writing, generate, scores
from examples.polygraph import posterior_estimators, statistics
from tests.generation.parts import llama, pair, prompts
from tests.generation.test_options import Letters
from tests.refusals import refuses


def test_the_information_of_texts_is_the_mutual_information() -> None:
    """All 9 texts of two tokens out of three under 4 draws, each weighed by its probability under the mixture."""
    torch.manual_seed(0)
    first, second = torch.randn(4, 3).log_softmax(-1), torch.randn(4, 3, 3).log_softmax(-1)
    texts = list(product(range(3), repeat=2))
    log_p = torch.stack([torch.stack([first[:, a], second[:, a, b]], -1) for a, b in texts], 1)  # (S, 9, 2)
    tokens, blank = torch.tensor(texts), torch.rand(9, 2)
    said = Generation(tokens, tokens >= 0, blank, blank / 2, blank / 2, -blank, log_p, 4, Writing.AVERAGE)
    whole = log_p.sum(-1).exp()
    mixture = whole.mean(0)
    mutual = torch.special.entr(mixture).sum() - torch.special.entr(whole).sum(-1).mean()
    found = scores(said)
    torch.testing.assert_close((found["information"] * mixture).sum(), mutual, rtol=1e-5, atol=1e-6)
    assert 0 <= float(found["information"].min()) < float(found["information"].max()) <= math.log(4)
    torch.testing.assert_close(found["nll"], -mixture.log())
    torch.testing.assert_close(found["epistemic_sum"], blank.sum(-1) / 2)
    torch.testing.assert_close(found["total_mean"], blank.mean(-1))


class Estimator(ABC):
    """What LM-Polygraph 0.7.0's base class asks for: a level, names of statistics, a name, numbers of one axis."""

    def __init__(self, stats_dependencies: list[str], level: str) -> None:
        assert level in ("sequence", "claim", "token")
        self.level, self.stats_dependencies = level, stats_dependencies

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def __call__(self, stats: dict[str, Any]) -> np.ndarray: ...


def test_they_are_estimators_of_lm_polygraph() -> None:
    model, guide = pair("blob", llama(), ["q_proj"])
    options: dict[str, Any] = {"num_samples": 3, "max_new_tokens": 3, "tokenizer": Letters()}
    said = generate(model, guide, prompts(), **options)
    each = generate(model, guide, prompts(), writing="each", **options)
    stats = statistics(said, each)
    names = list(scores(said, each))
    made = posterior_estimators(Estimator, names)
    assert len({str(one) for one in made}) == len(names) == 7
    for one in made:
        value = one({name: stats[name] for name in one.stats_dependencies})
        assert isinstance(value, np.ndarray)
        assert value.shape == (3,)
        assert one.level == "sequence"
    assert [len(row) for row in stats["sample_texts"]] == [len(row) for row in stats["sample_log_probs"]] == [3, 3, 3]
    assert stats["sample_log_probs"][1][2] == float(each.sequence_log_prob[2 * 3 + 1])
    for i, found in enumerate(stats["semantic_classes_entail"]["class_to_sample"]):
        which = stats["semantic_classes_entail"]["sample_to_class"][i]
        assert sorted(number for own in found for number in own) == [0, 1, 2]
        assert all(number in found[which[number]] for number in range(3))
    with refuses(ConfigError, "'average'"):
        scores(each)
    with refuses(ConfigError, 2, 3):
        scores(said, generate(model, guide, {"input_ids": torch.tensor([[5], [6]])}, writing="each", **options))


def test_a_text_that_a_draw_rules_out_tells_all_of_the_others() -> None:
    log_p = torch.tensor([[[-1.0]], [[-torch.inf]]])
    one = torch.ones(1, 1)
    said = Generation(one.long(), one.bool(), one, one, 0 * one, 0 * one, log_p, 2, Writing.AVERAGE)
    torch.testing.assert_close(scores(said)["information"], torch.tensor([math.log(2)]))
