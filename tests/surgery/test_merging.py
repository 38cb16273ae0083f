"""Merged weights compute what the adapter did."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bayes_adapters import Bernoulli, adapted_layers
from bayes_adapters.adapters.installation import adapters_disabled
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Hypernetwork
from bayes_adapters.models import LoRA, StochasticCore
from bayes_adapters.surgery.merging import merge, merge_intra
from tests.cola.parts import cola
from tests.helpers import bert, fill_B, gpt2, logits, token_batch
from tests.refusals import refuses
from tests.text_and_audio import batch


@pytest.mark.parametrize(("build", "targets"), [(bert, ["query", "value"]), (gpt2, ["c_attn", "c_proj"])])
def test_a_merged_backbone_equals_the_adapted_one(build: Any, targets: list[str]) -> None:
    net, inputs = build(), token_batch().inputs
    fill_B(LoRA(net, Bernoulli(), targets=targets, rank=3))
    before = {n: p.clone() for n, p in net.named_parameters()}
    with torch.no_grad():
        adapted = net(**inputs).last_hidden_state
        merged = merge(net)
        torch.testing.assert_close(merged(**inputs).last_hidden_state, adapted, rtol=1e-4, atol=1e-5)
        with adapters_disabled(net):
            assert not torch.allclose(net(**inputs).last_hidden_state, adapted)
    assert not adapted_layers(merged)
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters()), "the given backbone is left alone"


def test_the_intra_path_merges_and_the_inter_path_stays() -> None:
    model, data = cola(), batch()
    guide = Hypernetwork(model, gamma=4)
    merged = merge_intra(model)
    again = Hypernetwork(merged, gamma=4)
    again.load_state_dict(guide.state_dict())
    layers = adapted_layers(merged.backbone).values()
    assert all(layer.lora_B.abs().max() == 0 and layer.inter for layer in layers)
    torch.testing.assert_close(logits(again, data), logits(guide, data), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "facts"),
    [
        (lambda: merge(cola().backbone), ("audio", "merge_intra(model)", "ConcatLoRA")),
        (lambda: merge(StochasticCore(bert(), Bernoulli()).backbone), ("core", "to_lora")),
        (lambda: merge_intra(cola(share="A")), ("'text.encoder.layer.0.attention.self.query'", "share='none'")),
    ],
)
def test_what_cannot_be_merged_says_why(call: Any, facts: tuple[object, ...]) -> None:
    with refuses(ConfigError, *facts):
        call()
