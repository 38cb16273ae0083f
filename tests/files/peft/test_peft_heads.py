"""Heads beside a PEFT adapter: taken over, left behind, not written."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2ForSequenceClassification,
    ViTForImageClassification,
)

from bayes_adapters import Batch, Bernoulli, Categorical, Tagging, load, predict, save
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files.peft import HEAD, from_peft, to_peft
from bayes_adapters.guides import Delta
from bayes_adapters.models import FusionLoRA, LoRA
from bayes_adapters.surgery.training_free import bayesianise
from tests.files.peft.parts import BACKBONES, adapters, hidden, peft, settings, trained
from tests.helpers import CONTEXT, bert, gpt2, token_batch, vit
from tests.refusals import refuses, warns

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


def test_a_head_on_the_backbones_pooler_comes_along(tmp_path: Path) -> None:
    """It was left behind: another probability by .24, from a head that answers at random."""
    theirs = trained(whole("bert"), settings("bert", task_type="SEQ_CLS", target_modules=["query", "value"]))
    theirs.save_pretrained(tmp_path)
    batch = token_batch().without_targets()
    with torch.no_grad():
        expected = theirs(**batch.inputs).logits.softmax(-1)
    model = from_peft(tmp_path, inner_backbone(theirs, "bert"), Categorical(3))
    assert model.pooling.value == "pooler"
    found = predict(model, Delta(model), batch).probs
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    save(tmp_path / "ours", model, Delta(model))
    again, guide = load(tmp_path / "ours", inner_backbone(theirs, "bert"))
    assert torch.equal(predict(again, guide, batch).probs, found)


def test_a_head_on_a_vision_models_first_token_comes_along(tmp_path: Path) -> None:
    config = vit().config
    config.num_labels = 3
    torch.manual_seed(0)
    theirs = peft.get_peft_model(
        ViTForImageClassification(config).eval(),
        peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]),
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.3)
    theirs.save_pretrained(tmp_path)
    batch = Batch({"pixel_values": torch.randn(4, 3, 16, 16)})
    with torch.no_grad():
        expected = theirs(**batch.inputs).logits.softmax(-1)
    model = from_peft(tmp_path, inner_backbone(theirs, "vit"), Categorical(3))
    assert model.pooling.value == "cls"
    torch.testing.assert_close(predict(model, Delta(model), batch).probs, expected, rtol=0, atol=1e-6)


def test_a_head_of_token_classification_comes_along(tmp_path: Path) -> None:
    config = bert().config
    config.num_labels = 3
    torch.manual_seed(0)
    theirs = trained(
        BertForTokenClassification(config).eval(),
        settings("bert", task_type="TOKEN_CLS", target_modules=["query", "value"]),
    )
    theirs.save_pretrained(tmp_path)
    batch = token_batch().without_targets()
    with torch.no_grad():
        expected = theirs(**batch.inputs).logits.softmax(-1)
    model = from_peft(tmp_path, inner_backbone(theirs, "bert"), Tagging(3))
    found = predict(model, Delta(model), batch).probs
    real = batch.token_mask
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-6)


def test_a_language_models_adapter_has_no_head_for_labels(tmp_path: Path) -> None:
    """TFB would measure its noise on the labels of a head that answers at random."""
    adapters(tmp_path)
    with warns(UserWarning, str(tmp_path), (3, 16), "head=False"):
        model = from_peft(tmp_path, bert(), Categorical(3))
    refuses_to_calibrate(model)
    save(tmp_path / "ours", model, Delta(model))
    again, _ = load(tmp_path / "ours", bert())
    refuses_to_calibrate(again)
    with torch.no_grad():
        again.head.weight.add_(torch.randn(3, 16))  # as training does
    bayesianise(again, Delta(again), token_batch().without_targets(), tolerance=10.0, iterations=1, num_samples=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refuses_to_calibrate(from_peft(tmp_path, bert(), Categorical(3), head=False))


def refuses_to_calibrate(model: Any) -> None:
    with refuses(ConfigError, "fit", "model.head"):
        bayesianise(model, Delta(model), token_batch().without_targets())


def inner_backbone(theirs: nn.Module, name: str) -> nn.Module:
    """The plain backbone with the weights under PEFT's adapters."""
    inner = getattr(theirs.get_base_model(), name)
    plain = type(inner)(inner.config).eval()
    own = {n.replace(".base_layer", ""): v for n, v in inner.state_dict().items() if "lora_" not in n}
    missing, surplus = plain.load_state_dict(own, strict=False)
    assert not surplus
    assert not [name for name in missing if not name.startswith("pooler.")]
    return plain


def test_a_head_of_another_save_is_refused(tmp_path: Path) -> None:
    """PEFT replaces its own two files and leaves the third."""
    to_peft(tmp_path, LoRA(bert(), Bernoulli(), rank=3, alpha=5))
    adapters(tmp_path, target_modules=["query", "value"])
    with refuses(AdapterFileError, str(tmp_path / HEAD)):
        from_peft(tmp_path, bert(), Bernoulli())
    (tmp_path / HEAD).unlink()
    from_peft(tmp_path, bert(), Bernoulli(), head=False)


def test_adapters_inside_a_model_with_a_head_find_the_plain_backbone(tmp_path: Path) -> None:
    theirs = trained(whole("bert"), settings("bert", target_modules=["query", "value"]))
    theirs.save_pretrained(tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.bert.encoder.") for name in names)
    backbone = bert()
    inner = theirs.get_base_model().bert.state_dict()
    backbone.load_state_dict({n.replace(".base_layer", ""): v for n, v in inner.items() if "lora_" not in n})
    model = from_peft(tmp_path, backbone, Bernoulli(), head=False)
    torch.testing.assert_close(hidden(model.backbone), hidden(theirs.get_base_model().bert), rtol=0, atol=1e-6)


def test_a_head_that_is_not_linear_is_not_written(tmp_path: Path) -> None:
    to_peft(tmp_path, LoRA(bert(), Bernoulli()))
    assert (tmp_path / HEAD).is_file()
    with warns(UserWarning, "TwoLayerHead", "bayes_adapters.save"):
        to_peft(tmp_path, FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT))
    assert not (tmp_path / HEAD).is_file(), "the head of the adapter there before must not stay"
    (tmp_path / HEAD).write_bytes((tmp_path / "adapter_model.safetensors").read_bytes())
    with refuses(AdapterFileError, str(tmp_path / HEAD), "to_peft"):
        from_peft(tmp_path, bert(), Bernoulli())
