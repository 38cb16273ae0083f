"""The wheel: what is in it, and that it works away from the checkout and without the optional packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

STEP = """
import sys

HIDDEN = ("greenlet", "torchaudio", "soundfile", "matplotlib", "peft", "tensorboard", "gpytorch")

class Hide:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hide(f) for f in sys.meta_path if "editable" not in repr(f).lower() and hasattr(f, "find_spec")]
sys.path.insert(0, sys.argv[1])

import bayes_adapters
assert not {"transformers", "torch._dynamo"} & set(sys.modules)  # seconds before the command line says a word
import torch
from transformers import BertConfig, BertModel
from bayes_adapters import ELBO, Batch, Bernoulli, Frames, predict
from bayes_adapters.guides import CrossAttention
from bayes_adapters.models import StochasticCore

for module in ("bayes_adapters", "bayes_adapters.models", "bayes_adapters.guides"):
    assert sys.modules[module].__file__.startswith(sys.argv[1]), sys.modules[module].__file__
torch.manual_seed(0)
config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
bert = BertModel(config)
model = StochasticCore(bert, Bernoulli(), rank=2)
guide = CrossAttention(model, context_dim=3, dim=4)
ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
audio = Frames(torch.randn(2, 5, 3), torch.ones(2, 5, dtype=torch.bool))
batch = Batch({"input_ids": ids, "attention_mask": ids.ne(0).long()}, torch.tensor([0.0, 1.0]), {"audio": audio})
elbo = ELBO(model, guide)
optimiser = torch.optim.Adam([p for p in elbo.parameters() if p.requires_grad])
loss = elbo(batch)
loss.backward()
optimiser.step()
assert torch.isfinite(loss)
assert not set(HIDDEN) & set(sys.modules)
assert predict(model, guide, batch, num_samples=2).mean.shape == (2,)
print("one step:", loss.item())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that no build folder of an earlier version can leak into it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("bayes_adapters", "models", "guides"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source))
    (found,) = folder.glob("*.whl")
    return found


def _run(*command: str, cwd: Path | None = None) -> str:
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=clean, timeout=300)
    assert done.returncode == 0, f"{' '.join(command[:4])} … failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        licence = next(n for n in names if n.endswith("LICENSE"))
        assert "Permission is hereby granted" in archive.read(licence).decode()
    assert {n.split("/")[0] for n in names} == {"bayes_adapters", "bayes_adapters-0.1.0.dist-info"}
    assert "bayes_adapters/py.typed" in names
    for path in (ROOT / "bayes_adapters/testing/references").glob("*.json"):
        assert f"bayes_adapters/testing/references/{path.name}" in names
    sources = {"bayes_adapters": "bayes_adapters", "models": "bayes_adapters/models", "guides": "bayes_adapters/guides"}
    for folder, target in sources.items():
        for path in (ROOT / folder).rglob("*.py"):
            name = f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
            assert name in names, "is a sub-package missing in pyproject.toml?"
    for name in names:
        assert not name.endswith((".safetensors", ".pt", ".wav", ".npz")), name


def test_installed_wheel_trains_without_the_checkout_and_without_optional_packages(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    try:
        uv = [sys.executable, "-m", "uv"]
        _run(*uv, "--version")
    except AssertionError:
        uv = [shutil.which("uv") or "uv"]
    _run(*uv, "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel))
    script = tmp_path / "step.py"
    script.write_text(STEP)
    output = _run(sys.executable, "-I", str(script), str(target), cwd=tmp_path)
    assert output.startswith("one step:")
