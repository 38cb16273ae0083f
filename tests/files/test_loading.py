"""Whatever is wrong with a saved adapter is said before the backbone is changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bayes_adapters import adapted_layers, load, remove, save
from bayes_adapters.errors import AdapterFileError, ConfigError
from tests.files.parts import edit_json, pair
from tests.helpers import bert, gpt2
from tests.refusals import refuses


def state(backbone: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in backbone.state_dict().items()}


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any], consistent: bool) -> None:
    """Change tensors and repair the checksum; ``consistent`` repairs the list of tensors too."""
    path = folder / "adapter.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)

    def repair(about: dict[str, Any]) -> None:
        about["weights"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        if consistent:
            kinds = {n: f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for n, t in tensors.items()}
            about["weights"]["tensors"] = kinds

    edit_json(folder, repair)


def cut(folder: Path, keep: int, repair: bool = False) -> None:
    path = folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    if repair:
        edit_json(folder, lambda a: a["weights"].update(sha256=hashlib.sha256(path.read_bytes()).hexdigest()))


def append(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes() + b"more")
    edit_json(folder, lambda a: a["weights"].update(sha256=hashlib.sha256(path.read_bytes()).hexdigest()))


def flip(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


HEAD = "model.head.weight"
BAD: dict[str, tuple[Callable[[Path], Any], tuple[object, ...]]] = {
    "no folder": (lambda f: f.rename(f.with_name("gone")), ("bayes_adapters.save",)),
    "no json": (lambda f: (f / "adapter.json").unlink(), ("adapter.json", "bayes_adapters.save")),
    "not json": (lambda f: (f / "adapter.json").write_text("{"), ("adapter.json", "JSON", "line 1 column 2")),
    "binary json": (lambda f: (f / "adapter.json").write_bytes(b"\xff\xfe\x00"), ("adapter.json", "JSON", "utf-16-le")),
    "a list": (lambda f: (f / "adapter.json").write_text("[]"), ("adapter.json", "'format'", "'bayes-adapters'")),
    "another program's": (
        lambda f: (f / "adapter.json").write_text('{"peft_type": "LORA"}'),
        ("adapter.json", "'format'", "'bayes-adapters'"),
    ),
    "newer": (lambda f: edit_json(f, lambda a: a.update(format_version=3)), ("adapter.json", "version 3", "1 to 2")),
    "odd version": (
        lambda f: edit_json(f, lambda a: a.update(format_version="x")),
        ("adapter.json", "version 'x'", "1 to 2"),
    ),
    "no guide": (lambda f: edit_json(f, lambda a: a.pop("guide")), ("adapter.json", "guide, guide.name, guide.config")),
    "no base print": (
        lambda f: edit_json(f, lambda a: a["base"].pop("fingerprint")),
        ("adapter.json", "base.fingerprint"),
    ),
    "no tensors": (
        lambda f: (f / "adapter.safetensors").unlink(),
        ("adapter.safetensors", "No such file or directory"),
    ),
    "truncated": (lambda f: cut(f, 500), ("adapter.safetensors", "500 bytes")),
    "one bit": (flip, ("adapter.safetensors", "checksum")),
    "truncated, checksum repaired": (lambda f: cut(f, 500, repair=True), ("adapter.safetensors", "500 bytes")),
    "emptied, checksum repaired": (lambda f: cut(f, 0, repair=True), ("adapter.safetensors", "0 bytes")),
    "bytes after the tensors": (lambda f: append(f), ("adapter.safetensors", "safetensors file")),
    "missing tensor": (
        lambda f: edit_tensors(f, lambda t: t.pop(HEAD), False),
        ("adapter.safetensors", HEAD, "missing"),
    ),
    "surplus tensor": (
        lambda f: edit_tensors(f, lambda t: t.update(x=torch.ones(1)), False),
        ("adapter.safetensors", "x is surplus"),
    ),
    "mis-shaped tensor": (
        lambda f: edit_tensors(f, lambda t: t.update({HEAD: torch.ones(2, 16)}), False),
        (HEAD, "float32[2, 16]", "float32[1, 16]"),
    ),
    "wrong dtype": (
        lambda f: edit_tensors(f, lambda t: t.update({HEAD: t[HEAD].half()}), False),
        (HEAD, "float16[1, 16]", "float32[1, 16]"),
    ),
    "missing, consistently": (
        lambda f: edit_tensors(f, lambda t: t.pop(HEAD), True),
        ("adapter.safetensors", HEAD, "missing"),
    ),
    "surplus, consistently": (
        lambda f: edit_tensors(f, lambda t: t.update(x=torch.ones(1)), True),
        ("adapter.safetensors", "x is surplus"),
    ),
    "mis-shaped, consistently": (
        lambda f: edit_tensors(f, lambda t: t.update({HEAD: torch.ones(2, 16)}), True),
        (HEAD, "float32[2, 16]", "float32[1, 16]"),
    ),
    "integers, consistently": (
        lambda f: edit_tensors(f, lambda t: t.update({HEAD: t[HEAD].int()}), True),
        (HEAD, "int32[1, 16]", "float32[1, 16]"),
    ),
    "unknown guide": (
        lambda f: edit_json(f, lambda a: a["guide"].update(name="contextal")),
        ("'contextal'", "'contextual'", "mean_field"),
    ),
    "unknown model": (lambda f: edit_json(f, lambda a: a["model"].update(structure="my")), ("'my'", "stochastic_core")),
    "unknown option": (lambda f: edit_json(f, lambda a: a["guide"]["config"].update(depth=3)), ("'depth'",)),
    "unknown prior": (
        lambda f: edit_json(f, lambda a: next(iter(a["prior"].values())).update(family="Nrmal")),
        ("'Nrmal'", "'core.encoder.layer.0.attention.self.query'"),
    ),
    "unknown layer": (
        lambda f: edit_json(f, lambda a: a["model"]["config"].update(targets=["x.y"])),
        (r"'x\\.y'", "BertModel", "dense, key, query, value"),
    ),
    "fewer layers": (
        lambda f: edit_json(f, lambda a: a["model"]["config"]["targets"].pop()),
        ("'core.encoder.layer.1.attention.self.value'", "'core.encoder.layer.0.attention.self.value'"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_load_lists_what_is_wrong_and_leaves_the_backbone_alone(case: str, tmp_path: Path) -> None:
    spoil, facts = BAD[case]
    save(tmp_path / "a", *pair())
    spoil(tmp_path / "a")
    net = bert()
    net.train()
    net.encoder.eval()
    next(net.parameters()).requires_grad_(False)
    before = state(net)
    modes = [(n, m.training, type(m)) for n, m in net.named_modules()]
    flags = [p.requires_grad for p in net.parameters()]
    with refuses(AdapterFileError, str(tmp_path / "a"), *facts) as caught:
        load(tmp_path / "a", net)
    assert "\n" not in str(caught[0])
    assert not adapted_layers(net)
    assert state(net).keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in state(net).items())
    assert [(n, m.training, type(m)) for n, m in net.named_modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == flags


def test_load_refuses_another_backbone(tmp_path: Path) -> None:
    save(tmp_path, *pair())
    others: list[tuple[Any, tuple[object, ...]]] = [
        (bert(seed=1), ("values of its tensors",)),
        (gpt2(), ("class 'BertModel' saved", "'GPT2Model' given")),
        (bert(layers=3), ("num_hidden_layers 2 saved", "3 given")),
        (bert().bfloat16(), ("dtype 'float32' saved", "'bfloat16' given")),
    ]
    for other, facts in others:
        with refuses(AdapterFileError, str(tmp_path), "BertModel", *facts):
            load(tmp_path, other)
        assert not adapted_layers(other)


def test_load_refuses_a_backbone_with_adapters_and_keeps_them(tmp_path: Path) -> None:
    model, guide = pair()
    save(tmp_path, model, guide)
    layers = list(adapted_layers(model.backbone).values())
    with refuses(ConfigError, "BertModel", "bayes_adapters.remove(backbone)"):
        load(tmp_path, model.backbone)
    assert list(adapted_layers(model.backbone).values()) == layers
    again, _ = load(tmp_path, remove(model.backbone))
    assert again.backbone is model.backbone


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("model", {"alpha": 3.0}),
        ("model", {"pooling": "cls"}),
        ("guide", {"scale": "softplus"}),
        ("task", {"limit": 0.5}),
    ],
)
def test_another_number_that_fits_as_well_is_noticed(tmp_path: Path, section: str, change: dict[str, Any]) -> None:
    """It was loaded, with other predictions."""
    save(tmp_path, *pair(), task={"limit": 0.1, "names": {"a": [1, 2.5e-7]}})

    def alter(about: dict[str, Any]) -> None:
        (about[section] if section == "task" else about[section]["config"]).update(change)

    edit_json(tmp_path, lambda about: None, repair=False)
    load(tmp_path, bert())  # written in another way, it says the same
    edit_json(tmp_path, alter, repair=False)
    backbone = bert()
    before = state(backbone)
    with refuses(AdapterFileError, str(tmp_path / "adapter.json"), "'checksum'"):
        load(tmp_path, backbone)
    assert not adapted_layers(backbone)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    edit_json(tmp_path, lambda about: about.pop("checksum"), repair=False)
    load(tmp_path, backbone)
