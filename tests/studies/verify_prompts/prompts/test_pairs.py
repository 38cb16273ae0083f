"""Pairs of recordings and scripts, and the data sets made of them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from bayes_adapters.backbones import text_backbone
from bayes_adapters.errors import ConfigError, DataError
from examples.studies.verify_prompts.dataset import PairDataset, collate
from examples.studies.verify_prompts.features import FrameStore
from examples.studies.verify_prompts.pairs import WrongScripts, make_pairs, sound
from examples.studies.verify_prompts.prompts import Prompt, Splits, words
from tests.refusals import refuses

pytestmark = pytest.mark.usefixtures("offline")


@pytest.mark.parametrize("kind", ["random", "hard"])
def test_pairs_have_right_labels(corpus: list[Prompt], english: dict[str, Prompt], splits: Splits, kind: str) -> None:
    pairs = make_pairs(corpus, splits.test, kind, 0)
    assert [pair.recording_key for pair in pairs[::2]] == list(splits.test)
    own = {english[key].text for key in splits.test}
    vocabulary = {word for text in own for word in words(text)}
    for right, wrong in zip(pairs[::2], pairs[1::2], strict=True):
        true = english[right.recording_key].text
        assert (right.label, right.kind, right.script_text) == (1, "true", true)
        assert (wrong.label, wrong.recording_key) == (0, right.recording_key)
        assert sound(wrong.script_text) != sound(true)
        if wrong.kind == "swap":
            before, after = words(true), words(wrong.script_text)
            assert len(before) == len(after)
            changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
            assert len(changed) == 1
            assert changed[0][1] in vocabulary
        else:
            assert wrong.script_text in own
    kinds = Counter(pair.kind for pair in pairs)
    assert kinds == ({"true": 130, "random": 130} if kind == "random" else {"true": 130, "swap": 65, "length": 65})
    assert make_pairs(corpus, splits.test, kind, 0) == pairs != make_pairs(corpus, splits.test, kind, 1)


def test_closest_in_length(english: dict[str, Prompt], splits: Splits, corpus: list[Prompt]) -> None:
    texts = {english[key].text for key in splits.test}
    for pair in make_pairs(corpus, splits.test, "hard", 0):
        if pair.kind == "length":
            true = english[pair.recording_key].text
            gaps = [abs(len(text) - len(true)) for text in texts if sound(text) != sound(true)]
            assert abs(len(pair.script_text) - len(true)) == min(gaps)


def test_foreign_pairs(corpus: list[Prompt], english: dict[str, Prompt], splits: Splits) -> None:
    pairs = make_pairs(corpus, splits.test, "foreign", 0)
    assert len(pairs) > 100
    assert {(pair.language, pair.label, pair.kind) for pair in pairs} == {("it", 0, "foreign")}
    assert all(pair.recording_key in splits.test for pair in pairs)
    assert all(pair.script_text == english[pair.recording_key].text for pair in pairs)


def test_pairs_that_cannot_be(corpus: list[Prompt], splits: Splits) -> None:
    with refuses(ConfigError, "'hrad'", "'hard'"):
        make_pairs(corpus, splits.test, "hrad", 0)
    with refuses(DataError, "1 of 1", ["none"]):
        make_pairs(corpus, ["none"], "random", 0)
    with refuses(DataError, "two"):
        WrongScripts(["four", "for"])


def test_dataset_is_a_function_of_seed_epoch_and_position(
    corpus: list[Prompt], few: list[Prompt], splits: Splits, store: FrameStore
) -> None:
    _, tokenizer = text_backbone()
    keys = [prompt.key for prompt in few if prompt.key in splits.train]
    pairs = make_pairs(corpus, keys, "random", 0)

    def dataset(seed: int = 0) -> PairDataset:
        mix = {"clean": 0.4, "white@0": 0.4, "missing": 0.2}
        return PairDataset(pairs, store, tokenizer, conditions=mix, draws=2, fresh=True, hard=0.5, seed=seed)

    def content(data: PairDataset, epoch: int) -> list[tuple[object, ...]]:
        data.set_epoch(epoch)
        return [data.describe(i) for i in reversed(range(len(data)))]

    data = dataset()
    assert content(data, 3) == content(dataset(), 3) != content(dataset(1), 3)
    assert content(data, 3) != content(data, 4)
    assert content(data, 3) == content(dataset(), 3)
    right = {pair.recording_key: pair.script_text for pair in pairs if pair.label}
    seen = Counter[str]()
    for epoch in range(40):
        data.set_epoch(epoch)
        for i in range(len(data)):
            pair, condition, _ = data.describe(i)
            seen[condition] += 1
            assert (sound(pair.script_text) == sound(right[pair.recording_key])) == (pair.label == 1)
    total = seen.total()
    assert seen["missing"] / total == pytest.approx(0.2, abs=0.06)
    assert seen["white@0"] / total == pytest.approx(0.4, abs=0.08)


def test_batches(corpus: list[Prompt], few: list[Prompt], splits: Splits, store: FrameStore) -> None:
    _, tokenizer = text_backbone()
    pairs = make_pairs(corpus, [prompt.key for prompt in few], "hard", 0)
    data = PairDataset(pairs, store, tokenizer, conditions={"clean": 0.5, "missing": 0.5})
    batch = collate([data[i] for i in (5, 0, 3, 8)], tokenizer.pad_token_id)
    assert batch.index is not None
    assert batch.index.tolist() == [5, 0, 3, 8]
    assert batch.targets is not None
    assert batch.targets.tolist() == [0.0, 1.0, 0.0, 1.0]
    assert batch.inputs["input_ids"].dtype == batch.inputs["attention_mask"].dtype == torch.int64
    audio = batch.context["audio"]
    assert audio.values.dtype == torch.float32
    assert audio.present.tolist() == [data.describe(i)[1] == "clean" for i in (5, 0, 3, 8)]
    assert not audio.values[~audio.mask].any()
    text = tokenizer.decode(batch.inputs["input_ids"][1], skip_special_tokens=True)
    assert words(text) == words(pairs[0].script_text)
    empty = PairDataset(pairs, store, tokenizer, conditions={"missing": 1.0})
    assert collate([empty[0], empty[1]]).context["audio"].values.shape == (2, 1, 384)
    assert collate([data[0]]).size == 1


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"conditions": {"clean": 0.5}}, (1, 0.5)),
        ({"conditions": {"clean": 1.5, "missing": -0.5}}, ("'missing'", -0.5)),
        ({"conditions": {"clen": 1.0}}, ("'clen'", "'clean'")),
        ({"draws": 0}, ("draws=0", 1)),
        ({"hard": 0.5}, ("hard=0.5", "fresh=True")),
    ],
)
def test_dataset_options(
    corpus: list[Prompt], splits: Splits, store: FrameStore, options: dict[str, object], facts: tuple[object, ...]
) -> None:
    pairs = make_pairs(corpus, splits.test[:3], "random", 0)
    with refuses(ConfigError, *facts):
        PairDataset(pairs, store, None, **options)


def test_dataset_without_right_pairs(corpus: list[Prompt], splits: Splits, store: FrameStore) -> None:
    with refuses(DataError, "pairs"):
        PairDataset([], store, None)
    with refuses(DataError, "fresh=True"):
        PairDataset(make_pairs(corpus, splits.test, "foreign", 0), store, None, fresh=True)
