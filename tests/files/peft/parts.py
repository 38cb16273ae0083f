"""Adapters that PEFT made and wrote, and hidden states to compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.helpers import bert, gpt2, token_batch

peft = pytest.importorskip("peft")

TARGETS = {"bert": ["query", "value", "dense"], "gpt2": ["c_attn", "c_fc"]}
BACKBONES: dict[str, Callable[[], nn.Module]] = {"bert": bert, "gpt2": gpt2}


def settings(name: str, **options: Any) -> Any:
    return peft.LoraConfig(
        **{"r": 3, "lora_alpha": 5, "target_modules": TARGETS[name], "fan_in_fan_out": name == "gpt2"} | options
    )


def trained(backbone: nn.Module, config: Any) -> nn.Module:
    """A PEFT model whose A and B are random."""
    model = peft.get_peft_model(backbone, config).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.3)
    return model


def hidden(backbone: nn.Module) -> Tensor:
    """Last hidden states at the real tokens."""
    batch = token_batch()
    with torch.no_grad():
        states = backbone(**batch.inputs).last_hidden_state
    return states[batch.token_mask]


def adapters(folder: Path, name: str = "bert", **options: Any) -> Path:
    """A folder that PEFT wrote."""
    trained(BACKBONES[name](), settings(name, **options)).save_pretrained(folder)
    return folder


def edit(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
