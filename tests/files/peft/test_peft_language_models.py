"""A language model as the backbone: PEFT's LoRA comes in, and an ensemble of LoRAs goes out to the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from bayes_adapters import Batch, predict
from bayes_adapters.files.peft import from_peft, to_peft
from bayes_adapters.heads import LanguageModelHead
from bayes_adapters.likelihoods import NextToken
from bayes_adapters.surgery.draw_folders import draws_to_peft
from bayes_adapters.systems import start_from_peft
from tests.files.peft.parts import peft, trained
from tests.helpers import VOCAB, llama, token_batch

# PEFT reads an attribute that this version of transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def causal() -> nn.Module:
    torch.manual_seed(7)
    return LlamaForCausalLM(llama(1).config).eval()


def logits(net: nn.Module) -> Tensor:
    batch = token_batch()
    with torch.no_grad():
        found: Tensor = net(**batch.inputs).logits
    return found[batch.token_mask]


def of_peft(folder: Path) -> nn.Module:
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    theirs = trained(causal(), config)
    theirs.save_pretrained(folder)
    return theirs


def test_a_lora_comes_and_goes(tmp_path: Path) -> None:
    expected = logits(of_peft(tmp_path / "theirs"))
    model = from_peft(tmp_path / "theirs", causal(), NextToken(VOCAB), head=LanguageModelHead())
    torch.testing.assert_close(logits(model.backbone), expected, rtol=0, atol=1e-5)
    to_peft(tmp_path / "ours", model)
    again = peft.PeftModel.from_pretrained(causal(), tmp_path / "ours").eval()
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-5)


def test_draws_of_blob_are_served_by_the_language_model(tmp_path: Path) -> None:
    of_peft(tmp_path / "theirs")
    model, guide = start_from_peft(
        "blob", tmp_path / "theirs", causal(), NextToken(VOCAB), head=LanguageModelHead(), num_data=20
    )
    with torch.no_grad():
        for rho in guide.rho.values():
            rho.add_(0.5)
    batch = token_batch()
    ids = batch.inputs["input_ids"]
    labels = ids.masked_fill(~batch.token_mask, -100)
    found = predict(model, guide, Batch(batch.inputs, targets=labels), num_samples=1, seed=3)
    (folder,) = draws_to_peft(tmp_path / "draws", model, guide, num_samples=1, seed=3)
    net = peft.PeftModel.from_pretrained(causal(), folder).eval()
    assert (logits(net) - logits(causal())).abs().max() > 1e-3
    with torch.no_grad():
        log_p = net(**batch.inputs).logits[:, :-1].log_softmax(-1)
    each = log_p.gather(-1, ids[:, 1:, None])[..., 0] * (labels[:, 1:] >= 0)
    torch.testing.assert_close(found.log_density.float(), each.sum(-1), rtol=0, atol=1e-5)
    assert "base model's own output layer" in (tmp_path / "draws" / "README.md").read_text()
