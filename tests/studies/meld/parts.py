"""MELD's files made here, a tokenizer of whole words, and small settings."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from examples.studies.meld.data import Utterance
from examples.studies.meld.task import Settings
from tests.helpers import bert

HEADER = (
    "Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID", "Season", "Episode",
    "StartTime", "EndTime",
)  # fmt: skip
WORDS = {"negative": ["awful", "sad"], "neutral": ["table", "seven"], "positive": ["lovely", "joy"]}
FILLER = ["the", "a", "is", "it", "was", "you", "so"]
VOCABULARY = [*FILLER, *(word for words in WORDS.values() for word in words), "please", "press", "wait", "’"]
SIZES = {"train": 30, "dev": 8, "test": 12}
SETTINGS = Settings(
    train_size=60, dev_size=20, test_size=30, epochs=1, batch_size=8, rank=2, members=2, samples=3, dev_samples=1
)


class Tokenizer:
    """Whitespace words to numbers from 1; counts how often it is asked."""

    pad_token_id = 0

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, text: str, truncation: bool, max_length: int) -> dict[str, list[int]]:
        assert truncation
        self.calls += 1
        return {"input_ids": [1 + VOCABULARY.index(word) for word in text.lower().split()][:max_length]}


def dialogue(split: str, number: int, lines: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    episode = {"train": 0, "dev": 1, "test": 2}[split]
    return [
        dict(
            zip(
                HEADER,
                ("1", text, "Ann", "joy", sentiment, str(number), str(i), str(episode), str(number), f"0:0{i}", "0:9"),
                strict=True,
            )
        )
        for i, (text, sentiment) in enumerate(lines)
    ]


def rows_of(split: str) -> list[dict[str, str]]:
    source = random.Random(split)
    rows = []
    for number in range(SIZES[split]):
        lines = []
        for _ in range(source.randint(2, 5)):
            sentiment = source.choice(list(WORDS))
            words = [*source.choices(FILLER, k=source.randint(1, 6)), source.choice(WORDS[sentiment])]
            source.shuffle(words)
            lines.append((" ".join(words), sentiment))
        rows += dialogue(split, number, lines)
    return rows


def write(folder: Path, **splits: list[dict[str, str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in SIZES:
        with (folder / f"{split}_sent_emo.csv").open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, HEADER)
            writer.writeheader()
            writer.writerows(splits.get(split) or rows_of(split))
    return folder


def backbone() -> nn.Module:
    return bert()


PROMPTS = [
    Utterance(f"prompt/{i}", f"prompt/{i}", text, None) for i, text in enumerate(["please wait", "press seven", "wait"])
]
