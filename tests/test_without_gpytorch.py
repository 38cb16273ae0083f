"""Without gpytorch everything works but Gaussian processes; they say how to install it."""

from __future__ import annotations

import tomllib

from tests.without import ROOT, run_without

USE = """
from bayes_adapters import registry
from bayes_adapters.errors import MissingResourceError
from bayes_adapters.heads.gaussian_process import GaussianProcessHead

assert "gaussian_process" in registry.names("head")
try:
    GaussianProcessHead()
except MissingResourceError as error:
    print(error)
"""


def test_only_gaussian_processes_need_gpytorch() -> None:
    (line,) = run_without("gpytorch", USE)
    assert "gpytorch" in line
    assert line.startswith("GaussianProcessHead")
    assert line.endswith("pip install '.[gp]'")


def test_gpytorch_is_an_extra_and_no_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert not [needed for needed in project["dependencies"] if "gpytorch" in needed]
    assert [needed for needed in extras["gp"] if needed.startswith("gpytorch")]
    assert "gp" in extras["dev"][0].strip("]").partition("[")[2].split(",")
