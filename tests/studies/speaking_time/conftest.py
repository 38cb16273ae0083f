"""The measured prompts, and the task on them."""

from __future__ import annotations

import pytest

from examples.studies.speaking_time import data
from examples.studies.speaking_time.data import Data
from examples.studies.speaking_time.task import Task


@pytest.fixture(scope="module")
def prompts(offline: None) -> Data:
    return data.load()


@pytest.fixture(scope="module")
def task(prompts: Data) -> Task:
    return Task.make(prompts)
