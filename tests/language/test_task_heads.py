"""The head of a checkpoint that was trained for a task: taken over, trained further, or frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)

from bayes_adapters import Batch, Categorical, Tagging, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta
from bayes_adapters.heads import TransformersHead
from bayes_adapters.models import LoRA
from bayes_adapters.training import fit
from tests.helpers import fill_B
from tests.refusals import refuses

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 24, "pad_token_id": 0, "num_labels": 3}


def roberta(kind: Any = RobertaForSequenceClassification) -> Any:
    torch.manual_seed(0)
    return kind(RobertaConfig(max_position_embeddings=32, **SIZES)).eval()


def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**SIZES)).eval()


@pytest.mark.parametrize(
    ("make", "targets", "likelihood"),
    [
        (roberta, ["query"], Categorical),
        (llama, ["q_proj"], Categorical),
        (lambda: roberta(RobertaForTokenClassification), ["query"], Tagging),
    ],
)
def test_a_trained_head_answers_as_its_model_does(make: Any, targets: list[str], likelihood: Any) -> None:
    net = make()
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8], [9, 3, 0, 0]])}
    inputs["attention_mask"] = (inputs["input_ids"] != 0).long()
    own = net(**inputs).logits.detach()
    model = LoRA(net.base_model, likelihood(3), targets=targets, rank=2, head=TransformersHead.of(net)).eval()
    torch.testing.assert_close(model(Batch(inputs)), own)
    assert all(p.requires_grad for p in model.head.parameters())


@pytest.mark.parametrize("frozen", [True, False])
def test_it_is_trained_further_or_stays(frozen: bool, tmp_path: Path) -> None:
    net = roberta()
    model = fill_B(LoRA(net.roberta, Categorical(3), rank=2, head=TransformersHead.of(net, frozen=frozen)))
    guide, batch = Delta(model), Batch({"input_ids": torch.tensor([[5, 6, 7], [9, 3, 4]])}, torch.tensor([0, 2]))
    fit(model, guide, batch, epochs=2, progress=False)
    before = net.classifier.state_dict()
    same = {name: torch.equal(value, before[name]) for name, value in model.head.net.classifier.state_dict().items()}
    assert set(same.values()) == {frozen}
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, roberta().roberta)
    assert torch.equal(predict(again, guide_again, batch).probs, predict(model, guide, batch).probs)
    assert {p.requires_grad for p in again.head.parameters()} == {not frozen}


def test_what_is_no_trained_head() -> None:
    net = roberta()
    with refuses(ConfigError, "RobertaModel", "AutoModelForSequenceClassification"):
        TransformersHead.of(RobertaModel(net.config))
    with refuses(ConfigError, 3, 4, "Categorical"):
        LoRA(net.roberta, Categorical(4), head=TransformersHead.of(net))
    with refuses(ConfigError, "RobertaForSequenceClassification", "TransformersHead.of"):
        LoRA(net, Categorical(3), head=TransformersHead.of(net))
