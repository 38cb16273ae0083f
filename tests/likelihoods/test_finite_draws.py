"""What a finite number of draws does to the two parts of uncertainty, by enumerating every set of draws there is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_adapters import Batch, Categorical, Gaussian, predict
from bayes_adapters.analysis.calibration import DeviationScaling
from bayes_adapters.guides import Contextual, Delta
from bayes_adapters.heads import VariationalLastLayer
from bayes_adapters.likelihoods import GaussianOutputs, Poisson, Prediction, StudentT
from bayes_adapters.models import LoRA, StochasticCore
from tests.helpers import Linear, bert, fill_B, token_batch

VALUES = (-0.9, 0.2, 1.6)
"""What the output may be, each with probability ⅓."""


def every(likelihood: Any, samples: int, values: tuple[Any, ...] = VALUES) -> Iterator[Prediction]:
    """Yield the prediction of every sequence of draws, all equally likely: a mean over them is an expectation."""
    for drawn in product(values, repeat=samples):
        outputs = torch.tensor(drawn).reshape(samples, 1, -1)
        with torch.no_grad():
            fn = likelihood.distribution(outputs)
        yield likelihood.predict(likelihood.summarise(fn), samples)


def expected(predictions: list[Prediction], name: str) -> float:
    return float(torch.stack([getattr(p, name).double() for p in predictions]).mean())


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_the_law_of_total_variance_without_a_bias_of_the_number_of_draws(samples: int) -> None:
    found = list(every(Gaussian(init_log_scale=math.log(0.5)), samples))
    between = float(torch.tensor(VALUES).double().var(correction=0))
    assert expected(found, "aleatoric_variance") == pytest.approx(0.25)
    assert expected(found, "epistemic_variance") == pytest.approx(between)
    assert expected(found, "variance") == pytest.approx(0.25 + (1 - 1 / samples) * between)


@pytest.mark.parametrize("likelihood", [Poisson(), StudentT()])
def test_noise_that_depends_on_the_draw(likelihood: Any) -> None:
    found = list(every(likelihood, 3))
    with torch.no_grad():
        fn = likelihood.distribution(torch.tensor(VALUES)[:, None])
    assert expected(found, "aleatoric_variance") == pytest.approx(float(fn.variance.mean()), rel=1e-5)
    assert expected(found, "epistemic_variance") == pytest.approx(float(fn.mean.double().var(correction=0)), rel=1e-5)


@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_the_corrected_entropy_of_numbers_takes_the_bias_of_the_first_order_out(spread: float) -> None:
    values = tuple(spread * v for v in VALUES)
    limit = 0.5 * math.log1p(float(torch.tensor(values).double().var(correction=0)))
    found = list(every(Gaussian(), 4, values))
    plain, corrected = (expected(found, name) / limit for name in ("epistemic", "epistemic_corrected"))
    assert plain == pytest.approx(0.75, abs=0.03 if spread < 1 else 0.1)
    assert abs(corrected - 1) < (2e-3 if spread < 1 else 0.07)


def test_mutual_information_of_classes() -> None:
    """Of draws that are sure of either class S/(S−1) is exact at S = 2 and 3 % too much at S = 3."""
    for samples, ratio in ((2, 1.0), (3, 1.033)):
        found = list(every(Categorical(2), samples, ((30.0, -30.0), (-30.0, 30.0))))
        assert expected(found, "epistemic_corrected") / math.log(2) == pytest.approx(ratio, abs=5e-4)
    small = ((0.1, 0.0), (-0.1, 0.0), (0.05, 0.0))
    probs = Categorical(2).distribution(torch.tensor(small)).probs.double()
    limit = torch.special.entr(probs.mean(0)).sum() - torch.special.entr(probs).sum(-1).mean()
    assert expected(list(every(Categorical(2), 3, small)), "epistemic_corrected") == pytest.approx(
        float(limit), rel=1e-2
    )


def test_what_is_known_without_draws_is_not_corrected() -> None:
    likelihood = Gaussian(init_log_scale=math.log(0.5))
    known = torch.full((2, 1, 1), 0.3)
    fn = likelihood.expected(GaussianOutputs(torch.tensor([0.0, 1.0]).reshape(2, 1, 1), known))
    with torch.no_grad():
        found = likelihood.predict(likelihood.summarise(fn), 2)
    assert float(found.epistemic_variance) == pytest.approx(0.3 + 0.5)
    assert float(found.variance) == pytest.approx(0.25 + 0.3 + 0.25)
    batch = replace(token_batch(), targets=None)
    model = LoRA(bert(), Gaussian(), rank=2, head=VariationalLastLayer(), num_data=50)
    answer = predict(model, Delta(model), batch, num_samples=8)  # one pass stands for eight
    torch.testing.assert_close(answer.epistemic_corrected, answer.epistemic)
    torch.testing.assert_close(answer.aleatoric_variance + answer.epistemic_variance, answer.variance)
    assert bool((answer.epistemic > 0).all())


def test_scaling_and_joining_keep_the_split() -> None:
    one, two = list(every(Gaussian(), 2))[:2]
    joined = Prediction.concatenate([one, two])
    assert torch.equal(joined.epistemic_variance, torch.cat([one.epistemic_variance, two.epistemic_variance]))
    wide = DeviationScaling(3.0)(joined)
    torch.testing.assert_close(wide.epistemic_variance, 9 * joined.epistemic_variance)
    torch.testing.assert_close(wide.aleatoric_variance, 9 * joined.aleatoric_variance)
    torch.testing.assert_close(wide.epistemic_corrected, joined.epistemic_corrected)
    assert next(every(Categorical(2), 2, ((0.0, 1.0),))).epistemic_variance is None


@pytest.mark.parametrize(("granularity", "falls"), [("token", 8.0), ("sequence", 1.0)])
def test_draws_for_each_token_average_out_and_one_for_the_sequence_does_not(granularity: str, falls: float) -> None:
    """f is linear in the cores and all tokens are alike: the mean over T independent ones has 1/T of the variance."""
    torch.manual_seed(0)
    model = StochasticCore(Linear(), Gaussian(), rank=2, targets=["query"], granularity=granularity)
    fill_B(model)
    guide, token = Contextual(model), torch.randn(1, 1, 4)

    def variance(length: int) -> Tensor:
        batch = Batch({"x": token.expand(1, length, 4)})
        found = predict(model, guide, batch, num_samples=3000).epistemic_variance
        assert found is not None
        return found

    assert float(variance(1) / variance(8)) == pytest.approx(falls, rel=0.15)
