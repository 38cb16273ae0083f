"""Prediction with a vocabulary of classes keeps running sums, not every draw of every token in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bayes_adapters import Tagging, predict
from bayes_adapters.guides import MeanField
from bayes_adapters.likelihoods import _splits
from tests.helpers import core_model, token_batch

VOCABULARY = 6000


class Largest(TorchDispatchMode):
    """Remembers the most entries that a tensor of each dtype had; a view counts as what it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: dict[torch.dtype, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, list | tuple) else (found,):
            if isinstance(value, Tensor):
                self.entries[value.dtype] = max(self.entries.get(value.dtype, 0), value.numel())
        return found


def test_no_tensor_holds_all_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_splits, "_AT_ONCE", 2**16)
    model = core_model("global", likelihood=Tagging(VOCABULARY))
    guide, batch = MeanField(model, init_scale=0.5), token_batch(size=30).without_targets()
    answers = 30 * 7 * VOCABULARY
    with Largest() as seen:
        found = predict(model, guide, batch, num_samples=6)
    assert answers <= seen.entries[torch.float64] < 1.01 * answers, "one sum of the answers, not six"
    assert seen.entries[torch.float32] < 3.01 * answers, "as many draws a pass as the budget takes: two"
    assert found.probs.shape == (30, 7, VOCABULARY)


@pytest.mark.parametrize("chunk", [None, 4])
def test_blocks_change_no_number(chunk: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = core_model("global", likelihood=Tagging(50))
    guide, batch = MeanField(model, init_scale=0.5), token_batch().without_targets()
    whole = predict(model, guide, batch, num_samples=4, chunk_size=chunk, return_samples=True)
    monkeypatch.setattr(_splits, "_AT_ONCE", 300)
    blocks = predict(model, guide, batch, num_samples=4, chunk_size=chunk)
    assert whole.samples is not None
    p = whole.samples.double()
    for found in (whole, blocks):
        torch.testing.assert_close(found.probs, p.mean(0).float(), rtol=1e-6, atol=0)
        torch.testing.assert_close(found.total, torch.special.entr(p.mean(0)).sum(-1).float(), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.aleatoric, torch.special.entr(p).sum(-1).mean(0).float(), rtol=1e-6, atol=1e-9)
    assert torch.equal(whole.probs, blocks.probs)
    assert float(blocks.total.max()) <= math.log(50)
