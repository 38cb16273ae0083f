"""A density on pairs is saved with the adapter, comes back to the bit, and any other file is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import load, predict, save
from bayes_adapters.cli import main
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.reliability import PairDensity, load_pair_densities
from tests.files.parts import edit_json, pair
from tests.helpers import bert, token_batch
from tests.instrument import unchecked
from tests.refusals import refuses
from tests.reliability.parts import rng


def related(count: int, seed: int) -> tuple[Tensor, Tensor]:
    r = rng(seed)
    shared = torch.randn(count, 3, generator=r)
    return shared + 0.5 * torch.randn(count, 3, generator=r), shared + 0.5 * torch.randn(count, 3, generator=r)


@pytest.fixture(scope="module")
def density() -> PairDensity:
    return PairDensity.fit(*related(300, 0), *related(999, 1), components=3)


def test_a_p_value_is_the_rank_among_held_out_pairs(density: PairDensity) -> None:
    held = density.agreement(*related(999, 1))
    found = density.p_value(*related(40, 2))
    for value, agreement in zip(found.tolist(), density.agreement(*related(40, 2)), strict=True):
        assert value == pytest.approx((1 + int((held <= agreement).sum())) / 1000)
    x, a = related(4000, 3)
    same, other = density.p_value(x, a), density.p_value(x, a.roll(1, 0))
    for share in (0.05, 0.2, 0.5):
        assert float((same <= share).float().mean()) == pytest.approx(share, abs=0.03)
    assert float((other <= 0.05).float().mean()) > 0.3
    broken = x.clone()
    broken[0] = torch.nan
    assert float(density.p_value(broken, a)[0]) == pytest.approx(0.001)
    with refuses(ConfigError, "PairDensity.fit"):
        PairDensity(3, 3, 2).p_value(x, a)


def test_it_comes_back_to_the_bit_and_the_adapter_is_what_it_was(density: PairDensity, tmp_path: Path) -> None:
    model, guide = pair()
    save(tmp_path / "plain", model, guide)
    save(tmp_path / "with", model, guide, pair_densities={"audio": density, "a.b/ü": density})
    found = load_pair_densities(tmp_path / "with")
    assert list(found) == ["audio", "a.b/ü"]
    x, a = related(50, 4)
    for again in found.values():
        for use in ("agreement", "p_value", "forward"):
            assert torch.equal(getattr(again, use)(x, a), getattr(density, use)(x, a))
    assert load_pair_densities(tmp_path / "plain") == {}
    batch = token_batch()
    answers = [predict(*load(tmp_path / name, bert()), batch).mean for name in ("plain", "with")]
    assert torch.equal(*answers)
    texts = [json.loads((tmp_path / name / "adapter.json").read_text()) for name in ("plain", "with")]
    assert [text["format_version"] for text in texts] == [1, 2]
    assert "pair_densities" not in texts[0]
    again = found["audio"]
    save(tmp_path / "once more", model, guide, pair_densities={"audio": again})
    assert torch.equal(load_pair_densities(tmp_path / "once more")["audio"].held_out, density.held_out)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_keeps_its_dtype(density: PairDensity, tmp_path: Path, dtype: torch.dtype) -> None:
    given = copy.deepcopy(density).to(dtype)
    save(tmp_path, *pair(), pair_densities={"audio": given})
    again = load_pair_densities(tmp_path)["audio"]
    x, a = related(5, 4)
    assert again.agreement(x, a).dtype is dtype
    assert torch.equal(again.p_value(x, a), given.p_value(x, a))


def test_show_names_it(density: PairDensity, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, *pair(), pair_densities={"audio": density})
    assert main(["show", str(tmp_path)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "pairs audio input_dim=3, context_dim=3, components=3, pairs=999" in lines


def flip(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def described(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder, lambda about: change(about["pair_densities"][0]))


BAD: dict[str, tuple[Callable[[Path], Any], tuple[object, ...]]] = {
    "one bit": (flip, ("adapter.safetensors", "checksum")),
    "another size": (described(lambda e: e["config"].update(components=2)), ("input_map", "float32[3, 3]")),
    "a huge size": (described(lambda e: e["config"].update(input_dim=10**15)), ("input_map", f"float32[{10**15}, 3]")),
    "a size that is none": (
        described(lambda e: e["config"].update(input_dim=-1)),
        ("density on pairs", "cannot be", -1),
    ),
    "a newer option": (described(lambda e: e["config"].update(kernel=1)), ("kernel", "newer")),
    "no modality": (described(lambda e: e.pop("modality")), ("adapter.json", "pair_densities")),
    "no list": (lambda f: edit_json(f, lambda a: a.update(pair_densities=3)), ("adapter.json", "pair_densities")),
    "an edit": (
        lambda f: edit_json(f, lambda a: a["pair_densities"][0].update(modality="image"), repair=False),
        ("adapter.json", "altered"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_or_foreign_file_is_refused(density: PairDensity, tmp_path: Path, name: str) -> None:
    save(tmp_path, *pair(), pair_densities={"audio": density})
    spoil, says = BAD[name]
    spoil(tmp_path)
    with refuses(AdapterFileError, *says):
        load_pair_densities(tmp_path)


def test_tensors_that_no_entry_describes_are_surplus(density: PairDensity, tmp_path: Path) -> None:
    save(tmp_path, *pair(), pair_densities={"audio": density})
    edit_json(tmp_path, lambda about: about.pop("pair_densities"))
    with refuses(AdapterFileError, "pair_density.0.correlation is surplus"):
        load(tmp_path, bert())


def test_what_is_not_saved(density: PairDensity, tmp_path: Path) -> None:
    model, guide = pair()
    for wrong, says in (
        ({"audio": PairDensity(3, 3, 2)}, ("'audio'", "'limit'", "PairDensity.fit")),
        ([density], ("dictionary", "list")),
        ({"audio": nn.Linear(2, 2)}, ("'audio'", "Linear")),
        ({3: density}, (3, "dictionary")),
    ):
        with unchecked(), refuses(ConfigError, *says):
            save(tmp_path / "new", model, guide, pair_densities=wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()
