"""Encoder–decoders: source and target tokens each have their own mask, also where both are of one length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BartConfig, BartModel, T5Config, T5Model

from bayes_adapters import ELBO, Batch, Bernoulli, Tagging, predict
from bayes_adapters.errors import DataError
from bayes_adapters.guides import Contextual, Delta
from bayes_adapters.models import ConcatLoRA, LoRA
from tests.helpers import VOCAB, WIDTH, bert, core_model
from tests.refusals import refuses

LENGTH = 7


def t5() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return T5Model(T5Config(dropout_rate=0.0, **sizes)).eval()


def bart() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "d_model": WIDTH, "max_position_embeddings": 32, "dropout": 0.0}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    return BartModel(BartConfig(encoder_layers=2, decoder_layers=2, **heads, **sizes)).eval()


BACKBONES: dict[str, Callable[[], nn.Module]] = {"t5": t5, "bart": bart}


def tokens(seed: int) -> Tensor:
    return torch.randint(3, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(seed))


def mask(*lengths: int) -> Tensor:
    return (torch.arange(LENGTH) < torch.tensor(lengths)[:, None]).long()


def batch(labels: Tensor | None = None) -> Batch:
    """Source and target have seven positions each; of the source 3, 7, 2 are real and of the target 7, 4, 5."""
    inputs = {"input_ids": tokens(1), "attention_mask": mask(3, 7, 2)}
    inputs |= {"decoder_input_ids": tokens(2), "decoder_attention_mask": mask(7, 4, 5)}
    return Batch(inputs, labels)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("name", BACKBONES)
def test_labels_are_those_of_the_decoders_tokens(name: str, given: bool) -> None:
    """By hand: the mean over examples of the sum over real target tokens; without a mask all of them are real."""
    model = LoRA(BACKBONES[name](), Tagging(4), targets="all-linear", rank=2)
    labels = tokens(3) % 4
    whole = batch(labels)
    if not given:
        whole = Batch({k: v for k, v in whole.inputs.items() if k != "decoder_attention_mask"}, labels)
    hidden = model.backbone(**whole.inputs).last_hidden_state
    logs = model.head(hidden).log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    real = mask(7, 4, 5) if given else torch.ones(3, LENGTH)
    expected = -(logs * real).sum() / 3
    torch.testing.assert_close(ELBO(model, Delta(model)).terms(whole).nll, expected)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize("name", BACKBONES)
def test_pooling_is_over_the_decoders_tokens(name: str, pooling: str) -> None:
    model = LoRA(BACKBONES[name](), Bernoulli(), targets="all-linear", rank=2, pooling=pooling)
    guide, whole = Delta(model), batch()
    together = predict(model, guide, whole, num_samples=1).probs
    for row, (source, target) in enumerate(zip((3, 7, 2), (7, 4, 5), strict=True)):
        alone = {k: v[row : row + 1, : (target if "decoder" in k else source)] for k, v in whole.inputs.items()}
        torch.testing.assert_close(predict(model, guide, Batch(alone), num_samples=1).probs[0], together[row])


@pytest.mark.parametrize("name", BACKBONES)
def test_cores_of_each_stream_have_the_kl_of_its_own_tokens(name: str) -> None:
    """Cut to its real tokens, an example has the KL and the draws that it has among padding."""
    names = ["q", "k", "v"] if name == "t5" else ["q_proj", "k_proj", "v_proj"]
    model = core_model(backbone=BACKBONES[name](), targets=names, rank=2)
    guide, whole = Contextual(model), batch(torch.tensor([1.0, 0.0, 1.0]))
    guide.eval()
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(0.1)
    probs = predict(model, guide, whole, num_samples=3, seed=4).probs
    for row, (source, target) in enumerate(zip((3, 7, 2), (7, 4, 5), strict=True)):
        alone = {k: v[row : row + 1, : (target if "decoder" in k else source)] for k, v in whole.inputs.items()}
        index = torch.tensor([row])
        found = predict(model, guide, Batch(alone, index=index), num_samples=3, seed=4).probs
        torch.testing.assert_close(found[0], probs[row])
    sizes = {}
    guide(whole)
    for site in model.sites:
        sizes[site.name] = int(guide.trace.nodes[site.name]["infer"]["site"].token_mask.sum())
    assert set(sizes.values()) == {12, 16}
    for site, size in sizes.items():
        reads = site.rpartition(".")[2][0] in "kv" and ("EncDec" in site or "encoder_attn" in site)
        assert size == (12 if reads or ".encoder." in f".{site.partition('.')[2]}" else 16), site


def test_an_encoder_decoder_among_several_encoders() -> None:
    model = ConcatLoRA(nn.ModuleDict({"text": t5(), "other": bert()}), Bernoulli(), targets="all-linear", rank=2)
    guide, whole = Delta(model), batch()
    other = {"other.input_ids": tokens(5), "other.attention_mask": mask(7, 7, 7)}
    together = predict(model, guide, Batch({f"text.{k}": v for k, v in whole.inputs.items()} | other)).probs
    row = {f"text.{k}": v[2:, : (5 if "decoder" in k else 2)] for k, v in whole.inputs.items()}
    alone = predict(model, guide, Batch(row | {k: v[2:] for k, v in other.items()})).probs
    torch.testing.assert_close(alone[0], together[2])


def test_a_decoder_without_tokens_is_refused() -> None:
    model = LoRA(t5(), Bernoulli(), targets="all-linear", rank=2)
    with refuses(DataError, "T5Model", "inputs['decoder_input_ids']", "backbone.get_encoder()"):
        predict(model, Delta(model), Batch({"input_ids": tokens(1)}))


def test_a_mask_of_another_length_than_the_decoders_tokens_is_refused() -> None:
    with refuses(DataError, "decoder_attention_mask", (3, 6), (3, 7)):
        Batch(batch().inputs | {"decoder_attention_mask": mask(6, 6, 6)[:, :6]})
