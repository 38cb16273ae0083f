"""Backbones in the wrappers of compilers and of parallel training: plain names in every file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bayes_adapters import Bernoulli, fingerprint, load, predict, save
from bayes_adapters.files.peft import from_peft, to_peft
from bayes_adapters.guides import Delta
from bayes_adapters.models import LoRA
from tests.files.parts import pair
from tests.helpers import bert, fill_B, token_batch


def compiled(net: nn.Module) -> nn.Module:
    return torch.compile(net, backend="eager")  # type: ignore[return-value]


def inner(net: nn.Module) -> nn.Module:
    net.encoder = compiled(net.encoder)  # type: ignore[arg-type]
    return net


def layer(net: nn.Module) -> nn.Module:
    attention = net.encoder.layer[0].attention.self  # type: ignore[index, union-attr]
    attention.query = compiled(attention.query)
    return net


def both(net: nn.Module) -> nn.Module:
    return nn.DataParallel(compiled(inner(net)))


WRAPPERS = [compiled, nn.DataParallel, inner, layer, both]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_names_do_not_tell_of_wrappers(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    """What was saved from torch.compile(backbone) loaded nowhere."""
    model, guide = pair()
    save(tmp_path / "plain", model, guide)
    model.backbone = wrap(model.backbone)
    before = [(name, type(module)) for name, module in model.named_modules()]
    assert fingerprint(model.backbone) == fingerprint(bert())
    save(tmp_path / "wrapped", model, guide)
    assert [(name, type(module)) for name, module in model.named_modules()] == before
    names = [load_file(tmp_path / folder / "adapter.safetensors").keys() for folder in ("plain", "wrapped")]
    assert names[0] == names[1]
    loaded, its_guide = load(tmp_path / "wrapped", bert())
    batch = token_batch().without_targets()
    plain, plain_guide = load(tmp_path / "plain", bert())
    expected = predict(plain, plain_guide, batch, num_samples=3, seed=0)
    assert torch.equal(predict(loaded, its_guide, batch, num_samples=3, seed=0).probs, expected.probs)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_backbone_is_looked_through(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    model, guide = pair()
    save(tmp_path, model, guide)
    net = wrap(bert())
    loaded, its_guide = load(tmp_path, net)
    assert loaded.backbone is net
    assert loaded.layers == model.layers
    save(tmp_path / "again", loaded, its_guide)
    first, second = (load(tmp_path / folder, bert()) for folder in ("", "again"))
    for (name, value), (_, other) in zip(first[0].named_parameters(), second[0].named_parameters(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, inner])
def test_a_peft_folder_has_plain_names(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    model = fill_B(LoRA(bert(), Bernoulli(), rank=3))
    to_peft(tmp_path / "plain", model)
    model.backbone = wrap(model.backbone)
    to_peft(tmp_path / "wrapped", model)
    config, weights = "adapter_config.json", "adapter_model.safetensors"
    assert (tmp_path / "wrapped" / config).read_bytes() == (tmp_path / "plain" / config).read_bytes()
    plain, wrapped = (load_file(tmp_path / folder / weights) for folder in ("plain", "wrapped"))
    assert plain.keys() == wrapped.keys()
    assert all(torch.equal(value, wrapped[name]) for name, value in plain.items())
    net = wrap(bert())
    read = from_peft(tmp_path / "plain", net, Bernoulli())
    assert read.backbone is net
    assert read.layers == model.layers
    save(tmp_path / "ours", read, Delta(read))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_a_backbone_that_is_spread_over_processes(tmp_path: Path) -> None:
    """Its tensors are gathered: FSDP2's have no bytes of their own."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, guide = pair()
    batch = token_batch().without_targets()
    expected = predict(model, guide, batch, num_samples=3, seed=0).probs
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        fully_shard(model.backbone, mesh=init_device_mesh("cpu", (1,)))
        assert {type(p) for p in model.backbone.parameters()} == {torch.distributed.tensor.DTensor}
        assert fingerprint(model.backbone) == fingerprint(bert())
        save(tmp_path / "a", model, guide)
    finally:
        torch.distributed.destroy_process_group()
    loaded, its_guide = load(tmp_path / "a", bert())
    assert torch.equal(predict(loaded, its_guide, batch, num_samples=3, seed=0).probs, expected)
