"""Options that do not exist: near matches, and what PEFT's words are called here."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from bayes_adapters import Bernoulli
from bayes_adapters._options import PEFT_WORDS
from bayes_adapters.errors import ConfigError
from bayes_adapters.models import CoLA, LoRA, StochasticCore
from bayes_adapters.systems import build
from tests.helpers import bert
from tests.refusals import refuses

NAMES = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets"}


@pytest.mark.parametrize("option", PEFT_WORDS)
def test_pefts_words_are_known(option: str) -> None:
    facts = (f"'{option}'", NAMES.get(option, PEFT_WORDS[option].split()[0]))
    for make in (LoRA, StochasticCore):
        given: dict[str, Any] = {option: 4}
        with refuses(ConfigError, make.__name__, *facts):
            make(bert(), Bernoulli(), **given)
    with refuses(ConfigError, "c-lora", *facts):
        build("c-lora", bert(), Bernoulli(), **{option: 4})


def test_near_matches() -> None:
    with refuses(ConfigError, "StochasticCore", "'granularty'", "'granularity'"):
        StochasticCore(bert(), Bernoulli(), granularty="token")
    with refuses(ConfigError, "CoLA", "'stream'", "'streams'"):
        CoLA(nn.ModuleDict({"text": bert(1), "other": bert(1)}), Bernoulli(), stream="cls")
