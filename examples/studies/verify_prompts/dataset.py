"""Pairs as a data set: tokens, cached frames, and a corruption that may change every epoch."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from bayes_adapters.data.batch import Batch, Frames
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.speech.corruption import Condition
from examples.studies.verify_prompts.features import FrameStore
from examples.studies.verify_prompts.pairs import Pair, WrongScripts

MISSING = "missing"


@dataclass(frozen=True)
class Item:
    """One example before padding.

    Args:
        input_ids: the script's tokens.
        frames: shape (S, d), float32; S is 0 when the audio is withheld.
        label: 0 or 1.
        index: position in the data set.
    """

    input_ids: tuple[int, ...]
    frames: Float[Tensor, "S d"]
    label: int
    index: int


class PairDataset(Dataset[Item]):
    """Pairs with their frames under randomly chosen conditions.

    What an item holds is a function of (seed, epoch, position) alone, whatever the order, the workers and the batches.

    Args:
        pairs: from ``make_pairs``.
        store: where the frames are.
        tokenizer: of the text backbone.
        conditions: condition → probability, summing to 1; ``missing`` withholds the audio.
        draws: each random condition uses one of this many noise draws of the store.
        fresh: wrong scripts are drawn anew for each epoch, from the right scripts of ``pairs``.
        hard: with ``fresh``, the probability that a wrong script is a hard one (half one word changed, half closest
            in length).
        seed: of everything random.
        max_tokens: longest script in tokens; longer ones are cut.

    Raises:
        ConfigError: a condition is unknown, the probabilities are no distribution, or an option is out of range.
        DataError: there are no pairs, or ``fresh`` finds a wrong pair without its right one.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        store: FrameStore,
        tokenizer: Any,
        *,
        conditions: Mapping[str, float] | None = None,
        draws: int = 1,
        fresh: bool = False,
        hard: float = 0.0,
        seed: int = 0,
        max_tokens: int = 64,
    ) -> None:
        self.pairs = list(pairs)
        self._conditions = _check(dict(conditions or {"clean": 1.0}))
        if draws < 1 or not 0 <= hard <= 1:
            raise ConfigError(f"draws must be at least 1 and hard between 0 and 1; got draws={draws}, hard={hard}.")
        if hard and not fresh:
            raise ConfigError(
                f"hard={hard} has an effect only with fresh=True; for fixed hard pairs use make_pairs(kind='hard')."
            )
        if not self.pairs:
            raise DataError("The data set has no pairs. Is the split empty, or were the foreign prompts not loaded?")
        self._store, self._tokenizer, self.max_tokens = store, tokenizer, max_tokens
        self._draws, self._hard, self._seed, self._epoch = draws, hard, seed, 0
        self._tokens: dict[str, tuple[int, ...]] = {}
        self._right = {(pair.language, pair.recording_key): pair.script_text for pair in self.pairs if pair.label == 1}
        self._wrong: WrongScripts | None = None
        if fresh:
            lonely = [p.recording_key for p in self.pairs if (p.language, p.recording_key) not in self._right]
            if lonely:
                raise DataError(f"fresh=True needs every recording's right pair too; {lonely[:3]} have none.")
            self._wrong = WrongScripts(list(self._right.values()))

    def with_pairs(self, pairs: Sequence[Pair], conditions: Mapping[str, float]) -> PairDataset:
        """Return a data set of other fixed pairs under other conditions, from the same store and tokenizer."""
        return type(self)(
            pairs,
            self._store,
            self._tokenizer,
            conditions=conditions,
            draws=self._draws,
            seed=self._seed,
            max_tokens=self.max_tokens,
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; call it before each pass. Loaders with persistent workers do not notice."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self.pairs)

    def describe(self, index: int) -> tuple[Pair, str, int]:
        """Return what ``self[index]`` holds in this epoch: the pair, the condition, the noise draw."""
        pair = self.pairs[index]
        source = random.Random(f"{self._seed}/{self._epoch}/{index}")
        condition = source.choices(list(self._conditions), list(self._conditions.values()))[0]
        draw = source.randrange(self._draws)
        if self._wrong is not None and pair.label == 0:
            kind = source.choice(("swap", "length")) if source.random() < self._hard else "random"
            script = self._wrong.draw(kind, self._right[pair.language, pair.recording_key], source)
            pair = Pair(pair.recording_key, pair.language, script, 0, kind)
        return pair, condition, draw

    def length(self, index: int) -> int:
        """Characters of the script in this epoch."""
        return len(self.describe(index)[0].script_text)

    def window(self, index: int) -> int:
        """Examples of different windows never share a batch of an evaluation; here all have the same one."""
        return 0

    def collate(self, items: Sequence[Item]) -> Batch:
        """Pad items to a batch."""
        return collate(items)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Pad the items of these numbers to a batch."""
        return self.collate([self[i] for i in rows])

    def identity(self) -> dict[str, Any]:
        """Everything that decides what the items are, but the epoch: a checkpointed run refuses to go on with other."""
        pairs = hashlib.sha256(json.dumps([astuple(pair) for pair in self.pairs]).encode()).hexdigest()
        return {
            "examples": len(self),
            "pairs": pairs[:16],
            "conditions": self._conditions,
            "draws": self._draws,
            "fresh": self._wrong is not None,
            "hard": self._hard,
            "seed": self._seed,
            "max_tokens": self.max_tokens,
        }

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < len(self.pairs):
            raise IndexError(f"The data set has {len(self.pairs)} pairs; there is no number {index}.")
        pair, condition, draw = self.describe(index)
        if condition == MISSING:
            frames = torch.zeros(0, self._store.width)
        else:
            frames = self._store.get(pair.language, condition, pair.recording_key, draw)
        return Item(self._encode(pair.script_text), frames, pair.label, index)

    def _encode(self, text: str) -> tuple[int, ...]:
        if text not in self._tokens:
            self._tokens[text] = tuple(self._tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"])
        return self._tokens[text]


def collate(items: Sequence[Item], pad_id: int = 0) -> Batch:
    """Pad items to a batch.

    Args:
        items: B items.
        pad_id: the tokenizer's padding token; it is masked.

    Returns:
        A batch with inputs ``input_ids`` and ``attention_mask`` (B, T) int64, targets (B,) float32 in {0, 1}, context
        ``audio`` (B, S, d) float32 with its mask, and each item's index. Where the audio is withheld, a row's mask is
        False throughout; S is at least 1.
    """
    ids, token_mask = pad_tokens(items, pad_id)
    length = max(1, *(len(item.frames) for item in items))
    frames = torch.zeros(len(items), length, items[0].frames.shape[1])
    mask = torch.zeros(len(items), length, dtype=torch.bool)
    for row, item in enumerate(items):
        frames[row, : len(item.frames)] = item.frames
        mask[row, : len(item.frames)] = True
    return Batch(
        {"input_ids": ids, "attention_mask": token_mask},
        torch.tensor([float(item.label) for item in items]),
        {"audio": Frames(frames, mask)},
        torch.tensor([item.index for item in items]),
    )


def pad_tokens(items: Sequence[Item], pad_id: int) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Return the items' tokens and their mask, each shape (B, T), int64."""
    tokens = max(len(item.input_ids) for item in items)
    ids = torch.full((len(items), tokens), pad_id)
    mask = torch.zeros(len(items), tokens, dtype=torch.int64)
    for row, item in enumerate(items):
        ids[row, : len(item.input_ids)] = torch.tensor(item.input_ids)
        mask[row, : len(item.input_ids)] = 1
    return ids, mask


def _check(conditions: dict[str, float]) -> dict[str, float]:
    for name, probability in conditions.items():
        if name != MISSING:
            Condition.parse(name)
        if not probability >= 0:
            raise ConfigError(f"The probability of condition {name!r} must not be negative; got {probability}.")
    total = sum(conditions.values())
    if not math.isclose(total, 1.0, abs_tol=1e-6):
        raise ConfigError(f"The probabilities of the conditions must sum to 1; {conditions} sums to {total:g}.")
    return conditions
