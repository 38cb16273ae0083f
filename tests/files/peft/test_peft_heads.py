"""Heads beside a PEFT adapter: taken over, left behind, not written."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertForSequenceClassification, GPT2ForSequenceClassification

from bayes_adapters import Bernoulli, Categorical, adapted_layers, predict
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files.peft import HEAD, from_peft, to_peft
from bayes_adapters.guides import Delta
from bayes_adapters.models import FusionLoRA, LoRA
from tests.files.peft.parts import BACKBONES, hidden, settings, trained
from tests.helpers import CONTEXT, bert, gpt2, token_batch

# PEFT reads an attribute that this version of transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def whole(kind: str) -> nn.Module:
    """A model with a head on the same tiny backbone."""
    torch.manual_seed(0)
    config = BACKBONES[kind]().config
    config.num_labels = 3
    config.pad_token_id = 0
    return (BertForSequenceClassification if kind == "bert" else GPT2ForSequenceClassification)(config).eval()


def test_a_score_head_is_taken_over_with_its_pooling(tmp_path: Path) -> None:
    theirs = trained(whole("gpt2"), settings("gpt2", task_type="SEQ_CLS"))
    theirs.save_pretrained(tmp_path)
    inner = theirs.get_base_model().transformer
    backbone = gpt2()
    own = {name.replace(".base_layer", ""): v for name, v in inner.state_dict().items() if "lora_" not in name}
    backbone.load_state_dict(own)
    model = from_peft(tmp_path, backbone, Categorical(3))
    assert model.pooling.value == "last"
    batch = token_batch().without_targets()
    ids = batch.inputs["input_ids"].clamp_min(1).masked_fill(batch.inputs["attention_mask"] == 0, 0)
    inputs = {"input_ids": ids, "attention_mask": batch.inputs["attention_mask"]}
    with torch.no_grad():
        logits = theirs(**inputs).logits
    found = predict(model, Delta(model), type(batch)(inputs)).probs
    torch.testing.assert_close(found, logits.softmax(-1), rtol=0, atol=1e-6)


def test_a_head_on_a_pooler_is_left_behind_and_said_so(tmp_path: Path) -> None:
    theirs = trained(whole("bert"), settings("bert", task_type="SEQ_CLS", target_modules=["query", "value"]))
    theirs.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"head in .*weight \(3, 16\).* was not taken"):
        model = from_peft(tmp_path, bert(), Categorical(3))
    assert model.pooling.value == "mean"
    taken = from_peft(tmp_path, bert(), Categorical(3), head=True, pooling="cls")
    weight = theirs.get_base_model().classifier.modules_to_save["default"].weight
    assert torch.equal(taken.head.weight, weight)
    assert not torch.equal(model.head.weight, weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not torch.equal(from_peft(tmp_path, bert(), Categorical(3), head=False).head.weight, weight)
    backbone = bert()
    with pytest.raises(ConfigError, match=r"head=True, but .* no single linear head of shape \(1, 16\)"):
        from_peft(tmp_path, backbone, Bernoulli(), head=True)
    assert not adapted_layers(backbone)


def test_adapters_inside_a_model_with_a_head_find_the_plain_backbone(tmp_path: Path) -> None:
    theirs = trained(whole("bert"), settings("bert", target_modules=["query", "value"]))
    theirs.save_pretrained(tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.bert.encoder.") for name in names)
    backbone = bert()
    inner = theirs.get_base_model().bert.state_dict()
    backbone.load_state_dict({n.replace(".base_layer", ""): v for n, v in inner.items() if "lora_" not in n})
    model = from_peft(tmp_path, backbone, Bernoulli())
    torch.testing.assert_close(hidden(model.backbone), hidden(theirs.get_base_model().bert), rtol=0, atol=1e-6)


def test_a_head_that_is_not_linear_is_not_written(tmp_path: Path) -> None:
    to_peft(tmp_path, LoRA(bert(), Bernoulli()))
    assert (tmp_path / HEAD).is_file()
    with pytest.warns(UserWarning, match="The head is a TwoLayerHead"):
        to_peft(tmp_path, FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT))
    assert not (tmp_path / HEAD).is_file(), "the head of the adapter there before must not stay"
    (tmp_path / HEAD).write_bytes((tmp_path / "adapter_model.safetensors").read_bytes())
    with pytest.raises(AdapterFileError, match="was not written by to_peft"):
        from_peft(tmp_path, bert(), Bernoulli())
