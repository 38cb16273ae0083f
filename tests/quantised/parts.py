"""Tiny Llamas of 8 and 4 bits, by bitsandbytes and torchao, and the same functions with weights multiplied out.

torchao is tested where it is installed. It is not in the development environment: transformers imports it wherever it
finds it, and it writes two lines of warnings above the output of every command.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from bayes_adapters import Bernoulli
from bayes_adapters.systems import build
from tests.helpers import VOCAB

bnb: Any = pytest.importorskip("bitsandbytes")
try:
    import torchao.quantization as found
except ImportError:
    found = None
ao: Any = found
needs_torchao = pytest.mark.skipif(ao is None, reason="torchao is not installed: pip install torchao==0.18.0")

TARGETS = ["q_proj", "v_proj", "down_proj"]


def config() -> LlamaConfig:
    """Rows of 64 and 128 weights, the least that bitsandbytes' blocks and torchao's groups divide."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 32}
    return LlamaConfig(vocab_size=VOCAB, pad_token_id=0, eos_token_id=None, bos_token_id=1, **sizes, **heads)


def plain(language_model: bool = False) -> Any:
    torch.manual_seed(0)
    return (LlamaForCausalLM if language_model else LlamaModel)(config()).eval()


def eight(layer: nn.Linear, threshold: float = 6.0) -> nn.Module:
    sizes, bias = (layer.in_features, layer.out_features), layer.bias is not None
    new = bnb.nn.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False, threshold=threshold)
    new.load_state_dict(layer.state_dict())
    return new.to("cpu")


def four(layer: nn.Linear, **options: Any) -> nn.Module:
    sizes, bias = (layer.in_features, layer.out_features), layer.bias is not None
    new = bnb.nn.Linear4bit(*sizes, bias=bias, quant_type="nf4", **options)
    new.load_state_dict(layer.state_dict())
    return new.to("cpu")


def exchanged(backbone: Any, make: Callable[[nn.Linear], nn.Module]) -> Any:
    """The backbone with every linear layer but the output's replaced by what ``make`` makes of it."""
    for path, layer in [(p, m) for p, m in backbone.named_modules() if isinstance(m, nn.Linear)]:
        if path != "lm_head":
            backbone.set_submodule(path, make(layer))
    return backbone.eval()


def by_torchao(backbone: Any, options: Any) -> Any:
    ao.quantize_(backbone, options, filter_fn=lambda m, path: isinstance(m, nn.Linear) and path != "lm_head")
    return backbone


MAKERS: dict[str, Callable[[Any], Any]] = {
    "bitsandbytes 8": lambda net: exchanged(net, eight),
    "bitsandbytes 4": lambda net: exchanged(net, four),
    "torchao 8": lambda net: by_torchao(net, ao.Int8WeightOnlyConfig()),
    "torchao 4": lambda net: by_torchao(
        net, ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(32))
    ),
}


def case(kind: str, *more: Any) -> Any:
    """Parameters of a test of this kind, skipped where its library is not installed."""
    return pytest.param(kind, *more, marks=needs_torchao if kind.startswith("torchao") else ())


KINDS = [case(kind) for kind in MAKERS]


def quantised(kind: str, language_model: bool = False) -> Any:
    return MAKERS[kind](plain(language_model))


def numbers(layer: Any) -> Tensor:
    """The matrix that a quantised layer stands for, by its library's own words."""
    weight = layer.weight
    if isinstance(layer, bnb.nn.Linear8bitLt):
        scale = weight.SCB if weight.SCB is not None else layer.state.SCB
        return weight.data.float() * (scale[:, None] / 127)
    if isinstance(layer, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    return weight.dequantize()


def dense(kind: str, language_model: bool = False) -> Any:
    """The function of :func:`quantised`, with weights of float32."""
    backbone = plain(language_model)
    for path, layer in quantised(kind, language_model).named_modules():
        if isinstance(layer, nn.Linear) and path.rpartition(".")[2] != "lm_head":
            backbone.get_submodule(path).weight.data = numbers(layer).clone()
    return backbone


def pair(name: str, backbone: Any, **options: Any) -> tuple[Any, Any]:
    """Model and guide of a system with B away from zero."""
    torch.manual_seed(0)
    given = {"num_data": 50, "rank": 2, "targets": TARGETS} | options
    model, guide = build(name, backbone, given.pop("likelihood", None) or Bernoulli(), **given)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "lora_B" in path:
                parameter.normal_(0.0, 0.3)
    return model, guide
