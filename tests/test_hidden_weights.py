"""Bases whose weight is no matrix of numbers, as 4-bit ones: a layer calls its base, and never reads a weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import ELBO, Bernoulli, load, predict, save
from bayes_adapters.adapters import install
from bayes_adapters.errors import ConfigError
from bayes_adapters.surgery.merging import merge
from bayes_adapters.systems import build
from tests.helpers import llama, token_batch
from tests.refusals import refuses

TARGETS = ["q_proj", "v_proj", "down_proj"]


class Packed(nn.Linear):
    """Two weights of 4 bits in a byte, one scale a row, as bitsandbytes' ``Linear4bit`` has them; made from a layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=False)
        self.scale = nn.Buffer(base.weight.detach().abs().amax(1, keepdim=True) / 7)
        levels = ((base.weight.detach() / self.scale).round() + 8).to(torch.uint8).reshape(-1, 2)
        self.weight = nn.Parameter((levels[:, :1] * 16 + levels[:, 1:]), requires_grad=False)

    def dense(self) -> Tensor:
        levels = torch.cat([self.weight // 16, self.weight % 16], 1).float() - 8
        return levels.reshape(self.out_features, self.in_features) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dense())


def packed() -> Any:
    backbone = llama()
    for path, layer in [(p, m) for p, m in backbone.named_modules() if isinstance(m, nn.Linear)]:
        backbone.set_submodule(path, Packed(layer))
    return backbone


def dense() -> Any:
    """The same function with weights of numbers."""
    backbone = llama()
    for path, layer in [(p, m) for p, m in packed().named_modules() if isinstance(m, Packed)]:
        backbone.get_submodule(path).weight.data = layer.dense()
    return backbone


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("name", ["c-lora", "blob", "mc-dropout"])
def test_packed_weights_give_what_their_numbers_give(name: str, tmp_path: Path) -> None:
    def run(backbone: Any) -> tuple[Any, Any, dict[str, Tensor]]:
        torch.manual_seed(0)
        model, guide = build(name, backbone, Bernoulli(), num_data=50, rank=2, targets=TARGETS)
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if "lora_B" in path:
                    parameter.normal_(0.0, 0.5)
        elbo = ELBO(model, guide).train()
        torch.manual_seed(1)
        loss = elbo(token_batch())
        loss.backward()
        grads = {path: p.grad for path, p in elbo.named_parameters() if p.grad is not None}
        return model, guide, {**grads, "loss": loss.detach()}

    model, guide, found = run(packed())
    _, _, expected = run(dense())
    assert found.keys() == expected.keys()
    for path, value in found.items():
        torch.testing.assert_close(value, expected[path], rtol=1e-5, atol=1e-6, msg=path)
    before = predict(model, guide, token_batch(), num_samples=3).mean
    save(tmp_path / "adapter", model, guide)
    torch.testing.assert_close(
        predict(*load(tmp_path / "adapter", packed()), token_batch(), num_samples=3).mean, before
    )


def test_merging_into_them_is_refused() -> None:
    backbone = packed()
    install(backbone, ["layers.0.self_attn.q_proj"], rank=2, alpha=4.0)
    with refuses(ConfigError, "'layers.0.self_attn.q_proj'"):
        merge(backbone)


def test_merging_into_a_layer_without_any_weight_is_refused() -> None:
    backbone = packed()
    layer: Any = backbone.get_submodule("layers.0.self_attn.q_proj")
    layer.codes = nn.Parameter(layer.weight.detach(), requires_grad=False)
    del layer.weight
    install(backbone, ["layers.0.self_attn.q_proj"], rank=2, alpha=4.0)
    with refuses(ConfigError, "'layers.0.self_attn.q_proj'", "to_peft"):
        merge(backbone)
