"""Batches of pairs by length and condition: every pair once, and what they say they are."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch

from examples.studies.verify_prompts.corpus import Corpus, PairBatches
from examples.studies.verify_prompts.dataset import MISSING
from examples.studies.verify_prompts.experiment import PLAIN, validation_batches
from tests.studies.verify_prompts.parts import SETTINGS

pytestmark = pytest.mark.usefixtures("offline")


def test_validation_batches_hold_every_pair_once(corpus: Corpus) -> None:
    dataset = corpus.evaluation("validation", "clean")
    seen: Counter[tuple[tuple[int, ...], float]] = Counter()
    withheld = 0
    for batch in validation_batches(corpus, SETTINGS):
        for row in range(batch.size):
            ids = batch.inputs["input_ids"][row][batch.inputs["attention_mask"][row].bool()]
            seen[tuple(ids.tolist()), float(batch.targets[row])] += 1
        present = batch.context["audio"].present
        assert bool(present.all()) or not bool(present.any()), "a batch has one condition"
        withheld += int((~present).sum())
    assert seen == Counter(
        (item.input_ids, float(item.label)) for item in map(dataset.__getitem__, range(len(dataset)))
    )
    assert 0 < withheld < len(dataset) / 2
    first, second = (validation_batches(corpus, SETTINGS) for _ in range(2))
    assert all(
        torch.equal(a.context["audio"].values, b.context["audio"].values) for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("shuffle", [True, False])
def test_length_batches_hold_every_example_once(corpus: Corpus, shuffle: bool) -> None:
    batches = PairBatches(corpus.training(PLAIN, seed=0), 5, shuffle=shuffle)
    orders = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        orders.append([batch.ids.tolist() for batch in batches])
        assert len(orders[-1]) == len(batches) == 5
        assert sorted(i for rows in orders[-1] for i in rows) == list(range(24))
    assert orders[0] == orders[2]
    assert (orders[0] != orders[1]) or not shuffle


def test_length_batches_say_what_they_are(corpus: Corpus) -> None:
    mix = {"clean": 0.5, MISSING: 0.5}

    def identity(size: int = 5, shuffle: bool = True, seed: int = 0, **options: Any) -> dict[str, Any]:
        training = corpus.training(**({"mix": mix, "seed": 0} | options))
        return PairBatches(training, size, shuffle=shuffle, seed=seed).identity()

    base = identity()
    assert identity() == json.loads(json.dumps(base)) == base
    assert (base["batch_size"], base["shuffle"], base["seed"]) == (5, True, 0)
    assert (base["dataset"]["examples"], base["dataset"]["conditions"], base["dataset"]["seed"]) == (24, mix, 0)
    others = [
        identity(6), identity(shuffle=False), identity(seed=1), identity(mix=PLAIN), identity(hard=0.5),
        PairBatches(corpus.training(mix, seed=1), 5, shuffle=True).identity(),
        PairBatches(corpus.evaluation("validation", "clean"), 5, shuffle=True).identity(),
    ]  # fmt: skip
    dataset = corpus.training(mix, seed=0)
    dataset.pairs[0], dataset.pairs[2] = dataset.pairs[2], dataset.pairs[0]
    others.append(PairBatches(dataset, 5, shuffle=True).identity())
    assert all(other != base for other in others)
    later = PairBatches(corpus.training(mix, seed=0), 5, shuffle=True)
    later.set_epoch(3)
    assert later.identity() == base, "an interrupted run is at a later epoch"
