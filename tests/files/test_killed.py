"""A process that is killed while it saves leaves the old adapter or the new one, and the next save goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from bayes_adapters import Bernoulli, load, save
from bayes_adapters.errors import AdapterFileError
from bayes_adapters.files.peft import from_peft, to_peft
from bayes_adapters.guides import Delta
from bayes_adapters.models import LoRA
from tests.files.deaths import deaths
from tests.helpers import bert

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    # PEFT reads an attribute that this version of transformers has deprecated.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def constant(number: float, rank: int = 2) -> LoRA:
    """Alpha and every trained number are ``number``."""
    model = LoRA(bert(), Bernoulli(), rank=rank, alpha=number)
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.fill_(number)
    return model


def number_of(model: LoRA) -> float:
    for parameter in model.trainable_parameters().values():
        assert (parameter == model.alpha).all(), "of neither save"
    return model.alpha


def read_ours(folder: Path) -> float:
    return number_of(load(folder, bert())[0])  # type: ignore[arg-type]


def read_peft(folder: Path) -> float:
    return number_of(from_peft(folder, bert(), Bernoulli()))


def pefts_own(folder: Path) -> float | None:
    """What PEFT itself reads: None if it refuses."""
    peft = pytest.importorskip("peft")
    try:
        theirs = peft.PeftModel.from_pretrained(bert(), folder)
    except ValueError:
        return None
    config = theirs.peft_config["default"]
    values = [p for name, p in theirs.named_parameters() if "lora_" in name]
    assert all((value == config.lora_alpha).all() for value in values), "of neither save"
    return float(config.lora_alpha)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("form", ["ours", "peft"])
def test_over_an_older_adapter(form: str, rank: int, tmp_path: Path) -> None:
    old, new = constant(3.0), constant(7.0, rank)
    write = {"ours": lambda f: save(f, new, guide), "peft": lambda f: to_peft(f, new)}[form]
    guide = Delta(new)
    if form == "ours":
        save(tmp_path / "old", old, Delta(old))
    else:
        to_peft(tmp_path / "old", old)
    (tmp_path / "old" / "notes.txt").write_text("mine")
    read = read_ours if form == "ours" else read_peft
    seen = []
    for _ in deaths(tmp_path / "a", tmp_path / "old", write):
        seen.append(read(tmp_path / "a"))
        if form == "peft":
            assert pefts_own(tmp_path / "a") in (None, 3.0, 7.0)
        write(tmp_path / "a")
        assert read(tmp_path / "a") == 7.0
        if form == "peft":
            assert pefts_own(tmp_path / "a") == 7.0
        names = {p.name for p in (tmp_path / "a").iterdir()}
        assert names == {p.name for p in (tmp_path / "old").iterdir()}
    assert seen == sorted(seen), "once it counts the new adapter goes on counting"
    assert {seen[0], seen[-1]} == {3.0, 7.0}
    assert len(seen) > 6


@pytest.mark.parametrize("form", ["ours", "peft"])
def test_the_first_save(form: str, tmp_path: Path) -> None:
    """It left a folder that no save would touch and nothing would read."""
    new = constant(7.0)
    guide = Delta(new)
    write = {"ours": lambda f: save(f, new, guide), "peft": lambda f: to_peft(f, new)}[form]
    read = read_ours if form == "ours" else read_peft
    refused = 0
    for _ in deaths(tmp_path / "a", None, write):
        try:
            assert read(tmp_path / "a") == 7.0
        except AdapterFileError:
            refused += 1
        write(tmp_path / "a")
        assert read(tmp_path / "a") == 7.0
    assert refused > 1
