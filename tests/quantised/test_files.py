"""Saving, exporting, merging and writing with bases of 8 and 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from bayes_adapters import Batch, Bernoulli, fingerprint, load, predict, remove, save
from bayes_adapters.backbones.quantised import keep_gradients
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files.peft import from_peft, to_peft
from bayes_adapters.generation import generate
from bayes_adapters.heads import LanguageModelHead
from bayes_adapters.likelihoods import NextToken
from bayes_adapters.models import LoRAXS
from bayes_adapters.surgery.merging import merge, merged
from tests.helpers import VOCAB, token_batch
from tests.quantised.parts import KINDS, TARGETS, bnb, dense, eight, exchanged, four, pair, plain, quantised
from tests.refusals import refuses


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_merging_is_refused_and_a_peft_folder_is_the_way_out(kind: str, tmp_path: Path) -> None:
    model, _ = pair("lora", quantised(kind))
    with refuses(ConfigError, "'layers.0.self_attn.q_proj'", "to_peft"):
        merge(model.backbone)
    with refuses(ConfigError, "'backbone.layers.0.self_attn.q_proj'", "to_peft"), merged(model):
        pass
    inputs = token_batch().inputs
    with torch.no_grad():
        expected = model.backbone(**inputs).last_hidden_state
        to_peft(tmp_path, model)
        base = quantised(kind)
        keep_gradients(base)  # else the first pass would repack 4-bit weights
        beside = PeftModel.from_pretrained(base, tmp_path)
        torch.testing.assert_close(beside(**inputs).last_hidden_state, expected, rtol=1e-4, atol=1e-4)
        whole = merge(from_peft(tmp_path, dense(kind), Bernoulli()).backbone)(**inputs).last_hidden_state
    # an 8-bit layer of bitsandbytes rounds its inputs too, in eval mode
    near = {"rtol": 0.1, "atol": 0.1} if kind == "bitsandbytes 8" else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(whole, expected, **near)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_singular_values_of_packed_weights_are_refused(kind: str) -> None:
    with refuses(ConfigError, "'layers.0.self_attn.q_proj'", "StochasticCore"):
        LoRAXS(quantised(kind), Bernoulli(), num_data=50, rank=2, targets=TARGETS)


@pytest.mark.parametrize("make", [eight, four])
def test_scales_are_a_part_of_the_base(make: Any, tmp_path: Path) -> None:
    """Twice a weight has the same codes."""
    backbone = exchanged(plain(), make)
    model, guide = pair("lora", backbone)
    save(tmp_path, model, guide)
    other = plain()
    for layer in other.layers:
        layer.mlp.up_proj.weight.data *= 2
    other = exchanged(other, make)
    assert torch.equal(other.layers[0].mlp.up_proj.weight.data, backbone.layers[0].mlp.up_proj.weight.data)
    assert fingerprint(other) != fingerprint(backbone)
    with refuses(AdapterFileError, str(tmp_path), "scales"):
        load(tmp_path, other)


def test_the_threshold_counts() -> None:
    assert fingerprint(exchanged(plain(), lambda layer: eight(layer, 0.0))) != fingerprint(quantised("bitsandbytes 8"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_layer_has_seen_does_not_count(kind: str) -> None:
    model, guide = pair("lora", quantised(kind))
    predict(model, guide, token_batch())
    assert fingerprint(remove(model.backbone)) == fingerprint(quantised(kind))


def test_a_threshold_of_zero_makes_predictions_independent_of_the_batch() -> None:
    """Which columns are multiplied in full precision is decided by the largest activation of all rows in the pass."""

    def moved(threshold: float) -> float:
        backbone = plain()
        backbone.embed_tokens.weight.data[1] *= 1000.0
        for layer in backbone.layers:
            layer.post_attention_layernorm.weight.data *= 3.0
        model, guide = pair("lora", exchanged(backbone, lambda layer: eight(layer, threshold)))
        batch = Batch({"input_ids": torch.tensor([[5, 6, 7, 8], [1, 5, 1, 9], [30, 1, 2, 3]])})
        together = predict(model, guide, batch).mean
        alone = predict(model, guide, Batch({"input_ids": batch.inputs["input_ids"][:1]})).mean
        return float((together[0] - alone[0]).abs().max())

    assert moved(0.0) < 1e-5 < 1e-4 < moved(6.0)


def test_a_base_that_transformers_quantised_writes_text(tmp_path: Path) -> None:
    net = plain(language_model=True)
    net.save_pretrained(tmp_path)
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.float32}
    packed = LlamaForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True, **options)
    ).eval()
    assert isinstance(packed.model.layers[0].mlp.up_proj, bnb.nn.Linear4bit)

    def written(backbone: Any) -> Any:
        likelihood = NextToken(VOCAB)
        targets = ["q_proj", "v_proj"]
        model, guide = pair("c-lora", backbone, likelihood=likelihood, head=LanguageModelHead(), targets=targets)
        prompts = {"input_ids": torch.tensor([[1, 5, 6], [1, 9, 3]]), "attention_mask": torch.ones(2, 3).long()}
        return generate(model, guide, prompts, num_samples=2, max_new_tokens=4, seed=0)

    found, expected = written(packed), written(dense("bitsandbytes 4", language_model=True))
    assert torch.equal(found.tokens, expected.tokens)
