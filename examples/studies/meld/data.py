"""MELD's utterances and sentiments: read from a folder, checked, in their official splits; and batches of them.

MELD (Poria et al. 2019, arXiv 1810.02508) is under GPL-3.0 and not part of this project: you fetch it, and pass its
folder.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from bayes_adapters import Batch
from bayes_adapters.errors import ConfigError, DataError, MissingResourceError, near_matches
from examples.studies.verify_prompts.prompts import load_prompts, normalise

SENTIMENTS = ("negative", "neutral", "positive")
"""Class numbers 0, 1, 2."""
SPLITS = ("train", "dev", "test")
_COLUMNS = ("Utterance", "Sentiment", "Dialogue_ID", "Utterance_ID", "Season", "Episode", "StartTime", "EndTime")


@dataclass(frozen=True)
class Utterance:
    """One line of a dialogue.

    Args:
        key: unique, ``<split>/<dialogue>/<utterance>``; ``prompt/<n>`` outside MELD.
        group: what it is resampled with: its dialogue, ``<split>/<dialogue>``.
        text: as spoken.
        label: position in :data:`SENTIMENTS`; None outside MELD.
        moment: season, episode, start, end: when it was said.
    """

    key: str
    group: str
    text: str
    label: int | None
    moment: tuple[str, ...] = ()


@dataclass(frozen=True)
class Meld:
    """The three official splits.

    Args:
        splits: split → its utterances, in the files' order.
        digest: of the three files: what runs on the same data share.
        dropped: keys left out of ``train`` or ``dev`` because the same moment is in a later split, too.
    """

    splits: Mapping[str, tuple[Utterance, ...]]
    digest: str
    dropped: tuple[str, ...]

    @classmethod
    def load(cls, folder: str | Path) -> Meld:
        """Read ``train_``, ``dev_`` and ``test_sent_emo.csv``.

        Dialogues are numbered anew in each file, so a dialogue is recognised by its episode and its lines. A single
        utterance that two dialogues of different splits have in common (the official files hold one: a scene was cut
        twice) stays in the later of train, dev, test.

        Raises:
            MissingResourceError: the folder or a file is not there.
            DataError: a file is not MELD's, or a dialogue is in two splits.
        """
        folder = Path(folder).expanduser()
        paths = {name: folder / f"{name}_sent_emo.csv" for name in SPLITS}
        if missing := [path.name for path in paths.values() if not path.is_file()]:
            raise MissingResourceError(
                f"{folder} has no {', '.join(missing)}. MELD is under GPL-3.0 and not shipped here: clone the GitHub "
                "repository declare-lab/MELD, and pass its folder data/MELD, which holds "
                f"{', '.join(path.name for path in paths.values())}: --data FOLDER."
            )
        raw = {name: path.read_bytes() for name, path in paths.items()}
        splits = {name: _parse(raw[name], name, paths[name]) for name in SPLITS}
        _check_dialogues(splits)
        dropped = _shared_moments(splits)
        kept = {name: tuple(u for u in part if u.key not in dropped) for name, part in splits.items()}
        if empty := [name for name, part in kept.items() if not part]:
            raise DataError(f"Nothing is left of {empty[0]}: all its utterances are in a later split, too.")
        digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in raw.values())).hexdigest()
        return cls(kept, digest[:16], dropped)

    def sample(self, split: str, size: int | None, seed: int) -> list[Utterance]:
        """Draw ``size`` utterances of a split; None is all. The draw depends on (split, size, seed) alone.

        Raises:
            ConfigError: the split has fewer.
        """
        part = self.splits[split]
        if size is None:
            return list(part)
        if not 1 <= size <= len(part):
            raise ConfigError(f"The split {split!r} has {len(part)} utterances; cannot draw {size} of them.")
        return random.Random(f"{split}/{size}/{seed}").sample(part, size)

    def dialogues(self, split: str, size: int | None) -> list[Utterance]:
        """Take whole dialogues, in a fixed random order, until there are ``size`` utterances or more; None is all."""
        part = self.splits[split]
        if size is None:
            return list(part)
        if not 1 <= size <= len(part):
            raise ConfigError(f"The split {split!r} has {len(part)} utterances; cannot take {size} of them.")
        groups = list(dict.fromkeys(u.group for u in part))
        random.Random(split).shuffle(groups)
        lengths = defaultdict[str, int](int)
        for u in part:
            lengths[u.group] += 1
        chosen, count = set[str](), 0
        while count < size:
            chosen.add(groups[len(chosen)])
            count = sum(lengths[g] for g in chosen)
        return [u for u in part if u.group in chosen]


def _parse(raw: bytes, split: str, path: Path) -> tuple[Utterance, ...]:
    try:
        reader = csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}). Was it saved by a spreadsheet? Fetch it again.") from error
    if absent := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
        raise DataError(
            f"{path} has no column {absent[0]!r}.{near_matches(absent[0], reader.fieldnames or ())} MELD's files have "
            f"{', '.join(_COLUMNS)}."
        )
    found: dict[str, Utterance] = {}
    for row in reader:
        where = f"Line {reader.line_num} of {path}"
        if any(row[name] is None for name in _COLUMNS):
            raise DataError(f"{where} has too few fields. Was the file cut short?")
        text, sentiment, dialogue = row["Utterance"].strip(), row["Sentiment"], f"{split}/{row['Dialogue_ID']}"
        if sentiment not in SENTIMENTS:
            raise DataError(f"{where} has the sentiment {sentiment!r}; allowed: {', '.join(SENTIMENTS)}.")
        if not text:
            raise DataError(f"{where} has an empty utterance. Remove it.")
        key = f"{dialogue}/{row['Utterance_ID']}"
        if key in found:
            raise DataError(f"{where}: utterance {row['Utterance_ID']} of dialogue {row['Dialogue_ID']} comes twice.")
        moment = tuple(row[name] for name in ("Season", "Episode", "StartTime", "EndTime"))
        found[key] = Utterance(key, dialogue, text, SENTIMENTS.index(sentiment), moment)
    if not found:
        raise DataError(f"{path} holds no utterance, only a header.")
    return tuple(found.values())


def _check_dialogues(splits: Mapping[str, Sequence[Utterance]]) -> None:
    seen: dict[tuple[tuple[str, ...], ...], str] = {}
    for part in splits.values():
        groups: dict[str, list[Utterance]] = defaultdict(list)
        for u in part:
            groups[u.group].append(u)
        for name, lines in groups.items():
            identity = tuple((*u.moment, u.text) for u in lines)
            first = seen.setdefault(identity, name)
            if first.split("/")[0] != name.split("/")[0]:
                raise DataError(
                    f"The dialogue {first} is also {name}: the splits are not disjoint, and a score would be too good. "
                    "Are these the official files?"
                )


def _shared_moments(splits: Mapping[str, Sequence[Utterance]]) -> tuple[str, ...]:
    """Keys whose moment and text are in a later split."""
    later: set[tuple[str, ...]] = set()
    keys: list[str] = []
    for name in reversed(SPLITS):
        keys += [u.key for u in splits[name] if (*u.moment[:3], u.text) in later]
        later |= {(*u.moment[:3], u.text) for u in splits[name]}
    return tuple(keys)


def voice_prompts() -> list[Utterance]:
    """Out-of-distribution inputs: the English scripts of telephone prompts, each once, without a sentiment."""
    scripts = {normalise(prompt.text): prompt.text for prompt in load_prompts(("en",))}
    return [Utterance(f"prompt/{i}", f"prompt/{i}", text, None) for i, text in enumerate(scripts.values())]


class Utterances(Dataset[tuple[int, ...]]):
    """Utterances as token numbers; each is tokenised when it is first asked for.

    Args:
        utterances: in order.
        tokenizer: of the backbone; without a padding token, padding is 0. It is masked.
        max_tokens: longer ones are cut.
    """

    def __init__(self, utterances: Sequence[Utterance], tokenizer: Any, max_tokens: int = 64) -> None:
        if not utterances:
            raise DataError("The data set has no utterances. Was a split or a subset empty?")
        self.utterances = list(utterances)
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        self._pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._tokens: dict[int, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> tuple[int, ...]:
        if index not in self._tokens:
            text = self.utterances[index].text
            self._tokens[index] = tuple(
                self._tokenizer(text, truncation=True, max_length=self._max_tokens)["input_ids"]
            )
        return self._tokens[index]

    def targets(self) -> torch.Tensor:
        """Shape (N,), int64; -1 where there is no sentiment."""
        return torch.tensor([-1 if u.label is None else u.label for u in self.utterances])

    def length(self, index: int) -> int:
        """Characters of an utterance: what it is sorted by; its tokens are not made for that."""
        return len(self.utterances[index].text)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Pad utterances to a batch; there are no targets where one of them has no sentiment."""
        tokens = [self[i] for i in rows]
        longest = max(map(len, tokens))
        ids = torch.tensor([[*row, *[self._pad_id] * (longest - len(row))] for row in tokens])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens])
        labels = [self.utterances[i].label for i in rows]
        targets = None if None in labels else torch.tensor(labels)
        return Batch({"input_ids": ids, "attention_mask": mask}, targets, index=torch.tensor(rows))
