"""Guides that listen: padding, order and absence of the context, and what attention reduces to."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from bayes_adapters import Batch, Bernoulli, Frames
from bayes_adapters.analysis.diagnostics import collecting
from bayes_adapters.data.batch import find_frames
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Contextual, CrossAttention, PooledContext
from bayes_adapters.inference.handlers import PosteriorMean
from bayes_adapters.models import FusionLoRA
from tests.helpers import (
    CONTEXT,
    GUIDES,
    assert_same,
    bert,
    core_model,
    differ,
    moments,
    pad,
    token_batch,
)
from tests.instrument import unchecked
from tests.refusals import refuses

CONTEXT_GUIDES = ["cross_attention", "shared_kv", "pooled_context"]


def with_null(name: str, **options: Any) -> Any:
    guide = GUIDES[name](core_model(**options))
    with torch.no_grad():
        for p in guide.reader.null.values():
            p.normal_()
    return guide


@pytest.mark.parametrize("name", CONTEXT_GUIDES)
def test_padded_frames_change_nothing(name: str) -> None:
    guide, batch = with_null(name), token_batch()
    frames = batch.context["audio"]
    noise = torch.where(frames.mask[..., None], frames.values, 1000 * torch.randn_like(frames.values))
    noisy = Batch(batch.inputs, batch.targets, {"audio": Frames(noise, frames.mask)})
    reference = moments(guide, batch)
    assert_same(reference, moments(guide, noisy))
    assert_same(reference, moments(guide, pad(batch, 0, frames=6)))


@pytest.mark.parametrize("name", CONTEXT_GUIDES)
def test_permuting_frames_with_their_mask_changes_nothing_but_the_mask_alone_does(name: str) -> None:
    guide, batch = with_null(name), token_batch()
    frames, order = batch.context["audio"], torch.tensor([4, 0, 8, 2, 6, 1, 7, 3, 5])
    reference = moments(guide, batch)

    def permuted(values: Tensor, mask: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return moments(guide, Batch(batch.inputs, batch.targets, {"audio": Frames(values, mask)}))

    assert_same(reference, permuted(frames.values[:, order], frames.mask[:, order]))
    assert differ(reference, permuted(frames.values, frames.mask[:, order]), row=0)


@pytest.mark.parametrize("name", CONTEXT_GUIDES)
def test_missing_audio_of_the_batch_equals_missing_audio_of_every_row(name: str) -> None:
    guide, batch = with_null(name), token_batch()
    frames = batch.context["audio"]
    masked = Batch(batch.inputs, batch.targets, {"audio": Frames(frames.values, torch.zeros_like(frames.mask))})
    absent = batch.without("audio")
    assert absent.context == {}
    assert_same(moments(guide, masked), moments(guide, absent))
    reference = moments(guide, batch)
    assert differ(reference, moments(guide, absent), row=1)
    assert not differ(reference, moments(guide, absent), row=2), "row 2 has no audio in either batch"


@pytest.mark.parametrize("name", CONTEXT_GUIDES)
def test_an_example_does_not_hear_its_neighbour(name: str) -> None:
    guide, batch = with_null(name), token_batch()
    frames = batch.context["audio"]
    louder = frames.values.clone()
    louder[1] += 3.0
    found = moments(guide, Batch(batch.inputs, batch.targets, {"audio": Frames(louder, frames.mask)}))
    reference = moments(guide, batch)
    others = torch.tensor([0, 2, 3, 4])
    assert_same(
        {k: (m[others], s[others]) for k, (m, s) in reference.items()},
        {k: (m[others], s[others]) for k, (m, s) in found.items()},
    )
    assert differ(reference, found, row=1)


def test_context_errors() -> None:
    batch = token_batch()
    strict = CrossAttention(core_model(), context_dim=CONTEXT, dim=4, null_context=False)
    with refuses(DataError, "'audio'", [2], "null_context=False"):
        strict(batch)
    with refuses(DataError, "'audio'", "null_context=False"):
        strict(batch.without("audio"))
    strict(batch[:2])
    with refuses(DataError, "'audio'", 6, "context_dim=7"):
        CrossAttention(core_model(), context_dim=7, dim=4)(batch)
    with refuses(ConfigError, "'audoi'", "modality='audio'"):
        CrossAttention(core_model(), context_dim=CONTEXT, dim=4, modality="audoi")(batch)
    with refuses(ConfigError, "Is 'audoi' meant to be 'audio'?"):
        misspelled = replace(batch, context={"audoi": batch.context["audio"]})
        CrossAttention(core_model(), context_dim=CONTEXT, dim=4)(misspelled)


def test_guides_and_the_fused_model_find_frames_by_the_same_rule() -> None:
    """What the rule says of a batch is what each reader says of it, word for word."""
    batch = token_batch()
    frames = batch.context["audio"]
    assert find_frames(batch.context, "audio", CONTEXT, "guide") is frames
    assert find_frames({}, "audio", CONTEXT, "guide") is None
    readers = [
        (CrossAttention(core_model(), context_dim=CONTEXT, dim=4), "guide"),
        (PooledContext(core_model(), context_dim=CONTEXT, dim=4), "guide"),
        (FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT), "model"),
    ]
    narrow = Frames(frames.values[..., :2], frames.mask)
    for context in ({"audi": frames}, {"audio": narrow}, {"audio": narrow, "video": frames}):
        for run, reader in readers:
            with pytest.raises((ConfigError, DataError)) as expected:
                find_frames(context, "audio", CONTEXT, reader)
            with pytest.raises(expected.type) as found:
                run(Batch(batch.inputs, batch.targets, context))
            assert str(found.value) == str(expected.value)
            assert f"The {reader} " in str(found.value) or f"the {reader} " in str(found.value)


@pytest.mark.parametrize("heads", [1, 2])
def test_silenced_attention_is_contextual_with_a_constant_context(heads: int) -> None:
    """W_k = W_v = 0 and a zero null pair: c_t = 0, so u_t = [z_t ; 0] and only W₁'s first r columns matter."""
    model = core_model()
    cross = CrossAttention(model, context_dim=CONTEXT, dim=4, heads=heads)
    plain = Contextual(model)
    with torch.no_grad():
        for p in [*cross.reader.key.parameters(), *cross.reader.value.parameters()]:
            p.zero_()
        for key, head in plain.heads.items():
            wide = cross.heads[key].net
            head.net[0].weight.copy_(wide[0].weight[:, : model.rank])
            head.net[0].bias.copy_(wide[0].bias)
            head.net[2].load_state_dict(wide[2].state_dict())
    assert_same(moments(cross, token_batch()), moments(plain, token_batch()))


def test_attention_picks_the_frame_it_is_pointed_at() -> None:
    """One dominant key: the context is that frame's value, and the recorded entropy falls to 0."""
    model = core_model()
    guide = CrossAttention(model, context_dim=2, dim=2, null_context=False)
    with torch.no_grad():
        for site in guide.reader.query:
            guide.reader.query[site].weight.zero_()
            guide.reader.key[site].weight.zero_()
    values = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]]).expand(2, 3, 2)
    mask = torch.tensor([[True, True, False]]).expand(2, 3)
    batch = Batch(token_batch(2).inputs, None, {"audio": Frames(values, mask)})
    with collecting() as seen, torch.no_grad():
        guide(batch)
    assert list(seen["attention_entropy"].values()) == pytest.approx([math.log(2)] * len(model.sites), rel=1e-5)


@pytest.mark.parametrize("granularity", ["token", "sequence"])
def test_the_entropy_of_attention_does_not_see_padding(granularity: str) -> None:
    model = core_model(granularity)
    guide, found = CrossAttention(model, context_dim=CONTEXT, dim=4, heads=2), []
    for batch in (token_batch(), pad(token_batch(), 15)):
        with collecting() as seen, torch.no_grad(), PosteriorMean(), pyro.plate("samples", 2, dim=-2):
            guide(batch)
        found.append(seen["attention_entropy"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_shared_kv_projects_once_and_equals_per_layer_with_tied_weights() -> None:
    model = core_model()
    shared = CrossAttention(model, context_dim=CONTEXT, dim=4, share_kv=True)
    own = CrossAttention(model, context_dim=CONTEXT, dim=4)
    with torch.no_grad():
        for key in own.reader.key:
            own.reader.key[key].load_state_dict(shared.reader.key["shared"].state_dict())
            own.reader.value[key].load_state_dict(shared.reader.value["shared"].state_dict())
            own.reader.query[key].load_state_dict(shared.reader.query[key].state_dict())
            own.heads[key].load_state_dict(shared.heads[key].state_dict())
    calls: list[int] = []
    shared.reader.key["shared"].register_forward_hook(lambda *_: calls.append(1))
    assert_same(moments(shared, token_batch()), moments(own, token_batch()))
    assert len(calls) == 1


@pytest.mark.parametrize("modality", [["image", "audio"], 3, "", None])
def test_a_modality_is_one_name(modality: Any) -> None:
    with unchecked():
        with refuses(ConfigError, "modality", repr(modality)):
            PooledContext(core_model(), context_dim=CONTEXT, modality=modality)
        with refuses(ConfigError, "modality", repr(modality)):
            FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT, modality=modality)
