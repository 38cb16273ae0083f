"""A save that dies between its two files leaves a folder that loads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import Bernoulli, load, save
from bayes_adapters.guides import Delta
from bayes_adapters.models import LoRA
from tests.helpers import bert


def test_a_save_that_dies_after_the_weights_is_ended_by_loading_and_by_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LoRA(bert(), Bernoulli(), rank=2)
    guide = Delta(model)
    save(tmp_path, model, guide)
    replace = os.replace

    def dies(source: Any, target: Any) -> None:
        replace(source, target)
        if str(target).endswith(".safetensors"):
            raise KeyboardInterrupt

    for _ in range(2):  # the second time over what the first one left
        with torch.no_grad():
            model.head.weight.add_(1.0)
        monkeypatch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, model, guide)
        monkeypatch.setattr(os, "replace", replace)
        loaded, _ = load(tmp_path, bert())
        torch.testing.assert_close(loaded.head.weight, model.head.weight)
    save(tmp_path, model, guide)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter.json", "adapter.safetensors"]
