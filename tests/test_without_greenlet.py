"""Without greenlet everything works but what runs encoders in lock-step; that says how to install it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
USE = """
import sys

sys.modules["greenlet"] = None  # an import of it raises ImportError

import importlib
import pkgutil

import bayes_adapters
from bayes_adapters import ELBO, Categorical, models
from bayes_adapters.errors import MissingResourceError
from bayes_adapters.modalities.lockstep import run

for module in pkgutil.walk_packages(bayes_adapters.__path__, "bayes_adapters."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

from examples.studies.matrix_cells import PAIR
from examples.studies.tiny import make
from tests.systems.parts import NAMES, small

for name in NAMES:
    try:
        model, guide, data = small(name)
        assert ELBO(model, guide)(data).isfinite(), name
    except MissingResourceError as error:
        print(name, "|", error)
lengths = {"first": 2, "second": 2}
uses = {
    "every layer": lambda: models.Wander(make(PAIR), Categorical(2), num_data=4, lengths=lengths, every_layer=True),
    "run": lambda: run({"first": make("BERT")}, {"first": {}}, {}, lambda step, streams: {}),
}
for name, use in uses.items():
    try:
        use()
    except MissingResourceError as error:
        print(name, "|", error)
"""


def test_only_what_runs_in_lock_step_needs_greenlet() -> None:
    clean = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", USE]
    done = subprocess.run(command, capture_output=True, text=True, env=clean, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" | ") for line in done.stdout.splitlines())
    assert list(said) == ["cola", "bayesian-cola", "every layer", "run"]
    for line in said.values():
        assert "greenlet" in line
        assert line.endswith("pip install '.[cola]'")


def test_greenlet_is_an_extra_and_no_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert not [needed for needed in project["dependencies"] if "greenlet" in needed]
    assert [needed for needed in extras["cola"] if needed.startswith("greenlet")]
    assert all("cola" in own for own in (extras["demo"][0], extras["dev"][0]))
