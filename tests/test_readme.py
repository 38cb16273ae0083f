"""The README's example does what the README says."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_example_runs_and_learns(capsys) -> None:
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, object] = {}
    exec(compile(code.group(1), str(README), "exec"), names)
    assert capsys.readouterr().out.count("tensor([[") == 3
    answer, batch = names["answer"], names["batch"]
    assert answer.probs.shape == (16, 2)
    torch.testing.assert_close(answer.total, answer.aleatoric + answer.epistemic)
    assert answer.log_density.mean() > torch.tensor(0.5).log()  # better than a coin on what it was fitted to
    assert batch.size == 16


def test_every_file_the_readme_names_exists() -> None:
    for name in re.findall(r"`([A-Za-z_]+(?:/[A-Za-z_0-9.]+)*\.(?:md|json|py|toml))`", README.read_text()):
        if not name.startswith("runs/"):
            assert (README.parent / name).is_file(), name
