"""Context that is missing, of another width or name; numbers that are none; nothing to predict."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bayes_adapters import Batch, Bernoulli, Frames, predict
from bayes_adapters.errors import ConfigError, DataError, NonFiniteError
from bayes_adapters.guides import Contextual, CrossAttention, Delta, PooledContext
from bayes_adapters.models import FusionLoRA, StochasticCore
from tests.errors.parts import INF, NAN, check, runs
from tests.helpers import CONTEXT, bert, core_model, token_batch, vit

BOTH = pytest.mark.parametrize("kind", [CrossAttention, PooledContext])


@BOTH
def test_missing_context(kind: Any) -> None:
    model = core_model()
    guide = kind(model, context_dim=CONTEXT, null_context=False)
    batch = token_batch()
    for run in runs(model, guide, batch.without("audio")):
        check(run, DataError, ["'audio'", "Frames(values, mask)", "null_context=True"], model, guide)
    for run in runs(model, guide, batch):
        check(run, DataError, ["'audio'", "rows [2]", "null_context=True"], model, guide)


@BOTH
@pytest.mark.parametrize("null_context", [False, True])
def test_context_of_another_width_or_name(kind: Any, null_context: bool) -> None:
    model = core_model()
    guide = kind(model, context_dim=CONTEXT, null_context=null_context)
    batch = token_batch()
    heard = batch.context["audio"].mask
    wide = Batch(batch.inputs, batch.targets, {"audio": Frames(torch.randn(5, 9, CONTEXT + 1), heard)})
    for run in runs(model, guide, wide):
        check(run, DataError, ["'audio'", 7, "context_dim=6"], model, guide)
    named = Batch(batch.inputs, batch.targets, {"audi": batch.context["audio"]})
    for run in runs(model, guide, named):
        check(run, ConfigError, ["'audio'", ["audi"], "'audi'"], model, guide)


def test_context_of_a_fused_model() -> None:
    model = FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT + 1)
    guide, batch = Delta(model), token_batch()
    for run in runs(model, guide, batch):
        check(run, DataError, ["'audio'", 6, "context_dim=7"], model, guide)
    frames = Frames(torch.randn(5, 9, CONTEXT + 1), batch.context["audio"].mask)
    named = Batch(batch.inputs, batch.targets, {"audi": frames})
    for run in runs(model, guide, named):
        check(run, ConfigError, ["'audio'", ["audi"], "'audi'"], model, guide)


def test_predicting_nothing() -> None:
    model = core_model()
    check(lambda: predict(model, Delta(model), []), DataError, ["batch"], model)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_numbers_that_are_none(bad: float) -> None:
    model = core_model()
    guide, batch = CrossAttention(model, context_dim=CONTEXT), token_batch()
    values = batch.context["audio"].values.clone()
    values[3, 1, 0] = bad
    spoilt = Batch(batch.inputs, batch.targets, {"audio": Frames(values, batch.context["audio"].mask)})
    for run in runs(model, guide, spoilt):
        check(run, NonFiniteError, ["context['audio']", "rows [3]"], model, guide)
    images = StochasticCore(vit(), Bernoulli(), targets=["q_proj"], rank=2)
    pixels = torch.randn(3, 3, 16, 16)
    pixels[1, 0, 2, 2] = bad
    seen = Contextual(images)
    for run in runs(images, seen, Batch({"pixel_values": pixels}, torch.ones(3))):
        check(run, NonFiniteError, ["inputs['pixel_values']", "rows [1]"], images, seen)
