"""Padding on either side counts nowhere, packed texts do not see each other, and nothing is cached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BartConfig,
    BartModel,
    BioGptConfig,
    BioGptModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    RobertaConfig,
    RobertaModel,
    XGLMConfig,
    XGLMModel,
)

from bayes_adapters import Batch, Bernoulli, predict
from bayes_adapters.errors import DataError
from bayes_adapters.guides import Contextual, Delta
from bayes_adapters.models import ConcatLoRA, LoRA
from tests.helpers import VOCAB, WIDTH, bert, core_model, gpt2, llama, opt
from tests.internals import hooks_of
from tests.refusals import refuses

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
FFN: dict[str, Any] = {"vocab_size": VOCAB, "d_model": WIDTH, "max_position_embeddings": 32}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def distilbert() -> nn.Module:
    config = DistilBertConfig(
        vocab_size=VOCAB, dim=WIDTH, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=32
    )
    return DistilBertModel(config)


def bart() -> nn.Module:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    return BartModel(BartConfig(encoder_layers=1, decoder_layers=1, **heads, **FFN))


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "bert": bert,
    "gpt2": gpt2,
    "opt": opt,
    "llama": llama,
    "roberta": lambda: seeded(lambda: RobertaModel(RobertaConfig(**(SIZES | {"max_position_embeddings": 34})))),
    "electra": lambda: seeded(lambda: ElectraModel(ElectraConfig(embedding_size=8, **SIZES))),
    "albert": lambda: seeded(lambda: AlbertModel(AlbertConfig(embedding_size=8, **SIZES))),
    "distilbert": lambda: seeded(distilbert),
    "biogpt": lambda: seeded(lambda: BioGptModel(BioGptConfig(**SIZES))),
    "xglm": lambda: seeded(lambda: XGLMModel(XGLMConfig(num_layers=2, attention_heads=2, ffn_dim=24, **FFN))),
}


def texts() -> Tensor:
    return torch.randint(3, VOCAB, (3, 6), generator=torch.Generator().manual_seed(1))


def padded(side: str, extra: int = 4) -> dict[str, Tensor]:
    """Three texts of six tokens and ``extra`` padding tokens of arbitrary ids."""
    ids, junk = texts(), torch.randint(3, VOCAB, (3, extra), generator=torch.Generator().manual_seed(2))
    real, none = torch.ones_like(ids), torch.zeros_like(junk)
    both = [(ids, real), (junk, none)] if side == "right" else [(junk, none), (ids, real)]
    return {"input_ids": torch.cat([t for t, _ in both], 1), "attention_mask": torch.cat([m for _, m in both], 1)}


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_either_side_counts_nowhere(family: str, pooling: str) -> None:
    model = LoRA(FAMILIES[family](), Bernoulli(), targets="all-linear", rank=2, pooling=pooling)
    guide = Delta(model)

    def probs(inputs: dict[str, Tensor]) -> Tensor:
        return predict(model, guide, Batch(inputs), num_samples=1).probs

    alone = probs({"input_ids": texts()}) if family != "roberta" else probs(padded("right", 0))
    for side in ("right", "left"):
        torch.testing.assert_close(probs(padded(side)), alone, atol=1e-6, rtol=1e-5)


def test_so_it_is_of_random_cores_and_of_several_draws() -> None:
    model = core_model()
    guide = Contextual(model)
    found = [predict(model, guide, Batch(padded(side)), num_samples=3).probs for side in ("right", "left")]
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)


def test_each_encoder_of_several_has_its_own_positions() -> None:
    model = ConcatLoRA(nn.ModuleDict({"one": bert(), "two": gpt2()}), Bernoulli(), targets="all-linear", rank=2)
    guide = Delta(model)

    def probs(one: str, two: str) -> Tensor:
        inputs = {f"one.{k}": v for k, v in padded(one).items()} | {f"two.{k}": v for k, v in padded(two).items()}
        return predict(model, guide, Batch(inputs), num_samples=2).probs

    torch.testing.assert_close(probs("left", "left"), probs("right", "right"), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(probs("left", "right"), probs("right", "left"), atol=1e-6, rtol=1e-5)


def test_given_positions_are_passed_on() -> None:
    model = LoRA(bert(), Bernoulli(), rank=2)
    guide, inputs = Delta(model), padded("right")
    own = inputs | {"position_ids": torch.arange(10).flip(0).expand(3, -1)}
    assert not torch.allclose(predict(model, guide, Batch(own)).probs, predict(model, guide, Batch(inputs)).probs)


def test_left_padding_that_cannot_be_told_is_refused() -> None:
    model = LoRA(seeded(bart), Bernoulli(), targets="all-linear", rank=2)
    guide = Delta(model)
    probs = predict(model, guide, Batch(padded("right"))).probs
    torch.testing.assert_close(probs, predict(model, guide, Batch(padded("right", 0))).probs, atol=1e-6, rtol=1e-5)
    with refuses(DataError, "attention_mask", [0, 1, 2], "BartModel", "tokenizer.padding_side = 'right'"):
        predict(model, guide, Batch(padded("left")), num_samples=1)


@pytest.mark.parametrize("how", ["positions", "scores"])
def test_packed_texts_do_not_see_each_other(how: str) -> None:
    """Two texts in one row: by positions that start anew, or by a mask of attention scores (B, 1, T, T)."""
    model = LoRA(llama(), Bernoulli(), targets="all-linear", rank=2, pooling="last")
    guide, ids = Delta(model), texts()
    alone = predict(model, guide, Batch({"input_ids": ids[1:2]})).probs
    place = torch.arange(6).repeat(2)[None]
    inputs = {"input_ids": ids[:2].reshape(1, 12), "position_ids": place}
    if how == "scores":
        text = torch.arange(12) // 6
        seen = (text[:, None] == text) & torch.ones(12, 12, dtype=torch.bool).tril()
        inputs |= {"attention_mask": seen[None, None], "token_mask": torch.ones(1, 12, dtype=torch.long)}
    torch.testing.assert_close(predict(model, guide, Batch(inputs)).probs, alone, atol=1e-6, rtol=1e-5)


def test_a_mask_of_scores_needs_one_of_tokens() -> None:
    with refuses(DataError, "attention_mask", "(3, 1, 6, 6)", "(3, 6)", "(B, T)"):
        Batch({"input_ids": texts(), "attention_mask": torch.ones(3, 1, 6, 6)})


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_nothing_is_cached(family: str) -> None:
    model = LoRA(FAMILIES[family](), Bernoulli(), targets="all-linear", rank=2)
    seen: list[Any] = []
    model.backbone.register_forward_hook(lambda module, args, out: seen.append(out.past_key_values))
    model(Batch(padded("right")))
    assert seen == [None]


def test_hooks_are_gone_after_a_pass() -> None:
    model = LoRA(bert(), Bernoulli(), rank=2)
    model(Batch(padded("right")))
    assert hooks_of(model.backbone) == 0
