"""A guide, model, likelihood or head in a file of the package: found, trained, saved and loaded, with no other edit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

GUIDE = '''
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import nn

from bayes_adapters import AdapterGuide, Granularity
from bayes_adapters.guides.mean_field import MeanField  # an import is no second claim to its name
from bayes_adapters.inference.guide import site_key
from bayes_adapters.sites import Part


class OneScale(AdapterGuide):
    """``q(E) = N(M, s²)``: one standard deviation per site."""

    name: ClassVar[str] = "one_scale"
    serves: ClassVar = frozenset({Granularity.GLOBAL})
    parts: ClassVar = frozenset({Part.CORE})

    def __init__(self, model, *, init_scale=0.1):
        super().__init__(model)
        self.init_scale = init_scale
        self.loc = nn.ParameterDict({site_key(site): nn.Parameter(model.start(site)) for site in model.sites})
        self.scale = nn.ParameterDict({site_key(s): nn.Parameter(torch.tensor(init_scale)) for s in model.sites})

    def posterior(self, call, prior):
        loc = self.loc[site_key(call.site)]
        return dist.Normal(loc, self.scale[site_key(call.site)].expand_as(loc)).to_event(len(call.site.event))

    def config(self):
        return {"init_scale": self.init_scale}


class _Draft(AdapterGuide):
    """Private, so it needs no name."""
'''
MODEL = '''
from typing import ClassVar

from bayes_adapters.models.stochastic_core import StochasticCore


class WideCore(StochasticCore):
    """Twice the scale."""

    structure: ClassVar[str] = "wide_core"

    def __init__(self, backbone, likelihood, *, alpha=32.0, **options):
        super().__init__(backbone, likelihood, alpha=alpha, **options)
'''
LIKELIHOOD = '''
from typing import ClassVar

from bayes_adapters.likelihoods.classes import Bernoulli


class Coin(Bernoulli):
    """A Bernoulli of another name."""

    name: ClassVar[str] = "coin"
'''
HEAD = '''
from typing import ClassVar

from bayes_adapters.heads.linear import LinearHead


class Doubled(LinearHead):
    """``2 f``."""

    name: ClassVar[str] = "doubled"

    def forward(self, features):
        return 2.0 * super().forward(features)
'''
FILES = {"guides/one": GUIDE, "models/wide": MODEL, "likelihoods/coin": LIKELIHOOD, "heads/doubled": HEAD}
USE = """
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

import bayes_adapters
from bayes_adapters import Batch, load, predict, registry, save
from bayes_adapters.training import fit

root = Path(bayes_adapters.__file__).parent
assert root == Path(sys.argv[1]), root


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertModel(BertConfig(vocab_size=9, **sizes))


new = {"guide": "one_scale", "model": "wide_core", "likelihood": "coin", "head": "doubled"}
for kind, name in new.items():
    assert name in registry.names(kind)
guide, model, likelihood, head = (registry.find(kind, name) for kind, name in new.items())
batch = Batch({"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}, torch.tensor([0.0, 1.0]))
options = {"granularity": "global", "num_data": 2, "head": head(), "targets": ["query"], "rank": 2}
m = model(bert(), likelihood(), **options)
g = guide(m)
fit(m, g, batch, epochs=20, optimizer=lambda parameters: torch.optim.Adam(parameters, 0.1), progress=False)
save("adapter", m, g)
again = load("adapter", bert())
parts = (again[1], again[0], again[0].likelihood, again[0].head)
assert [type(part) for part in parts] == [guide, model, likelihood, head]
first, second = (predict(*pair, batch.without_targets(), num_samples=3) for pair in ((m, g), again))
assert torch.equal(first.mean, second.mean) and (first.epistemic > 0).all()
print("done")
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, laid out as it is installed."""
    target = tmp_path / "site" / "bayes_adapters"
    for source, place in (("bayes_adapters", target), ("models", target / "models"), ("guides", target / "guides")):
        shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def run(program: str, package: Path) -> subprocess.CompletedProcess[str]:
    clean = os.environ | {"PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, str(package)]
    return subprocess.run(command, capture_output=True, text=True, env=clean, cwd=package.parents[1], timeout=300)


def test_one_file_is_all_that_a_new_class_needs(package: Path) -> None:
    for name, source in FILES.items():
        (package / f"{name}.py").write_text(source)
    done = run(USE, package)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def test_a_name_that_two_files_give_is_refused(package: Path) -> None:
    (package / "guides" / "one.py").write_text(GUIDE)
    (package / "guides" / "two.py").write_text(GUIDE)
    done = run("from bayes_adapters import registry; registry.names('guide')", package)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    for fact in ("ConfigError", "one_scale", "guides.one:OneScale", "guides.two:OneScale"):
        assert fact in last
