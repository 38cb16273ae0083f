"""What is refused of labels of tokens."""

from __future__ import annotations

from bayes_adapters import (
    Categorical,
    Tagging,
    adapted_layers,
)
from bayes_adapters.errors import ConfigError
from bayes_adapters.models import LoRA
from tests.helpers import bert
from tests.refusals import refuses


def test_pooling_and_likelihood_must_fit() -> None:
    backbone = bert()
    with refuses(ConfigError, "Tagging", "pooling='mean'"):
        LoRA(backbone, Tagging(3), pooling="mean")
    with refuses(ConfigError, "Categorical", "pooling='none'"):
        LoRA(backbone, Categorical(3), pooling="none")
    assert not adapted_layers(backbone)
    assert LoRA(backbone, Tagging(3), pooling="none").pooling == "none"


def test_too_few_classes() -> None:
    with refuses(ConfigError, "num_classes", 2, 1):
        Tagging(1)
