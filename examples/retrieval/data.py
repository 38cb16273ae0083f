"""Recordings and scripts of script verification as two sides of retrieval, and the lists that queries choose from.

Whisper is frozen, so its frames are read from the cache. A model that wants an encoder for them has
:class:`~examples.studies.body_signals.adapters.Encoded`: a module without weights that returns what it is given, in the
place of ``nn.ModuleDict({"text": …, "audio": …})["audio"]``. The input ``audio.signal`` holds the frames,
``audio.token_mask`` says which are real. Methods that leave the text encoder as it is take its states in the same way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bayes_adapters import Batch, Frames
from bayes_adapters.backbones import SpeechEncoder, speech_encoder
from bayes_adapters.errors import ConfigError, DataError
from examples.studies.halves import Above
from examples.studies.verify_prompts.corpus import FOREIGN, Corpus
from examples.studies.verify_prompts.features import POOL, FrameStore
from examples.studies.verify_prompts.pairs import sound
from examples.studies.wander.script import Texts

UPPER = 2
"""Whisper's blocks that CoLA adapts; those below them run once."""
Hear = Callable[[str, str, str], Float[Tensor, "S d"]]
"""(language, condition, key) → frames of a recording."""


@dataclass(frozen=True)
class Split:
    """Recordings of one split, and the scripts that they say.

    Args:
        keys: of the recordings.
        tokens: of each recording's script.
        groups: whose scripts sound alike have one number, int64 (n,), from 0.
        hear: what reads their frames.
        foreign: language → keys that are also spoken in it.
        below: what reads the states that Whisper's uppermost blocks would be given.
    """

    keys: Sequence[str]
    tokens: Sequence[tuple[int, ...]]
    groups: Int[Tensor, " n"]
    hear: Hear
    foreign: Mapping[str, frozenset[str]] = field(default_factory=dict)
    below: Hear | None = None

    @classmethod
    def of(cls, corpus: Corpus, name: str, below: FrameStore, max_tokens: int = 64) -> Split:
        """Return a split of the corpus, with a store of the states that Whisper's uppermost blocks would be given."""
        keys = list(getattr(corpus.splits, name))
        text = {prompt.key: prompt.text for prompt in corpus.prompts if prompt.language == "en"}
        tokens = [tuple(corpus.tokenizer(text[k], truncation=True, max_length=max_tokens)["input_ids"]) for k in keys]
        numbers = {said: number for number, said in enumerate(dict.fromkeys(sound(text[k]) for k in keys))}
        groups = torch.tensor([numbers[sound(text[k])] for k in keys])
        spoken = {x: frozenset(p.key for p in corpus.prompts if p.language == x) & set(keys) for x in FOREIGN}
        return cls(keys, tokens, groups, corpus.stores[name].get, spoken if name == "test" else {}, below.get)

    @property
    def scripts(self) -> list[int]:
        """For each group the number of its first recording, whose script stands for all."""
        first: dict[int, int] = {}
        for row, group in enumerate(self.groups.tolist()):
            first.setdefault(group, row)
        return [first[group] for group in range(len(first))]

    def rows(self, condition: str) -> list[int]:
        """Return the numbers of the recordings that there are under a condition."""
        if not condition.startswith("ood-"):
            return list(range(len(self.keys)))
        spoken = self.foreign.get(condition.removeprefix("ood-"), frozenset())
        return [row for row, key in enumerate(self.keys) if key in spoken]

    def frames(self, rows: Sequence[int], conditions: Sequence[str], below: bool = False) -> Frames:
        """Return recordings, each under its condition; ``ood-es`` is the Spanish one of the same key.

        With ``below`` they are the states that Whisper's uppermost blocks would be given.
        """
        heard = []
        read = self.below if below else self.hear
        assert read is not None
        for row, condition in zip(rows, conditions, strict=True):
            language = condition.removeprefix("ood-") if condition.startswith("ood-") else "en"
            heard.append(read(language, condition if language == "en" else "clean", self.keys[row]))
        lengths = torch.tensor([len(own) for own in heard])
        values = nn.utils.rnn.pad_sequence(heard, batch_first=True)
        return Frames(values, torch.arange(values.shape[1]) < lengths[:, None])

    def ids(self, rows: Sequence[int]) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
        """Return the tokens of scripts, and their mask."""
        some = [torch.tensor(self.tokens[row]) for row in rows]
        mask = [torch.ones(len(own), dtype=torch.int64) for own in some]
        pad = nn.utils.rnn.pad_sequence
        return pad(some, batch_first=True), pad(mask, batch_first=True)


@dataclass(frozen=True)
class Task:
    """What every method reads.

    Args:
        splits: ``train``, ``validation`` and ``test``.
        backbone: makes a frozen text encoder, anew for each member.
        width: of a recording's frames.
        texts: runs the text encoder once per script.
        upper: makes Whisper's uppermost blocks, anew for each member.
    """

    splits: Mapping[str, Split]
    backbone: Callable[[], nn.Module]
    width: int
    texts: Texts
    upper: Callable[[], nn.Module]

    @classmethod
    def of(cls, corpus: Corpus) -> Task:
        """Return the task of a corpus."""
        stores = below_stores(corpus)
        splits = {name: Split.of(corpus, name, stores[name]) for name in ("train", "validation", "test")}
        upper = partial(Above, _whisper(corpus).encoder, UPPER)
        return cls(splits, corpus.backbone, corpus.frame_width, Texts(corpus.backbone()), upper)

    def text_side(self, split: Split, rows: Sequence[int], encoded: bool) -> dict[str, Tensor]:
        """Return the inputs of the encoder ``text``: tokens, or the states of an encoder that has run."""
        ids, mask = split.ids(rows)
        if encoded:
            return {"text.signal": self.texts(ids, mask), "text.token_mask": mask.bool()}
        return {"text.input_ids": ids, "text.attention_mask": mask}

    def audio_below(self, split: Split, rows: Sequence[int], conditions: Sequence[str]) -> dict[str, Tensor]:
        """Return the inputs of the encoder ``audio`` where it is Whisper's uppermost blocks."""
        heard = split.frames(rows, conditions, below=True)
        return {"audio.states": heard.values, "audio.attention_mask": heard.mask.long()}

    def audio_side(self, split: Split, rows: Sequence[int], conditions: Sequence[str]) -> dict[str, Tensor]:
        """Return the inputs of the encoder ``audio``."""
        heard = split.frames(rows, conditions)
        return {"audio.signal": heard.values, "audio.token_mask": heard.mask}


def below_stores(corpus: Corpus) -> dict[str, FrameStore]:
    """Return split → a store of what Whisper's uppermost blocks would be given, two positions averaged as in frames."""
    blocks: Any = _whisper(corpus).encoder.config
    lower = speech_encoder(layer=int(blocks.encoder_layers) - UPPER)
    found: dict[int, FrameStore] = {}
    for store in corpus.stores.values():
        found.setdefault(id(store), store.with_encoder(lower, POOL))
    return {name: found[id(store)] for name, store in corpus.stores.items()}


def _whisper(corpus: Corpus) -> SpeechEncoder:
    speech = corpus.stores["train"].encoder
    if not isinstance(speech, SpeechEncoder):
        raise ConfigError(f"A {type(speech).__name__} has no blocks to cut off; make the stores with speech_encoder().")
    return speech


class Stream:
    """Batches of training recordings in a new order each epoch, each under a condition drawn anew.

    Args:
        split: what is trained on.
        make: (rows, conditions, source of randomness) → batch.
        mix: condition → probability.
        batch_size: recordings of a batch; the last recordings of an epoch that do not fill one are left out.
        seed: of order, conditions and what ``make`` draws.
    """

    def __init__(
        self,
        split: Split,
        make: Callable[[Sequence[int], Sequence[str], random.Random], Batch],
        mix: Mapping[str, float],
        batch_size: int,
        seed: int,
    ) -> None:
        if batch_size > len(split.keys):
            raise DataError(f"A batch of {batch_size} is larger than the split of {len(split.keys)} recordings.")
        self.split, self.make, self.mix, self.batch_size, self.seed = split, make, dict(mix), batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the conditions."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.split.keys) // self.batch_size

    def identity(self) -> dict[str, Any]:
        """What decides the batches, for checkpoints."""
        return {"mix": self.mix, "batch_size": self.batch_size, "seed": self.seed, "keys": list(self.split.keys)}

    def __iter__(self) -> Iterator[Batch]:
        source = random.Random(f"{self.seed}/{self.epoch}")
        order = source.sample(range(len(self.split.keys)), len(self.split.keys))
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            rows = order[start : start + self.batch_size]
            conditions = source.choices(list(self.mix), list(self.mix.values()), k=len(rows))
            yield self.make(rows, conditions, source)


class Lists(NamedTuple):
    """Q lists of g scripts, from each of which one query chooses.

    Args:
        rows: the recordings that ask, Q of them.
        scripts: numbers of groups, int64 (Q, g).
        right: place of the right script, int64 (Q,); −1 where it was taken out.
    """

    rows: list[int]
    scripts: Int[Tensor, "Q g"]
    right: Int[Tensor, " Q"]


def lists(split: Split, rows: Sequence[int], size: int, *, partner: Sequence[bool], seed: int) -> Lists:
    """Draw for each recording ``size`` scripts in a random order: its own with ``size − 1`` others, or ``size`` others.

    A recording's others are the same in both cases, but for the last one, and do not depend on other recordings.

    Args:
        split: where recordings and scripts are from.
        rows: numbers of the recordings.
        size: g.
        partner: whether each recording's own script is in its list.
        seed: of the draws.

    Raises:
        DataError: there are fewer than ``size`` other scripts.
    """
    count = len(split.scripts)
    if not 2 <= size < count:
        raise DataError(f"Lists of {size} scripts cannot be drawn from {count}: take 2 to {count - 1}.")
    chosen, places = [], []
    for row, there in zip(rows, partner, strict=True):
        own = int(split.groups[row])
        source = random.Random(f"list/{seed}/{split.keys[row]}")
        others = source.sample([group for group in range(count) if group != own], size)
        place = source.randrange(size) if there else -1
        chosen.append([*others[:place], own, *others[place : size - 1]] if there else others)
        places.append(place)
    return Lists(list(rows), torch.tensor(chosen), torch.tensor(places))
