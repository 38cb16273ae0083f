"""What load looks at before it builds anything: regular files, sizes, checksums; and what building may take."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bayes_adapters.files._adapter as adapter
from bayes_adapters import Bernoulli, Categorical, adapted_layers, load, load_task, save
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files import describe
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.models import LoRA
from tests.files.parts import edit_json, pair
from tests.helpers import bert
from tests.refusals import refuses


@pytest.fixture
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any) -> Any:
        raise AssertionError("built before it was checked")

    monkeypatch.setattr(adapter, "_build", build)


READERS: list[Callable[[Path], Any]] = [lambda f: load(f, bert()), load_task, describe]


@pytest.mark.parametrize("change", [{"rank": 2000}, {"dropout": 0.5}, {"unheard_of": 1}])
@pytest.mark.parametrize("read", READERS)
@pytest.mark.usefixtures("nothing_is_built")
def test_an_altered_description_is_not_acted_on(change: dict[str, Any], read: Any, tmp_path: Path) -> None:
    save(tmp_path, *pair(), task={"a": 1})
    edit_json(tmp_path, lambda about: about["model"]["config"].update(change), repair=False)
    with refuses(AdapterFileError, str(tmp_path / "adapter.json"), "'checksum'"):
        read(tmp_path)


@pytest.mark.usefixtures("nothing_is_built")
def test_altered_weights_are_noticed_by_whoever_reads_the_task(tmp_path: Path) -> None:
    save(tmp_path, *pair(), task={"a": 1})
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x99")
    for read in (lambda f: load(f, bert()), load_task):
        with refuses(AdapterFileError, str(path), f"{path.stat().st_size} bytes", "adapter.json", "checksum"):
            read(tmp_path)


@pytest.mark.parametrize("part", ["adapter.json", "adapter.safetensors"])
@pytest.mark.usefixtures("nothing_is_built")
def test_parts_that_never_end_or_are_too_large(part: str, tmp_path: Path) -> None:
    save(tmp_path, *pair())
    path = tmp_path / part
    path.unlink()
    os.mkfifo(path)
    with refuses(AdapterFileError, str(path), "pipe"):
        load(tmp_path, bert())
    path.unlink()
    path.symlink_to("/dev/zero")
    with refuses(AdapterFileError, str(path), "device"):
        load(tmp_path, bert())
    path.unlink()
    with path.open("wb") as file:
        file.truncate(2**36)
    with refuses(AdapterFileError, str(path), f"{2**36:,} bytes"):
        load(tmp_path, bert())


def changed(*keys: str, **values: Any) -> Callable[[dict[str, Any]], Any]:
    def change(about: dict[str, Any]) -> None:
        for key in keys:
            about = about[key]
        about.update(values)

    return change


SIZES: dict[str, tuple[Any, Callable[[dict[str, Any]], Any]]] = {
    "rank": (pair, changed("model", "config", rank=2000)),
    "rank of a mean field": (lambda: pair(guide=MeanField), changed("model", "config", rank=2000)),
    "rank beyond memory": (pair, changed("model", "config", rank=10**12)),
    "width": (pair, changed("guide", "config", width=10**9)),
    "classes": (
        lambda: pair(likelihood=Categorical(3)),
        changed("likelihood", "config", num_classes=10**9),
    ),
}


@pytest.mark.parametrize("case", SIZES)
def test_sizes_that_are_not_those_of_the_tensors(case: str, tmp_path: Path) -> None:
    """Rank 2000 for 2 took 130 s and 6 GiB before it was refused; here whoever altered it repaired the checksum."""
    make, change = SIZES[case]
    save(tmp_path, *make())
    edit_json(tmp_path, change)
    net = bert()
    before = torch.get_rng_state()
    largest = []
    empty = torch.empty

    def watched(*size: Any, **options: Any) -> Any:
        found = empty(*size, **options)
        largest.append(found.numel())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", watched)
        with pytest.raises(AdapterFileError):
            load(tmp_path, net)
    assert max(largest, default=0) < 1_000_000
    assert not adapted_layers(net)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_backbone_of_any_size_is_no_reason_to_refuse(tmp_path: Path) -> None:
    """Few entries were saved, many are in the backbone; a pruned model has next to none."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.config = type("Config", (), {"hidden_size": 3000})()
            self.query = nn.Linear(3000, 3000)

    model = LoRA(Wide(), Bernoulli(), targets=["query"], rank=1)
    save(tmp_path, model, Delta(model))
    load(tmp_path, Wide())


def test_save_spares_a_foreign_file_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "adapter.safetensors").write_bytes(b"somebody's")
    with refuses(AdapterFileError, str(tmp_path), "adapter.safetensors", "adapter.json"):
        save(tmp_path, *pair())
    assert (tmp_path / "adapter.safetensors").read_bytes() == b"somebody's"
    assert [p.name for p in tmp_path.iterdir()] == ["adapter.safetensors"]


def test_a_damaged_description_of_ours_may_be_replaced(tmp_path: Path) -> None:
    """A run that ends must not lose its model because somebody has touched the old one."""
    save(tmp_path, *pair())
    edit_json(tmp_path, lambda about: about.pop("guide"), repair=False)
    save(tmp_path, *pair())
    load(tmp_path, bert())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_folders_that_may_not_be_read(tmp_path: Path) -> None:
    save(tmp_path / "a", *pair())
    (tmp_path / "a").chmod(0)
    try:
        for call in (lambda: load(tmp_path / "a", bert()), lambda: save(tmp_path / "a", *pair())):
            with pytest.raises(AdapterFileError):
                call()
    finally:
        (tmp_path / "a").chmod(0o700)


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "x/" * 3000])
def test_paths_that_no_folder_can_have(name: str, tmp_path: Path) -> None:
    for call in (
        lambda: load(tmp_path / name, bert()),
        lambda: save(tmp_path / name, *pair()),
        lambda: load_task(name),
    ):
        with pytest.raises(AdapterFileError):
            call()


def test_a_task_too_long_to_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayes_adapters.files._folder._LONGEST", 10_000)
    with refuses(ConfigError, "10,000"):
        save(tmp_path / "a", *pair(), task={"text": "x" * 10_000})
    assert not (tmp_path / "a").exists()
