"""How often a step and a prediction look at a number of a tensor, for which the host would wait for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bayes_adapters import ELBO, AdapterGuide, Batch, Bernoulli, Categorical, Gaussian, Tagging, predict, systems
from bayes_adapters.conditions import checked, first_look, read_together, refuse_where, reworded, unchanged
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.likelihoods import (
    BoundingBox,
    HeteroscedasticGaussian,
    Likelihood,
    Masks,
    MultiGaussian,
    MultiLabel,
    NegativeBinomial,
    Ordinal,
    Poisson,
    StudentT,
    Tasks,
)
from tests.helpers import CONTEXT, bert, token_batch
from tests.host_waits import counted
from tests.refusals import refuses
from tests.text_and_audio import batch as both
from tests.text_and_audio import encoders

CLASSES, REALS = torch.tensor([0, 2, 1, 1, 0]), torch.tensor([0.1, -1.0, 0.4, 2.0, 0.0])
COUNTS, LABELS = REALS.abs().round(), torch.tensor([[0.0, 1], [1, 1], [0, 0], [1, 0], [float("nan"), 1]])


def of_system(name: str, **options: Any) -> tuple[AdapterGuide, Batch]:
    likelihood = Categorical(3) if "context_dim" in options else Bernoulli()
    targets = CLASSES if "context_dim" in options else None
    return systems.build(name, bert(), likelihood, num_data=9, **options)[1], token_batch(targets=targets)


def of_likelihood(likelihood: Likelihood, targets: Any) -> tuple[AdapterGuide, Batch]:
    batch = token_batch()
    return systems.build("c-lora", bert(), likelihood)[1], Batch(batch.inputs, targets)


def strict() -> tuple[AdapterGuide, Batch]:
    guide = systems.build("caliber-x", bert(), Bernoulli(), context_dim=CONTEXT, null_context=False)[1]
    return guide, token_batch()[torch.tensor([0, 1, 3])]


def several(name: str, **options: Any) -> tuple[AdapterGuide, Batch]:
    return systems.build(name, encoders(), Bernoulli(), num_data=9, **options)[1], both()


TASKS = {"a": CLASSES.masked_fill(torch.arange(5) == 3, -100), "b": REALS.masked_fill(torch.arange(5) == 1, torch.nan)}
CASES: dict[str, tuple[int, int, Callable[[], tuple[AdapterGuide, Batch]]]] = {
    **{
        name: (1, 1, lambda name=name: of_system(name))
        for name in ("lora", "mc-dropout", "bayeslora-2026", "blob", "scalabl", "c-lora", "fixed-e")
    },
    **{
        name: (2, 1, lambda name=name: of_system(name, context_dim=CONTEXT))
        for name in ("coco-lora", "caliber-g", "caliber-x", "caliber-shared-kv", "lora-fusion")
    },
    "context is required": (2, 2, strict),
    "gaussian": (2, 1, lambda: of_likelihood(Gaussian(), REALS)),
    "heteroscedastic": (2, 1, lambda: of_likelihood(HeteroscedasticGaussian(), REALS)),
    "multi-gaussian": (2, 1, lambda: of_likelihood(MultiGaussian(2), LABELS)),
    "boxes": (2, 1, lambda: of_likelihood(BoundingBox(giou_weight=1.0), torch.rand(5, 4) / 4 + 0.25)),
    "masks": (
        1,
        1,
        lambda: of_likelihood(Masks((1, 7), (2, 14), dice_weight=1.0), torch.arange(140).reshape(5, 2, 14) % 2),
    ),
    "multi-label": (1, 1, lambda: of_likelihood(MultiLabel(2), LABELS)),
    "ordinal": (2, 1, lambda: of_likelihood(Ordinal(3), CLASSES)),
    "poisson": (2, 1, lambda: of_likelihood(Poisson(), COUNTS)),
    "negative binomial": (2, 1, lambda: of_likelihood(NegativeBinomial(), COUNTS)),
    "student-t": (4, 4, lambda: of_likelihood(StudentT(), REALS)),  # torch looks at the chi-squared within it
    "tagging": (1, 1, lambda: of_likelihood(Tagging(3), torch.arange(35).reshape(5, 7) % 3)),
    # which examples are labelled: in the check, and in the density
    "tasks": (4, 2, lambda: of_likelihood(Tasks({"a": Categorical(3), "b": Gaussian()}), TASKS)),
    "bayesian-cola": (1, 1, lambda: several("bayesian-cola", rank=4)),
    # each fusion asks for the longest text and recording
    "bayesian-wander": (4, 4, lambda: several("bayesian-wander", lengths={"text": 7, "audio": 10})),
}
"""Name → the most waits of a step (inputs, ids, targets; then a family's parameters) and of a chunk, and what runs."""


def own(waits: list[str]) -> list[str]:
    """Those of the library: transformers looks at each mask to see whether it can be left out."""
    return [wait for wait in waits if " at transformers/" not in wait]


@pytest.mark.parametrize("name", CASES)
def test_a_step_and_a_chunk_of_a_prediction(name: str) -> None:
    step, chunk, make = CASES[name]
    guide, batch = make()
    loss = ELBO(guide.model, guide)
    with counted() as waits:
        loss(batch).backward()
    assert len(own(waits)) <= step, "\n".join(own(waits))
    found = []
    for size in (12, 3):
        with counted() as waits:
            predict(guide.model, guide, batch, num_samples=12, chunk_size=size)
        found.append(own(waits))
    assert len(found[1]) - len(found[0]) <= 3 * chunk, "\n".join(found[1])
    # Of the whole batch: targets, what the first pass looks at, and the sums; which examples have labels.
    assert len(found[0]) <= chunk + 3 + (name == "tasks"), "\n".join(found[0])


def test_a_wait_is_seen() -> None:
    values = torch.arange(4.0)
    looks: list[Callable[[], Any]] = [
        lambda: bool(values.sum()),
        lambda: float(values[0]),
        lambda: values.tolist(),
        lambda: values[values > 1],
        lambda: values.nonzero(),
        lambda: torch.equal(values, values),
    ]
    for look in looks:
        with counted() as waits:
            look()
        assert len(waits) == 1, waits
    with counted() as waits:
        values[torch.tensor([0, 1])] + torch.where(values > 1, values, 0.0)[:2]
    assert waits == []


def test_the_first_condition_that_fails_is_the_one_that_is_told() -> None:
    fails, holds = torch.tensor([False, True]), torch.zeros(2, dtype=torch.bool)
    with refuses(DataError, "first"), read_together():
        refuse_where(holds, lambda: DataError("none"))
        refuse_where(fails, lambda: None)  # cheaper than exact, and nothing is wrong
        refuse_where(fails, lambda: DataError("first"))
        refuse_where(fails, lambda: DataError("second"))
    with refuses(DataError, "first"), read_together():
        refuse_where(fails, lambda: DataError("first"))
        raise ConfigError("raised at once, and later")
    with refuses(ConfigError, "at once"), read_together():
        refuse_where(holds, lambda: DataError("none"))
        raise ConfigError("raised at once")
    with refuses(DataError, "now"):
        refuse_where(fails, lambda: DataError("now"))


def test_conditions_in_a_context_within_another_are_read_once() -> None:
    with counted() as waits, read_together():
        for _ in range(3):
            with read_together():
                refuse_where(torch.zeros(2, dtype=torch.bool), lambda: DataError("none"))
    assert len(waits) == 1


def test_errors_are_reworded_now_and_later() -> None:
    fails = torch.tensor(True)

    def word(error: Exception) -> Exception:
        return DataError(f"of the task: {error}")

    with refuses(DataError, "of the task", "wrong"), reworded(DataError, word):
        refuse_where(fails, lambda: DataError("wrong"))
    with refuses(DataError, "of the task", "wrong"), read_together(), reworded(DataError, word):
        refuse_where(fails, lambda: DataError("wrong"))
    with refuses(ConfigError, "other"), reworded(DataError, word):
        raise ConfigError("other")


def test_a_distribution_is_refused_in_torchs_words() -> None:
    import pyro.distributions as dist

    with refuses(ValueError, "scale", "GreaterThan(lower_bound=0.0)", "-1."):
        checked(dist.Normal, loc=torch.zeros(2), scale=torch.tensor([1.0, -1.0]))
    with counted() as waits:
        fn = checked(dist.Normal, loc=torch.zeros(2), scale=torch.ones(2))
        fn.log_prob(torch.zeros(2))
    assert len(waits) == 1


def test_what_stays_as_it_is_is_looked_at_once() -> None:
    one, other = object(), object()
    with unchanged(one):
        assert [first_look(one), first_look(other), first_look(one), first_look(other)] == [True, True, False, True]
    assert first_look(one)
