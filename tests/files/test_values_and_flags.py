"""Numbers that mean nothing are neither saved nor loaded; what was frozen stays frozen."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bayes_adapters import Bernoulli, load, save
from bayes_adapters.errors import AdapterFileError, NonFiniteError
from bayes_adapters.files.peft import from_peft, to_peft
from bayes_adapters.guides import Delta
from bayes_adapters.models import LoRA
from tests.files.parts import edit_json, pair
from tests.helpers import bert
from tests.refusals import refuses


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_saved(value: float, tmp_path: Path) -> None:
    model, guide = pair()
    tensors = [*model.trainable_parameters().items(), *guide.named_parameters()]
    for name, parameter in (tensors[0], ("head.weight", model.head.weight), tensors[-1]):
        with torch.no_grad():
            old = parameter.view(-1)[-1].clone()
            parameter.view(-1)[-1] = value
            with refuses(NonFiniteError, f"{name}'", f"1 of {parameter.numel()}"):
                save(tmp_path / "a", model, guide)
            parameter.view(-1)[-1] = old
    assert not (tmp_path / "a").exists()
    model.register_buffer("seen", torch.tensor([1.0, float("nan")]))
    with refuses(NonFiniteError, "model.seen'", "1 of 2"):
        save(tmp_path / "a", model, guide)
    model.register_buffer("seen", torch.tensor([1.0, float("inf")]))
    save(tmp_path / "a", model, guide)  # a limit that is never reached


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_loaded(value: float, tmp_path: Path) -> None:
    save(tmp_path, *pair())
    path = tmp_path / "adapter.safetensors"
    tensors = load_file(path)
    tensors["model.head.weight"][0, 3] = value
    save_file(tensors, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_json(tmp_path, lambda about: about["weights"].update(sha256=digest))
    with refuses(AdapterFileError, "'model.head.weight'", "1 of 16"):
        load(tmp_path, bert())


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
def test_no_such_number_in_the_description(text: str, tmp_path: Path) -> None:
    save(tmp_path, *pair(), task={"limit": 0.125})
    edit_json(tmp_path, lambda about: about.pop("checksum"))
    path = tmp_path / "adapter.json"
    path.write_text(path.read_text().replace("0.125", text))
    with refuses(AdapterFileError, str(path), text):
        load(tmp_path, bert())


def test_peft_folders(tmp_path: Path) -> None:
    model = LoRA(bert(), Bernoulli(), rank=2)
    to_peft(tmp_path / "good", model)
    path = tmp_path / "good" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, path)
    with refuses(AdapterFileError, str(tmp_path / "good"), name):
        from_peft(tmp_path / "good", bert(), Bernoulli())
    with torch.no_grad():
        next(iter(model.trainable_parameters().values()))[0, 0] = float("nan")
    with refuses(NonFiniteError, "lora_A"):
        to_peft(tmp_path / "a", model)
    assert not (tmp_path / "a").exists()


def test_what_was_frozen_stays_frozen(tmp_path: Path) -> None:
    model, guide = pair()
    model.head.requires_grad_(False)
    frozen = next(p for name, p in guide.named_parameters() if "bias" in name).requires_grad_(False)
    save(tmp_path, model, guide)
    again, its_guide = load(tmp_path, bert())
    for old, new in ((model, again), (guide, its_guide)):
        flags = [{n: p.requires_grad for n, p in module.named_parameters()} for module in (old, new)]
        assert flags[0] == flags[1]
        assert {True, False} == set(flags[0].values())
    assert not frozen.requires_grad
    edit_json(tmp_path, lambda about: about.pop("frozen"))  # an older file
    again, its_guide = load(tmp_path, bert())
    assert again.head.weight.requires_grad
    assert all(p.requires_grad for p in its_guide.parameters())


def test_a_frozen_part_of_the_adapters(tmp_path: Path) -> None:
    model = LoRA(bert(), Bernoulli(), rank=2)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    save(tmp_path, model, Delta(model))
    again, _ = load(tmp_path, bert())
    assert not any("lora_A" in name for name in again.trainable_parameters())
    assert any("lora_B" in name for name in again.trainable_parameters())
