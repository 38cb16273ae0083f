"""Prompts of two languages, their splits, and frames of a few (fetched, and encoded, once into the cache)."""

from __future__ import annotations

import pytest

from bayes_adapters.backbones import SpeechEncoder, speech_encoder
from examples.studies.verify_prompts.features import FrameStore
from examples.studies.verify_prompts.prompts import Prompt, Splits, load_prompts, make_splits


@pytest.fixture(scope="module")
def corpus() -> list[Prompt]:
    return load_prompts(("en", "it"))


@pytest.fixture(scope="module")
def english(corpus: list[Prompt]) -> dict[str, Prompt]:
    return {prompt.key: prompt for prompt in corpus if prompt.language == "en"}


@pytest.fixture(scope="module")
def splits(corpus: list[Prompt]) -> Splits:
    return make_splits(corpus, 0)


@pytest.fixture(scope="module")
def encoder() -> SpeechEncoder:
    return speech_encoder()


@pytest.fixture(scope="module")
def few(corpus: list[Prompt], splits: Splits) -> list[Prompt]:
    chosen = {*splits.train[:8], *splits.test[:3]}
    return [prompt for prompt in corpus if prompt.language == "en" and prompt.key in chosen]


@pytest.fixture(scope="module")
def store(
    few: list[Prompt], splits: Splits, encoder: SpeechEncoder, tmp_path_factory: pytest.TempPathFactory
) -> FrameStore:
    return FrameStore(few, splits, encoder=encoder, root=tmp_path_factory.mktemp("frames"))
