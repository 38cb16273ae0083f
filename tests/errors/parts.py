"""What an error must say, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import ELBO, AdapterGuide, AdapterModel, Batch, predict
from bayes_adapters.errors import BayesAdaptersError

NAN, INF = float("nan"), float("inf")


def state_of(*modules: nn.Module) -> list[Any]:
    """Everything an error must leave alone: structure, modes, flags, values."""
    out: list[Any] = []
    for module in modules:
        out += [(name, type(m), m.training) for name, m in module.named_modules()]
        out += [(name, p.requires_grad, p.detach().clone(), p.grad) for name, p in module.named_parameters()]
    return out


def assert_same(before: list[Any], after: list[Any]) -> None:
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        for a, b in zip(old, new, strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, old[0]


def check(call: Callable[[], Any], kind: type[BayesAdaptersError], says: list[str], *modules: nn.Module) -> None:
    """``call`` raises ``kind`` in one line that holds every phrase of ``says``; ``modules`` stay as they were."""
    before = state_of(*modules)
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for phrase in says:
        assert phrase in message, f"{phrase!r} is not in: {message}"
    assert_same(before, state_of(*modules))


def runs(model: AdapterModel, guide: AdapterGuide, batch: Batch) -> list[Callable[[], Any]]:
    """Training and prediction: the same bad input must stop both."""
    return [lambda: ELBO(model, guide)(batch), lambda: predict(model, guide, batch, num_samples=2)]
