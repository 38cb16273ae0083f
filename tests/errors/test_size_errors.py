"""Sizes that cannot be: of encoders, factors, networks and blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bayes_adapters import Bernoulli
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, CrossAttention, Hypernetwork
from bayes_adapters.models import CoLA, FusionLoRA, Wander
from bayes_adapters.training import batches
from tests.errors.parts import check
from tests.helpers import CONTEXT, bert, core_model, token_batch
from tests.instrument import unchecked
from tests.refusals import refuses
from tests.text_and_audio import encoders


@pytest.fixture(autouse=True)
def _as_a_user() -> Iterator[None]:
    with unchecked():
        yield


COLA: dict[str, tuple[dict[str, Any], list[object]]] = {
    "cross_rank": ({"cross_rank": 2.5}, ["cross_rank", 1, 2.5]),
    "gain": ({"gain": "0.5"}, ["gain", "0.5"]),
    "head_width": ({"head_width": 2.5}, ["head_width", 1, 2.5]),
}


WANDER: dict[str, tuple[dict[str, Any], list[object]]] = {
    "fusion_rank": ({"fusion_rank": 2.5}, ["fusion_rank", 1, 2.5]),
    "num_data": ({"num_data": 2.5}, ["num_data", 1, 2.5]),
    "width": ({"width": -1}, ["width", 1, -1]),
    "lengths": ({"lengths": 3}, ["lengths", 3]),
    "one length": ({"lengths": {"text": 3.5, "audio": 2}}, ["lengths['text']", 1, 3.5]),
}


@pytest.mark.parametrize("case", COLA)
def test_sizes_of_cola(case: str) -> None:
    options, facts = COLA[case]
    net = encoders()
    check(lambda: CoLA(net, Bernoulli(), **options), ConfigError, facts, net)


@pytest.mark.parametrize("case", WANDER)
def test_sizes_of_wander(case: str) -> None:
    options, facts = WANDER[case]
    net, sizes = encoders(), {"num_data": 4, "lengths": {"text": 3, "audio": 3}}
    check(lambda: Wander(net, Bernoulli(), **(sizes | options)), ConfigError, facts, net)


def test_the_size_of_a_hypernetwork() -> None:
    gamma: Any = 2.0
    with refuses(ConfigError, "gamma", 1, 2.0):
        Hypernetwork(CoLA(encoders(), Bernoulli(), rank=2), gamma=gamma)


SIZES: dict[str, Callable[[Any], Any]] = {
    "context_dim": lambda value: FusionLoRA(bert(), Bernoulli(), context_dim=value),
    "fusion_width": lambda value: FusionLoRA(bert(), Bernoulli(), context_dim=4, fusion_width=value),
    "dim": lambda value: CrossAttention(core_model(), context_dim=CONTEXT, dim=value),
    "heads": lambda value: CrossAttention(core_model(), context_dim=CONTEXT, heads=value),
    "width": lambda value: Contextual(core_model(), width=value),
    "batch_size": lambda value: batches(token_batch(), value),
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [2.0, "2", None])
def test_sizes_are_whole_numbers(name: str, value: Any) -> None:
    check(lambda: SIZES[name](value), ConfigError, [name, 1, repr(value)])
