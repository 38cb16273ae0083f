"""Segments of an example that run through the encoders as rows of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import ELBO, Batch, Categorical, Tagging, load, predict, save
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Delta, Hypernetwork, MeanField
from bayes_adapters.models import CoLA, ConcatLoRA
from tests.helpers import fill_B, logits
from tests.refusals import refuses
from tests.test_dense_tokens import wander
from tests.text_and_audio import batch, encoders

B, T = 2, 3
LABELS = torch.tensor([[0, 2, 1], [1, -100, 0]])
ABSENT = torch.tensor([1, 1, 0, 1, 1, 1])
"""Of the six segments, whether there is sound."""


def flat() -> Batch:
    return batch(B * T, **{"audio.present": ABSENT})


def folded() -> Batch:
    return Batch({k: v.unflatten(0, (B, T)) for k, v in flat().inputs.items()}, LABELS)


def pairs(kind: str) -> tuple[Any, Any]:
    """A model whose examples have segments, and the one whose examples the segments are."""

    def made(likelihood: Any, **options: Any) -> Any:
        torch.manual_seed(3)
        nets = encoders(1, 1)
        if kind.startswith("wander"):
            return wander(nets, likelihood, **({"dense": None, "every_layer": kind != "wander"} | options))
        model = fill_B((CoLA if kind == "cola" else ConcatLoRA)(nets, likelihood, rank=2, **options))
        with torch.no_grad():
            for inter in [i for layer in model.installed.values() for i in layer.inter.values()]:
                inter.lora_B.normal_(0.0, 0.3)
        return model

    one, other = made(Tagging(3), dense=T, separate=True), made(Categorical(3))
    other.load_state_dict(one.state_dict())
    return one, other


def guides(kind: str, one: Any, other: Any) -> tuple[Any, Any]:
    make: Any = (lambda m: Hypernetwork(m, gamma=2, scale="softplus")) if kind == "cola" else Delta
    torch.manual_seed(4)
    mine, theirs = make(one), make(other)
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs


@pytest.mark.parametrize("kind", ["concat", "cola", "wander", "wander everywhere"])
def test_segments_are_as_examples_of_their_own(kind: str, tmp_path: Path) -> None:
    one, other = pairs(kind)
    mine, theirs = guides(kind, one, other)
    numbers = LABELS.flatten().clamp_min(0)
    found = predict(one, mine, folded(), mean_only=True)
    each = predict(other, theirs, Batch(flat().inputs, numbers), mean_only=True)
    torch.testing.assert_close(found.mean.flatten(0, 1), each.mean, rtol=1e-5, atol=1e-6)
    scored = (LABELS != -100).flatten()
    assert found.log_density is not None and each.log_density is not None  # noqa: PT018
    per_example = (each.log_density * scored).reshape(B, T).sum(1)
    torch.testing.assert_close(found.log_density, per_example, rtol=1e-5, atol=1e-6)
    drawn = predict(one, mine, folded(), num_samples=3)
    chunks = predict(one, mine, folded(), num_samples=3, chunk_size=1)
    torch.testing.assert_close(drawn.mean, chunks.mean, rtol=1e-5, atol=1e-6)
    save(tmp_path / "a", one, mine)
    assert torch.equal(predict(*load(tmp_path / "a", encoders(1, 1)), folded(), num_samples=3).mean, drawn.mean)


def test_a_latent_counts_once_per_segment_that_it_acts_on() -> None:
    one, other = pairs("cola")
    mine, theirs = guides("cola", one, other)
    assert {site.granularity for site in one.sites} == {"token"}
    kls = []
    for elbo, data in (
        (ELBO(one, mine), folded()),
        (ELBO(other, theirs), Batch(flat().inputs, torch.zeros(6).long())),
    ):
        torch.manual_seed(5)  # what one layer hears depends on the draws of others
        kls.append(elbo.terms(data).kl)
    torch.testing.assert_close(kls[0], T * kls[1])
    loss = ELBO(one, mine)(folded())
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in mine.parameters())
    field = MeanField(one)
    assert bool(predict(one, field, folded(), num_samples=2).mean.isfinite().all())


def test_what_is_refused() -> None:
    with refuses(ConfigError, "separate=True", "dense='text'"):
        ConcatLoRA(encoders(1, 1), Tagging(3), dense="text", separate=True)
    model = fill_B(ConcatLoRA(encoders(1, 1), Tagging(3), rank=2, dense=T, separate=True))
    whole: dict[str, Tensor] = {**folded().inputs, "audio.input_features": batch(B).inputs["audio.input_features"]}
    with refuses(DataError, "audio.input_features", "(B, 3, …)", (2, 8, 20)):
        logits(Delta(model), Batch(whole))
    with refuses(DataError, "text.segment", "separate"):
        logits(Delta(model), Batch({**folded().inputs, "text.segment": torch.zeros(B, T, 7, dtype=torch.long)}))
    marks = Batch({**folded().inputs, "audio.present": torch.tensor([1, 0])})
    assert logits(Delta(model), marks).shape == (B, T, 3)
    assert isinstance(model.head, nn.Module)
