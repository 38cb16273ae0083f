"""Without gpytorch everything works but Gaussian processes; they say how to install it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
USE = """
import sys

sys.modules["gpytorch"] = None  # an import of it raises ImportError

import importlib
import pkgutil

import bayes_adapters
from bayes_adapters import registry
from bayes_adapters.errors import MissingResourceError
from bayes_adapters.heads.gaussian_process import GaussianProcessHead

for module in pkgutil.walk_packages(bayes_adapters.__path__, "bayes_adapters."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert "gaussian_process" in registry.names("head")
try:
    GaussianProcessHead()
except MissingResourceError as error:
    print(error)
"""


def test_only_gaussian_processes_need_gpytorch() -> None:
    clean = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", USE]
    done = subprocess.run(command, capture_output=True, text=True, env=clean, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert "gpytorch" in line
    assert line.startswith("GaussianProcessHead")
    assert line.endswith("pip install '.[gp]'")


def test_gpytorch_is_an_extra_and_no_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert not [needed for needed in project["dependencies"] if "gpytorch" in needed]
    assert [needed for needed in extras["gp"] if needed.startswith("gpytorch")]
    assert "gp" in extras["dev"][0].strip("]").partition("[")[2].split(",")
