"""A package from outside the tree, as an installer leaves it: a module and its entry points in a folder on the path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def install(folder: Path, entry_points: str, name: str) -> None:
    """Put the metadata of a distribution called ``name`` with these entry points into ``folder``."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


@contextmanager
def installed(folder: Path, module: str, source: str, entry_points: str) -> Iterator[None]:
    """Make ``module`` and its entry points known as long as the context lasts; nothing imports the module yet.

    Args:
        folder: a new folder, prepended to ``sys.path``.
        module: the module's name; the distribution's has hyphens instead.
        source: the module's text.
        entry_points: text of ``entry_points.txt``.
    """
    install(folder, entry_points, module.replace("_", "-"))
    (folder / f"{module}.py").write_text(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        try:
            yield
        finally:
            sys.modules.pop(module, None)
