"""A Llama cut in two says what the whole says, and is made whole again with its adapters."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from bayes_adapters import Batch, predict, systems
from bayes_adapters.errors import ConfigError
from bayes_adapters.heads import LanguageModelHead
from bayes_adapters.likelihoods import NextToken
from examples.studies.decoder import cut, join
from tests.refusals import refuses


def decoder() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    net = LlamaForCausalLM(LlamaConfig(vocab_size=30, num_hidden_layers=3, tie_word_embeddings=True, **sizes))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return net.eval()


def texts() -> dict[str, torch.Tensor]:
    ids = torch.randint(30, (3, 7), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": (torch.arange(7) < torch.tensor([7, 4, 2])[:, None]).long()}


@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_the_two_parts_are_the_whole(layers):
    net, inputs = decoder(), texts()
    before = net(**inputs).logits
    below, top = cut(net, layers)
    found = top(inputs_embeds=below(inputs), attention_mask=inputs["attention_mask"]).logits
    real = inputs["attention_mask"].bool()
    assert (found - before)[real].abs().max() < 1e-5
    assert torch.equal(net(**inputs).logits, before)
    assert top.lm_head.weight is net.lm_head.weight


def test_adapters_of_the_upper_part_write_in_the_whole():
    net, inputs = decoder(), texts()
    below, top = cut(net, 2)
    states = below(inputs)
    names = {"num_data": 3, "rank": 2, "targets": ["q_proj", "v_proj"], "head": LanguageModelHead()}
    model, guide = systems.build("c-lora", top, NextToken(30), **names)
    for parameter in (*model.parameters(), *guide.parameters()):
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    above = Batch({"inputs_embeds": states, "attention_mask": inputs["attention_mask"]}, labels)
    one = predict(model, guide, above, num_samples=3)
    join(model.backbone, net)
    two = predict(model, guide, Batch(inputs, labels), num_samples=3)
    assert one.epistemic.max() > 1e-3
    torch.testing.assert_close(one.epistemic, two.epistemic, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.log_density, two.log_density, atol=1e-4, rtol=1e-5)
    assert sum("Adapted" in type(m).__name__ for m in net.modules()) == 0


def test_what_cannot_be_cut_is_refused():
    other = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=2, n_head=2))
    with refuses(ConfigError, "GPT2LMHeadModel", "model.layers"):
        cut(other, 1)
    for layers in (0, 3):
        with refuses(ConfigError, f"layers={layers}", 3):
            cut(decoder(), layers)
