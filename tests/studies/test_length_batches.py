"""The order of batches, frozen: a checkpoint is continued, and a seed repeated, only as long as it stays this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from bayes_adapters import Batch
from bayes_adapters.training._data import describe
from examples.studies.length_batches import LengthBatches
from examples.studies.meld.data import Utterance, Utterances
from examples.studies.verify_prompts.corpus import PairBatches
from examples.studies.verify_prompts.dataset import PairDataset
from examples.studies.verify_prompts.pairs import Pair

LENGTHS = [7 * i % 11 + 1 for i in range(20)]
"""Twenty lengths, most of them twice: two stretches of batches of two."""

# What the two classes that this one replaced gave for these lengths.
TRAINING = {
    0: [[2, 3], [12, 1], [4, 15], [0, 19], [13, 10], [17, 14], [9, 6], [8, 5], [11, 16], [18, 7]],
    1: [[16, 13], [12, 17], [6, 3], [9, 14], [4, 1], [18, 15], [19, 8], [5, 2], [11, 0], [10, 7]],
}
EVALUATION = [[0, 11], [8, 19], [5, 16], [2, 13], [10, 7], [18, 4], [15, 1], [12, 9], [6, 17], [3, 14]]
TRAINING_IN_WINDOWS = {
    0: [[11, 2], [4, 1], [10, 7], [0, 18], [9, 6], [17, 14], [8, 5], [15, 12], [3, 16], [19, 13]],
    1: [[9, 16], [8, 5], [2, 17], [13, 14], [1, 11], [7, 4], [15, 12], [6, 3], [0, 18], [19, 10]],
}
EVALUATION_IN_WINDOWS = [[0, 18], [15, 12], [9, 6], [3], [19, 16], [13, 10], [7, 4], [1], [11, 8], [5, 2], [17, 14]]


class Numbers:
    """Examples that are their own numbers."""

    def __len__(self) -> int:
        return len(LENGTHS)

    def batch(self, rows: Sequence[int]) -> Batch:
        return Batch({"x": torch.zeros(len(rows), 1)}, index=torch.tensor(rows))


class Pairs(PairDataset):
    """Scripts of these lengths, in windows by their number."""

    def __init__(self, windows: int) -> None:
        self.windows, self.epochs = windows, [0]

    def __len__(self) -> int:
        return len(LENGTHS)

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def describe(self, index: int) -> tuple[Pair, str, int]:
        return Pair(str(index), "en", "x" * LENGTHS[index], 1, "right"), "clean", 0

    def window(self, index: int) -> int:
        return index % self.windows

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        return index

    def collate(self, items: Sequence[int]) -> Batch:  # type: ignore[override]
        return Numbers().batch(items)


class Letters:
    """A tokenizer with a token for every letter."""

    def __init__(self, pad_token_id: int | None = 0) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [1] * len(text)}


def utterances(tokenizer: Letters | None = None) -> Utterances:
    said = [Utterance(str(i), "one", "x" * length, 0) for i, length in enumerate(LENGTHS)]
    return Utterances(said, tokenizer or Letters())


def meld(**options: Any) -> LengthBatches[Utterances]:
    data = utterances()
    return LengthBatches(data, 2, length=data.length, **options)


def orders(batches: Any) -> dict[int, list[list[int]]]:
    """The order of two epochs, the later one first; what a batch holds is what the order says."""
    found = {}
    for epoch in (1, 0):
        batches.set_epoch(epoch)
        found[epoch] = batches.rows()
        assert [batch.ids.tolist() for batch in batches] == found[epoch]
        assert len(batches) == len(found[epoch])
    return found


def test_the_orders_of_both_tasks_are_what_they_were() -> None:
    plain = LengthBatches(Numbers(), 2, length=LENGTHS.__getitem__, shuffle=True, seed=3)
    training = [plain, meld(shuffle=True, seed=3), PairBatches(Pairs(1), 2, shuffle=True, seed=3)]
    assert [orders(batches) for batches in training] == [TRAINING] * 3
    assert orders(PairBatches(Pairs(3), 2, shuffle=True, seed=3)) == TRAINING_IN_WINDOWS


def test_an_evaluation_has_one_order() -> None:
    same = dict.fromkeys((0, 1), EVALUATION)
    assert [orders(batches) for batches in (meld(), PairBatches(Pairs(1), 2, shuffle=False))] == [same] * 2
    in_windows = LengthBatches(Numbers(), 2, length=LENGTHS.__getitem__, window=lambda index: index % 3)
    pairs = PairBatches(Pairs(3), 2, shuffle=False)
    assert [orders(batches) for batches in (in_windows, pairs)] == [dict.fromkeys((0, 1), EVALUATION_IN_WINDOWS)] * 2


def test_pairs_follow_the_epoch() -> None:
    pairs = Pairs(1)
    PairBatches(pairs, 2, shuffle=True).set_epoch(4)
    assert pairs.epochs == [0, 4]


def test_a_checkpoint_knows_of_them_what_it_did() -> None:
    assert describe(meld(shuffle=True)) == {"batches": 10}


@pytest.mark.parametrize(("pad", "filled"), [(0, 0), (9, 9), (None, 0)])
def test_utterances_are_padded_as_the_tokenizer_says(pad: int | None, filled: int) -> None:
    batch = utterances(Letters(pad)).batch([0, 8])
    assert batch.inputs["input_ids"].tolist() == [[1, filled], [1, 1]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch.ids.tolist() == [0, 8]
