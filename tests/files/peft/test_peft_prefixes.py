"""Adapters inside models with a head: PEFT finds them again under the paths of that model."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertForSequenceClassification, LlamaForCausalLM

from bayes_adapters import Bernoulli, Categorical, load, save
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files.peft import from_peft, to_peft
from bayes_adapters.guides import Delta
from bayes_adapters.models import LoRA
from bayes_adapters.surgery.export import to_lora
from tests.files.peft.parts import peft, trained
from tests.helpers import bert, fill_B, llama, token_batch
from tests.refusals import refuses

# PEFT reads an attribute that this version of transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def causal() -> nn.Module:
    """A language model on the weights of ``llama()``."""
    torch.manual_seed(7)
    net = LlamaForCausalLM(llama().config).eval()
    net.model.load_state_dict(llama().state_dict())
    return net


def logits(net: nn.Module) -> torch.Tensor:
    inputs = token_batch().inputs
    with torch.no_grad():
        return net(**inputs).logits[inputs["attention_mask"] > 0]


def lora_of(net: nn.Module) -> nn.Module:
    return trained(net, peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


def reads(folder: Path, net: nn.Module) -> nn.Module:
    """What PEFT makes of the folder; tensors that it does not find are an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        return peft.PeftModel.from_pretrained(net, folder).eval()


def test_a_language_models_adapter_goes_back_into_a_language_model(tmp_path: Path) -> None:
    """PEFT loaded nothing, with a warning."""
    theirs = lora_of(causal())
    theirs.save_pretrained(tmp_path / "theirs")
    assert (logits(theirs) - logits(causal())).abs().max() > 0.01
    model = from_peft(tmp_path / "theirs", llama(), Categorical(3), head=False)
    to_peft(tmp_path / "ours", model)
    assert load_file(tmp_path / "ours/adapter_model.safetensors").keys() == (
        load_file(tmp_path / "theirs/adapter_model.safetensors").keys()
    )
    again = reads(tmp_path / "ours", causal())
    torch.testing.assert_close(logits(again), logits(theirs), rtol=0, atol=1e-6)
    assert type(again) is peft.PeftModelForCausalLM


def test_the_prefix_goes_through_saving_and_exporting(tmp_path: Path) -> None:
    lora_of(causal()).save_pretrained(tmp_path / "theirs")
    model = from_peft(tmp_path / "theirs", llama(), Categorical(3), head=False)
    save(tmp_path / "saved", model, Delta(model))
    loaded, guide = load(tmp_path / "saved", llama())
    exported = to_lora(loaded, guide, llama())
    expected = load_file(tmp_path / "theirs/adapter_model.safetensors").keys()
    for name, each in (("a", loaded), ("b", exported), ("c", copy.deepcopy(model))):
        to_peft(tmp_path / name, each)
        assert load_file(tmp_path / name / "adapter_model.safetensors").keys() == expected


def test_a_prefix_may_be_said(tmp_path: Path) -> None:
    model = fill_B(LoRA(llama(), Bernoulli(), targets=["q_proj", "down_proj"], rank=2, ranks={}))
    to_peft(tmp_path / "plain", model)
    to_peft(tmp_path / "inside", model, prefix=f"{model.backbone.base_model_prefix}.")
    inside = reads(tmp_path / "inside", causal())
    assert (logits(inside) - logits(causal())).abs().max() > 0.01
    with torch.no_grad():
        batch = token_batch()
        real = batch.token_mask
        expected = model.backbone(**batch.inputs).last_hidden_state[real]
        found = inside.get_base_model().model(**batch.inputs).last_hidden_state[real]
        plain = reads(tmp_path / "plain", llama())(**batch.inputs).last_hidden_state[real]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(plain, expected, rtol=0, atol=1e-6)
    assert from_peft(tmp_path / "inside", llama(), Bernoulli()).layers == model.layers
    for wrong in ("model", "model..", "a b."):
        with refuses(ConfigError, "prefix", repr(wrong), "'model.'"):
            to_peft(tmp_path / "wrong", model, prefix=wrong)
    assert not (tmp_path / "wrong").exists()


def test_ranks_that_differ_have_the_prefix_too(tmp_path: Path) -> None:
    layers = ("encoder.layer.0.attention.self.query", "encoder.layer.1.attention.self.query")
    model = fill_B(LoRA(bert(), Bernoulli(), targets=["query"], rank=4, ranks={layers[0]: 2})).eval()
    to_peft(tmp_path, model, prefix="bert.")
    config = bert().config
    torch.manual_seed(0)
    whole = BertForSequenceClassification(config).eval()
    whole.bert.load_state_dict(bert().state_dict())
    theirs = reads(tmp_path, whole)
    batch = token_batch()
    with torch.no_grad():
        found = theirs.get_base_model().bert(**batch.inputs).last_hidden_state[batch.token_mask]
        expected = model.backbone(**batch.inputs).last_hidden_state[batch.token_mask]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_an_adapted_output_layer_is_named(tmp_path: Path) -> None:
    theirs = trained(causal(), peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(tmp_path)
    with refuses(AdapterFileError, str(tmp_path), "LlamaModel", "lm_head"):
        from_peft(tmp_path, llama(), Bernoulli())
