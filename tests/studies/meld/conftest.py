"""Files as they are loaded, and a task made of them."""

from __future__ import annotations

import pytest

from examples.studies.meld.data import Meld
from examples.studies.meld.task import Task
from tests.studies.meld.parts import PROMPTS, SETTINGS, Tokenizer, backbone, write


@pytest.fixture(scope="module")
def meld(tmp_path_factory: pytest.TempPathFactory) -> Meld:
    return Meld.load(write(tmp_path_factory.mktemp("meld")))


@pytest.fixture(scope="module")
def task(meld: Meld) -> Task:
    return Task.make(meld, PROMPTS, Tokenizer(), backbone, SETTINGS, 0)
