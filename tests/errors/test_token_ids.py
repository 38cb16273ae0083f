"""Token ids outside the vocabulary and texts longer than the table of positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaModel

from bayes_adapters import Batch, Bernoulli, predict
from bayes_adapters.errors import DataError
from bayes_adapters.guides import Delta
from bayes_adapters.models import ConcatLoRA, LoRA
from tests.helpers import VOCAB, bert, deberta_v3, gpt2, llama, opt
from tests.refusals import refuses
from tests.text_and_audio import batch, encoders

POSITIONS = 32


def roberta() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return RobertaModel(RobertaConfig(vocab_size=VOCAB, max_position_embeddings=POSITIONS + 2, **sizes)).eval()


BACKBONES = {"bert": bert, "gpt2": gpt2, "roberta": roberta, "opt": opt}


def lora(backbone: nn.Module) -> tuple[LoRA, Delta]:
    model = LoRA(backbone, Bernoulli(), targets="all-linear", rank=2)
    return model, Delta(model)


def ids(length: int = 5, **wrong: int) -> Tensor:
    found = torch.arange(3 * length).reshape(3, length) % (VOCAB - 2) + 2
    for row, value in wrong.items():
        found[int(row[3:]), 1] = value
    return found


@pytest.mark.parametrize("name", BACKBONES)
def test_an_id_outside_the_vocabulary_is_refused(name: str) -> None:
    model, guide = lora(BACKBONES[name]())
    predict(model, guide, Batch({"input_ids": ids(row1=VOCAB - 1)}))
    for wrong in (VOCAB, -100):
        with refuses(DataError, "inputs['input_ids']", wrong, [0, 2], f"0 … {VOCAB - 1}"):
            predict(model, guide, Batch({"input_ids": ids(row0=wrong, row2=wrong)}))


def test_added_tokens_are_in_the_vocabulary() -> None:
    model, guide = lora(bert())
    model.backbone.resize_token_embeddings(VOCAB + 3)
    predict(model, guide, Batch({"input_ids": ids(row0=VOCAB + 2)}))
    with refuses(DataError, "inputs['input_ids']", VOCAB + 3, [0], f"0 … {VOCAB + 2}"):
        predict(model, guide, Batch({"input_ids": ids(row0=VOCAB + 3)}))


@pytest.mark.parametrize("name", BACKBONES)
def test_a_text_longer_than_the_positions_is_refused(name: str) -> None:
    model, guide = lora(BACKBONES[name]())
    predict(model, guide, Batch({"input_ids": ids(POSITIONS)}))
    with refuses(DataError, "inputs['input_ids']", POSITIONS + 1, POSITIONS, "truncation=True"):
        predict(model, guide, Batch({"input_ids": ids(POSITIONS + 1)}))


def test_positions_that_are_given_or_not_learned_set_no_limit() -> None:
    long = ids(POSITIONS + 1)
    predict(*lora(llama()), Batch({"input_ids": long}))
    positions = (torch.arange(POSITIONS + 1) // 2).expand(3, -1)
    predict(*lora(bert()), Batch({"input_ids": long, "position_ids": positions}))
    predict(*lora(deberta_v3()), Batch({"input_ids": long}))


@pytest.mark.parametrize("name", ["roberta", "opt"])
def test_padding_that_takes_no_position_does_not_count(name: str) -> None:
    model, guide = lora(BACKBONES[name]())
    padded = torch.cat([ids(POSITIONS), torch.ones(3, 8, dtype=torch.long)], 1)
    mask = (torch.arange(POSITIONS + 8) < POSITIONS).long().expand(3, -1)
    whole = predict(model, guide, Batch({"input_ids": padded, "attention_mask": mask})).mean
    cut = predict(model, guide, Batch({"input_ids": padded[:, :POSITIONS], "attention_mask": mask[:, :POSITIONS]})).mean
    torch.testing.assert_close(whole, cut)
    longer = torch.cat([torch.full((3, 1), 5), padded], 1), torch.cat([mask[:, :1], mask], 1)
    with refuses(DataError, "inputs['input_ids']", POSITIONS + 1, POSITIONS):
        predict(model, guide, Batch({"input_ids": longer[0], "attention_mask": longer[1]}))


def test_of_several_encoders_the_right_one_is_named() -> None:
    model = ConcatLoRA(encoders(), Bernoulli(), rank=2)
    guide = Delta(model)
    with refuses(DataError, "inputs['text.input_ids']", VOCAB, [0, 1, 2, 3], "BertModel", f"0 … {VOCAB - 1}"):
        predict(model, guide, batch(**{"text.input_ids": torch.full((4, 7), VOCAB)}))
    long = {key: torch.ones(4, 33, dtype=torch.long) for key in ("text.input_ids", "text.attention_mask")}
    with refuses(DataError, "inputs['text.input_ids']", 33, "BertModel", POSITIONS):
        predict(model, guide, batch(**long))
