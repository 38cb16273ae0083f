"""Backbones that accelerate has spread over devices, or whose weights it keeps elsewhere: real hooks, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import Tensor, nn
from transformers import LlamaModel

from bayes_adapters import ELBO, Bernoulli, fingerprint, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.systems import build
from tests.helpers import llama, token_batch
from tests.refusals import refuses


def from_disk(folder: Path) -> Any:
    llama().save_pretrained(folder / "net")
    places = {"embed_tokens": "cpu", "layers.0": "cpu", "layers.1": "disk", "norm": "cpu", "rotary_emb": "cpu"}
    return LlamaModel.from_pretrained(folder / "net", device_map=places, offload_folder=folder / "away")


OFFLOADED: dict[str, Callable[[Path], Any]] = {
    "'embed_tokens.weight'": lambda folder: cpu_offload(llama(), execution_device=torch.device("cpu")),
    "disk": lambda folder: disk_offload(llama(), str(folder), execution_device=torch.device("cpu")),
    "'layers.1.self_attn.q_proj.weight'": from_disk,
}


@pytest.mark.parametrize("name", list(OFFLOADED))
def test_weights_that_are_elsewhere_are_refused_by_name(name: str, tmp_path: Path) -> None:
    backbone = OFFLOADED[name](tmp_path)
    assert backbone(**token_batch().inputs).last_hidden_state.isfinite().all()  # the hooks are real ones
    flags = [p.requires_grad for p in backbone.parameters()]
    empty = sum(p.is_meta for p in backbone.parameters())
    first = "'embed_tokens.weight'" if name == "disk" else name
    with refuses(ConfigError, f"{empty} of the backbone's 20 tensors", first, "cpu_offload", "device_map"):
        build("c-lora", backbone, Bernoulli(), rank=2)
    assert [p.requires_grad for p in backbone.parameters()] == flags
    assert backbone(**token_batch().inputs).last_hidden_state.isfinite().all()


def test_offloading_a_model_that_is_built_is_refused_when_it_runs() -> None:
    model, guide = build("lora", llama(), Bernoulli(), rank=2)
    cpu_offload(model.backbone, execution_device=torch.device("cpu"))
    with refuses(ConfigError, "cpu_offload"):
        predict(model, guide, token_batch())
    with refuses(ConfigError, "cpu_offload"):
        ELBO(model, guide)(token_batch())


def test_hooks_between_blocks_change_nothing(tmp_path: Path) -> None:
    """What ``device_map`` puts on several devices, all of them with numbers: here two parts of one CPU."""
    places = {"embed_tokens": "cpu", "layers.0": "cpu", "layers.1": "cpu", "norm": "cpu", "rotary_emb": "cpu"}

    def spread() -> Any:
        return dispatch_model(llama(), places, main_device="cpu", force_hooks=True)

    def run(backbone: nn.Module) -> tuple[Any, Any, dict[str, Tensor]]:
        torch.manual_seed(0)
        model, guide = build("blob", backbone, Bernoulli(), rank=2, num_data=20)
        torch.manual_seed(1)
        elbo = ELBO(model, guide)
        loss = elbo(token_batch())
        loss.backward()
        found = {name: p.grad for name, p in elbo.named_parameters() if p.grad is not None}
        return model, guide, {**found, "loss": loss.detach()}

    assert hasattr(spread().layers[1], "_hf_hook")
    model, guide, found = run(spread())
    _, _, expected = run(llama())
    assert found.keys() == expected.keys()
    for path, value in found.items():
        assert torch.equal(value, expected[path]), path
    assert fingerprint(model.backbone) == fingerprint(llama())
    save(tmp_path, model, guide)
    before = predict(model, guide, token_batch(), num_samples=2).mean
    assert torch.equal(predict(*load(tmp_path, spread()), token_batch(), num_samples=2).mean, before)
