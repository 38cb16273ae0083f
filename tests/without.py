"""A program in a process of its own, in which a package cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_START = """
import sys

sys.modules[{package!r}] = None  # an import of it raises ImportError

import importlib
import pkgutil

import bayes_adapters

for module in pkgutil.walk_packages(bayes_adapters.__path__, "bayes_adapters."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def run_without(package: str, program: str) -> list[str]:
    """Import every module of the library where there is no ``package``, then run ``program``; return what it prints."""
    clean = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _START.format(package=package) + program]
    done = subprocess.run(command, capture_output=True, text=True, env=clean, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
