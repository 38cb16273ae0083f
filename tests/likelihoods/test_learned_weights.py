"""Learned weights of tasks: the objective by hand, its optimum, what keeps weight 1, and tasks that nobody labelled."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import ELBO, Batch, Bernoulli, Categorical, Gaussian, Tagging, load, predict, save
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Delta
from bayes_adapters.likelihoods import BoundingBox, Likelihood, Masks, MultiLabel, Poisson, Tasks
from bayes_adapters.models import LoRA
from bayes_adapters.training import fit
from tests.helpers import bert, token_batch
from tests.refusals import refuses, warns

S, B, T = 2, 5, 4
NAN = float("nan")
PARTS: dict[str, Any] = {
    "kind": lambda: Categorical(3),
    "tags": lambda: Tagging(2),
    "labels": lambda: MultiLabel(2),
    "size": Gaussian,
    "mask": lambda: Masks((2, 2), (4, 4), dice_weight=0.5),
}
TARGETS = {
    "kind": torch.tensor([0, 2, -100, 1, 1]),
    "tags": torch.tensor([[0, 1, 1, 0], [1, -100, 0, 0], [-100] * 4, [1, 1, 1, 1], [0, 0, -100, -100]]),
    "labels": torch.tensor([[1.0, 0.0], [NAN, 1.0], [0.0, 0.0], [NAN, NAN], [1.0, 1.0]]),
    "size": torch.tensor([0.3, -1.0, 0.0, NAN, 2.0]),
    "mask": torch.where(torch.arange(80).reshape(B, 4, 4) % 7 == 0, -100, torch.arange(80).reshape(B, 4, 4) % 2),
}
REAL = torch.tensor([[True] * 4, [True] * 4, [True] * 4, [True] * 3 + [False], [True] * 4])
REAL_LABELS = {
    "kind": torch.tensor([1.0, 1, 0, 1, 1]),
    "tags": torch.tensor([4.0, 3, 0, 3, 2]),  # one of example 3 is padding
    "labels": torch.tensor([2.0, 1, 2, 0, 2]),
}


def everything(weights: Any) -> Tasks:
    return Tasks({name: make() for name, make in PARTS.items()}, weights)


def test_the_objective_by_hand() -> None:
    plain, learned = everything(None), everything("learned")
    assert learned.learned == ("kind", "tags", "labels", "mask")
    f = torch.randn(S, B, T, plain.num_outputs, generator=torch.Generator().manual_seed(1))
    s = torch.tensor([0.4, -0.7, 1.2, 0.3])
    one, two = plain.of_tokens(f, REAL), learned.of_tokens(f, REAL)
    value = one.pack(TARGETS)  # type: ignore[attr-defined]
    torch.testing.assert_close(one.log_prob(value), two.log_prob(value))  # s = 0
    with torch.no_grad():
        learned.log_variance.copy_(s)
    two = learned.of_tokens(f, REAL)
    each = one.log_probs(value)  # type: ignore[attr-defined]
    labels = REAL_LABELS | {"mask": one.parts["mask"].base_dist.count(TARGETS["mask"]) * 4 / 16}  # type: ignore[attr-defined]
    expected = each["size"]
    for name, variance in zip(learned.learned, s, strict=True):
        expected = expected + (-variance).exp() * each[name] - labels[name] * variance / 2
    found = two.log_prob(value)
    torch.testing.assert_close(found, expected)
    assert labels["mask"].max() < 4
    torch.testing.assert_close(
        learned.weights, {**dict.fromkeys(PARTS, 1.0), **dict(zip(learned.learned, (-s).exp().tolist(), strict=True))}
    )
    torch.testing.assert_close(two.expand(torch.Size([3, S, B])).log_prob(value)[2], found)
    torch.testing.assert_close(learned.log_density(two, TARGETS), plain.log_density(one, TARGETS))


def test_the_best_weight_is_that_of_the_papers_optimum() -> None:
    likelihood = Tasks({"kind": Categorical(3), "tags": Tagging(2)}, "learned")
    f = torch.randn(B, T, 5, generator=torch.Generator().manual_seed(2))
    targets = {name: TARGETS[name] for name in ("kind", "tags")}
    value = likelihood.of_tokens(f, REAL).pack(targets)  # type: ignore[attr-defined]
    optimiser = torch.optim.LBFGS(likelihood.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        found = -likelihood.of_tokens(f, REAL).log_prob(value).sum()
        found.backward()
        return found

    optimiser.step(loss)  # type: ignore[arg-type]
    each = likelihood.of_tokens(f, REAL).log_probs(value)  # type: ignore[attr-defined]
    counts = {name: REAL_LABELS[name].sum() for name in each}
    nll = {name: -each[name].detach().sum() / counts[name] for name in each}
    best = torch.stack([(2 * nll[name]).log() for name in each])
    torch.testing.assert_close(likelihood.log_variance.detach(), best, rtol=1e-3, atol=1e-3)
    left = sum(0.5 * counts[name] * (1 + (2 * nll[name]).log()) for name in each)
    torch.testing.assert_close(loss().detach(), left, rtol=1e-4, atol=1e-4)


def data(targets: dict[str, torch.Tensor]) -> Batch:
    return Batch(token_batch().inputs, targets)


def test_it_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    targets = {"kind": TARGETS["kind"], "size": TARGETS["size"]}
    model = LoRA(bert(1), Tasks({"kind": Categorical(3), "size": Gaussian()}, "learned"), rank=2)
    guide = Delta(model)
    fit(model, guide, data(targets), epochs=5, optimizer=lambda p: torch.optim.Adam(p, 0.05), progress=False)
    likelihood: Any = model.likelihood
    assert likelihood.log_variance.item() != 0.0
    assert likelihood.weights["size"] == 1.0
    save(tmp_path, model, guide)
    again = load(tmp_path, bert(1))
    assert again[0].likelihood.weights == likelihood.weights  # type: ignore[attr-defined]
    assert again[0].likelihood.config() == likelihood.config()
    first, second = (predict(*pair, data(targets)) for pair in ((model, guide), again))
    assert torch.equal(first.log_density, second.log_density)  # type: ignore[arg-type]


def test_a_density_above_one_would_have_no_best_weight() -> None:
    """Why numbers keep weight 1: with log p > 0 the objective grows as s falls."""
    log_p = torch.tensor(1.5)
    scores = [float((-torch.tensor(s)).exp() * log_p - s / 2) for s in (0.0, -2.0, -4.0)]
    assert scores == sorted(scores)
    assert not any(part.bounded for part in (Gaussian(), BoundingBox()))
    assert all(part.bounded for part in (Bernoulli(), Categorical(2), Tagging(2), Poisson(), MultiLabel(1)))


@pytest.mark.parametrize(
    ("parts", "weights", "facts"),
    [
        ({"size": Gaussian}, "learned", ("'learned'", "['size']")),
        ({"kind": Bernoulli}, "learnt", ("'learnt'", "learned")),
    ],
)
def test_weights_that_cannot_be(parts: dict[str, Any], weights: str, facts: tuple[object, ...]) -> None:
    made: dict[str, Likelihood] = {name: make() for name, make in parts.items()}
    with refuses(ConfigError, *facts):
        Tasks(made, weights)


def test_tasks_without_targets() -> None:
    """In one batch a task counts nothing; in all of them its part of the head is never taught; without any: refused."""
    parts = {"kind": Categorical(3), "size": Gaussian()}
    model = LoRA(bert(1), Tasks(parts, "learned"), rank=2)
    guide = Delta(model)
    elbo = ELBO(model, guide)
    only = elbo(data({"kind": TARGETS["kind"]}))
    nothing = elbo(data({"kind": TARGETS["kind"], "size": torch.full((B,), NAN)}))
    torch.testing.assert_close(only, nothing)
    unlabelled = elbo(data({"kind": torch.full((B,), -100)}))
    assert unlabelled.item() == 0.0
    options: Any = {"optimizer": lambda p: torch.optim.Adam(p, 0.05), "progress": False}
    with warns(UserWarning, "['size']", -100):
        fit(model, guide, [data({"kind": TARGETS["kind"]}), data({"size": torch.full((B,), NAN)})], epochs=2, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(model, guide, [data({"kind": TARGETS["kind"]}), data({"size": TARGETS["size"]})], epochs=1, **options)
    with refuses(DataError, "without a task"):
        elbo(data({}))
