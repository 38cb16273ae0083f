"""Utterances become tokens and batches; prompts come once each."""

from __future__ import annotations

from pathlib import Path

import pytest

from bayes_adapters.errors import DataError
from examples.studies.length_batches import LengthBatches
from examples.studies.meld import data as meld_data
from examples.studies.meld.data import Meld, Utterances, voice_prompts
from examples.studies.meld.task import Task
from examples.studies.verify_prompts.prompts import Prompt
from tests.refusals import refuses
from tests.studies.meld.parts import Tokenizer


def test_tokens_are_made_when_they_are_asked_for(meld: Meld) -> None:
    tokenizer = Tokenizer()
    dataset = Utterances(meld.splits["train"], tokenizer, max_tokens=2)
    assert (len(dataset), tokenizer.calls) == (len(meld.splits["train"]), 0)
    assert dataset[3] == dataset[3]
    assert len(dataset[3]) == 2
    assert tokenizer.calls == 1
    assert dataset.targets().tolist() == [u.label for u in meld.splits["train"]]
    with refuses(DataError, "utterances"):
        Utterances([], tokenizer)


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_hold_every_example_once_with_its_tokens(task: Task, shuffle: bool) -> None:
    batches = LengthBatches(task.train, 7, length=task.train.length, shuffle=shuffle, seed=2)
    orders = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        orders.append([i for batch in batches for i in batch.ids.tolist()])
        assert sorted(orders[-1]) == list(range(60))
        assert len(list(batches)) == len(batches) == 9
    assert orders[0] == orders[2]
    assert (orders[0] != orders[1]) == shuffle
    for batch in batches:
        for row, number in enumerate(batch.ids.tolist()):
            real = batch.inputs["attention_mask"][row].bool()
            assert tuple(batch.inputs["input_ids"][row][real].tolist()) == task.train[number]
            assert bool((batch.inputs["input_ids"][row][~real] == 0).all())
            assert int(batch.targets[row]) == task.train.utterances[number].label
    assert next(iter(LengthBatches(task.foreign, 2, length=task.foreign.length))).targets is None


def test_prompts_come_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["Press seven.", "press  seven", "Wait!"]
    prompts = [Prompt(str(i), text, Path("x.wav"), "en", 1.0) for i, text in enumerate(texts)]
    monkeypatch.setattr(meld_data, "load_prompts", lambda languages: prompts if languages == ("en",) else [])
    found = voice_prompts()
    assert [u.text for u in found] == ["press  seven", "Wait!"]
    assert all(u.label is None for u in found)
    assert len({u.key for u in found} | {u.group for u in found}) == 2
