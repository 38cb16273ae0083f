"""Training learns: a tiny random BERT, and tasks that a head on its frozen features does not solve in the same time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bayes_adapters import Batch, Bernoulli, Frames, predict
from bayes_adapters.guides import Contextual, CrossAttention, Delta
from bayes_adapters.models import LoRA, StochasticCore
from bayes_adapters.priors import identity_normal
from bayes_adapters.training import batches, fit
from tests.helpers import CONTEXT, VOCAB, bert


def examples(count: int, seed: int, heard: bool) -> Batch:
    """The label is whether token 7 occurs, or, ``heard``, whether some frame's first feature is high."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(8, VOCAB, (count, 6), generator=rng)
    label = torch.rand(count, generator=rng) < 0.5
    frames = torch.randn(count, 5, CONTEXT, generator=rng)
    place = torch.randint(0, 5, (count,), generator=rng)
    if heard:
        frames[torch.arange(count), place, 0] += 4.0 * (label.float() * 2 - 1)
    else:
        ids[label, place[label]] = 7
    mask = torch.ones(count, 5, dtype=torch.bool)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Batch(inputs, label.float(), {"audio": Frames(frames, mask)})


@pytest.mark.parametrize("method", ["head only", "lora", "contextual", "cross_attention"])
def test_fit_learns(method: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"targets": "all-linear", "rank": 4, "alpha": 8.0}
    if method in {"head only", "lora"}:
        model: Any = LoRA(bert(), Bernoulli(), **options)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and (method == "lora" or name.startswith("head.")))
        guide: Any = Delta(model)
    else:
        model = StochasticCore(bert(), Bernoulli(), granularity="sequence", prior=identity_normal(4), **options)
        guide = Contextual(model) if method == "contextual" else CrossAttention(model, context_dim=CONTEXT, dim=8)
    heard = method == "cross_attention"
    train, test = examples(384, 1, heard), examples(128, 2, heard)
    before = predict(model, guide, test, num_samples=4).log_density
    result = fit(
        model,
        guide,
        batches(train, 32),
        epochs=6,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
        kl_weight=1e-3,
        clip_norm=1.0,
        validation=test,
        progress=False,
    )
    after = predict(model, guide, test, num_samples=4).log_density
    assert before is not None
    assert after is not None
    assert -float(before.mean()) > 0.6
    if method == "head only":
        assert -float(after.mean()) > 0.5
        return
    assert -float(after.mean()) < 0.2
    assert result.history[-1]["nll"] < 0.6 * result.history[0]["nll"]
