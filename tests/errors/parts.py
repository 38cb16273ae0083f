"""What an error must say, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters import ELBO, AdapterGuide, AdapterModel, Batch, predict
from bayes_adapters.errors import BayesAdaptersError
from tests.refusals import refuses

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


def check(call: Callable[[], Any], kind: type[BayesAdaptersError], facts: list[Any], *modules: nn.Module) -> None:
    """``call`` raises ``kind`` in one line that names each of ``facts``; ``modules`` stay as they were."""
    before = state_of(*modules)
    with refuses(kind, *facts) as raised:
        call()
    assert "\n" not in str(raised[0])
    assert_same(before, state_of(*modules))


def runs(model: AdapterModel, guide: AdapterGuide, batch: Batch) -> list[Callable[[], Any]]:
    """Training and prediction: the same bad input must stop both."""
    return [lambda: ELBO(model, guide)(batch), lambda: predict(model, guide, batch, num_samples=2)]
