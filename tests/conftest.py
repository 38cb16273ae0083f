"""Every test runs with the whole package instrumented, so that a wrong shape annotation fails a test.

The hook must be in place before the first import of ``bayes_adapters``. It wraps Python's path finder, which does not
know where an editable install keeps ``bayes_adapters.models`` and ``bayes_adapters.guides``; adding the checkout to
the package's search path shows it ``models/`` and ``guides/``.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.instrument import instrument

_EARLY = [name for name in sys.modules if name.split(".")[0] == "bayes_adapters"]
if _EARLY:
    raise pytest.UsageError(f"{_EARLY} were imported before tests/conftest.py could instrument them.")
instrument("bayes_adapters")

import pyro  # noqa: E402
from huggingface_hub import constants  # noqa: E402

import bayes_adapters  # noqa: E402

bayes_adapters.__path__.append(str(Path(__file__).resolve().parents[1]))

torch.set_num_threads(1)


def clean_slate() -> None:
    """The same torch generator, an empty Pyro parameter store, validation on."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    pyro.enable_validation(True)


@pytest.fixture(autouse=True)
def _clean_slate() -> None:
    """Each test starts alike."""
    clean_slate()


class _Doctests:
    """Examples of docstrings start alike, too: they lie outside of this folder, where no fixture of it reaches."""

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if isinstance(item, pytest.DoctestItem):
            clean_slate()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Doctests())


def pytest_collection_finish() -> None:
    """Millions of objects of imported modules are here to stay: no collection of garbage is to look at them again.

    ``Trainer`` collects three times a run, each time for a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def offline() -> Iterator[None]:
    """No model hub: the same files everywhere, the wheels'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield
