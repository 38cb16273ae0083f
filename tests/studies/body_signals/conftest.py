"""A file of windows, what is loaded from it, and a fold with pre-trained encoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.studies.body_signals.data import Signals, load
from examples.studies.body_signals.task import Task
from tests.studies.body_signals.parts import SETTINGS, arrays


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "windows.npz"
    np.savez(path, **arrays())
    return path


@pytest.fixture(scope="module")
def signals(file: Path) -> Signals:
    return load(file)


@pytest.fixture(scope="module")
def task(signals: Signals, tmp_path_factory: pytest.TempPathFactory) -> Task:
    return Task.build(signals, 0, SETTINGS, tmp_path_factory.mktemp("encoders"))
