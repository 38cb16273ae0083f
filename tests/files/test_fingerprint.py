"""A backbone's fingerprint: its own values and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from bayes_adapters import Bernoulli, fingerprint, remove
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta
from bayes_adapters.models import LoRA
from tests.files.parts import scramble
from tests.helpers import bert, gpt2, vit, whisper


@pytest.mark.parametrize("backbone", [bert, gpt2, vit, whisper])
def test_fingerprint_ignores_adapters_and_nothing_else(backbone: Callable[[], nn.Module]) -> None:
    net = backbone()
    before = fingerprint(net)
    model = LoRA(net, Bernoulli(), targets="all-linear", rank=2)
    scramble(model, Delta(model))
    assert fingerprint(net) == before
    assert fingerprint(remove(net)) == before
    for name, p in net.named_parameters():
        if p.numel() <= 1024:
            with torch.no_grad():
                old = p.view(-1)[-1].clone()
                p.view(-1)[-1] = old + 1
                assert fingerprint(net) != before, name
                p.view(-1)[-1] = old
    assert fingerprint(net) == before


def test_fingerprint_of_a_backbone_without_values() -> None:
    with torch.device("meta"):
        net = bert()
    with pytest.raises(ConfigError, match="meta device"):
        fingerprint(net)
