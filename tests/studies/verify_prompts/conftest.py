"""A handful of prompts, a guide trained on them, and its records and predictions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from bayes_adapters.analysis.records import write_records
from bayes_adapters.backbones import speech_encoder, text_backbone
from examples.studies.rows import write_rows
from examples.studies.verify_prompts.corpus import Corpus
from examples.studies.verify_prompts.experiment import Trained, evaluate, train
from examples.studies.verify_prompts.features import FrameStore
from examples.studies.verify_prompts.predictions import Prediction as Row
from examples.studies.verify_prompts.prompts import Splits, load_prompts, make_splits
from tests.studies.verify_prompts.parts import SETTINGS, SIZES


@contextmanager
def _offline() -> Iterator[None]:
    """The fixture ``offline`` lasts a module; what all modules share is made within this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Short prompts only, a few of each split, English and Italian; no test changes them."""
    with _offline():
        return _corpus(tmp_path_factory.mktemp("frames"))


def _corpus(root: Path) -> Corpus:
    everything = load_prompts(("en", "it"))
    whole = make_splits(everything, 0)
    # twelve recordings of a second and more have more frames than a frame has numbers, as their density needs
    short = {p.key for p in everything if p.language == "en" and 1.0 <= p.seconds < 2.0}
    foreign = {p.key for p in everything if p.language == "it" and p.seconds < 2.0}
    parts = {name: tuple(k for k in getattr(whole, name) if k in short & foreign)[:n] for name, n in SIZES.items()}
    splits = Splits(parts["train"], parts["validation"], parts["test"], 0)
    keys = {key for part in parts.values() for key in part}
    prompts = [p for p in everything if p.key in keys]
    encoder = speech_encoder()
    stores = {
        name: FrameStore(
            [p for p in prompts if p.key in parts[name] and (p.language == "en" or name == "test")],
            splits,
            encoder=encoder,
            root=root,
        )
        for name in parts
    }
    return Corpus(prompts, splits, stores, text_backbone()[1])


@pytest.fixture(scope="session")
def trained(corpus: Corpus) -> Trained:
    """A guide over those prompts; no test changes it."""
    with _offline():
        return train(corpus, "caliber-x", 0, replace(SETTINGS, epochs=2))


@pytest.fixture(scope="module")
def evaluated(corpus: Corpus, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run called lora-text-0, though another method's numbers are in it."""
    folder = tmp_path_factory.mktemp("runs")
    records, rows = evaluate(corpus, trained, SETTINGS)
    write_records(folder / "lora-text-0.json", [replace(record, method="lora-text") for record in records])
    write_rows(folder / "lora-text-0.csv", Row, [row._replace(method="lora-text") for row in rows])
    return folder
