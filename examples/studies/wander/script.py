"""Does this recording say this script? Frozen MiniLM and frozen Whisper's frames as two streams.

Wrong scripts are right ones of other recordings: neither stream alone says anything, so a linear head on both is at
chance, and the task needs an interaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bayes_adapters import Batch
from bayes_adapters.backbones.hidden_states import hidden_width
from examples.studies.body_signals.adapters import Encoded
from examples.studies.verify_prompts import experiment
from examples.studies.verify_prompts.corpus import Corpus, PairBatches
from examples.studies.wander.problems import Part, Problem, Settings

CONDITIONS = ("clean", "hard", "white@-5", "babble@-5")
LENGTHS = {"text": 12, "audio": 43}
"""Rows of the token factors: tokens of a script, and frames of a recording, in the mean."""
SETTINGS = Settings(epochs=20, batch_size=16, rates=(3e-4, 1e-3, 3e-3), withheld=0.0)
"""Epochs, batches and the middle rate of the study; its training mix withholds and corrupts."""


class Texts(nn.Module):
    """The last hidden states of a frozen text encoder; each text runs once.

    Args:
        encoder: it.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder.eval()
        self.known: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def forward(self, ids: Int[Tensor, "B T"], mask: Int[Tensor, "B T"]) -> Float[Tensor, "B T d"]:
        keys = [tuple(row[real].tolist()) for row, real in zip(ids, mask.bool(), strict=True)]
        new = [row for row, key in enumerate(keys) if key not in self.known]
        if new:
            states = self.encoder(input_ids=ids[new], attention_mask=mask[new]).last_hidden_state
            self.known |= {keys[r]: s[: len(keys[r])].clone() for r, s in zip(new, states, strict=True)}
        return nn.utils.rnn.pad_sequence([self.known[key] for key in keys], batch_first=True)


class TwoStreams:
    """Batches of pairs as inputs of two encoders, ``text`` and ``audio``, of which the audio's has run.

    Args:
        pairs: batches of scripts with frames as context.
        texts: what runs the text encoder; None leaves that to the model.
    """

    def __init__(self, pairs: PairBatches, texts: Texts | None) -> None:
        self.pairs, self.texts = pairs, texts

    def set_epoch(self, epoch: int) -> None:
        """Choose the order, the wrong scripts and the corruptions."""
        self.pairs.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.pairs)

    def identity(self) -> dict[str, Any]:
        """What decides the batches, for checkpoints."""
        return self.pairs.identity() | {"encoded": self.texts is not None}

    def __iter__(self) -> Iterator[Batch]:
        return (self.convert(batch) for batch in self.pairs)

    def convert(self, batch: Batch) -> Batch:
        """Return one batch as inputs of two encoders."""
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        if self.texts is None:
            inputs = {"text.input_ids": ids, "text.attention_mask": mask}
        else:
            inputs = {"text.signal": self.texts(ids, mask), "text.token_mask": mask.bool()}
        audio = batch.context["audio"]
        inputs |= {"audio.signal": audio.values, "audio.token_mask": audio.mask}
        return replace(batch, inputs=inputs, context={})


@dataclass(frozen=True)
class Script(Problem):
    """The pairs of :mod:`examples.studies.verify_prompts`.

    Args:
        corpus: its data.
        settings: see :class:`~examples.studies.wander.problems.Problem`.
        mix: condition → probability for training recordings, that of the study.
    """

    corpus: Corpus = field(kw_only=True)
    mix: Mapping[str, float] = field(default_factory=lambda: experiment.CORRUPTED)
    plain = "clean"

    @cached_property
    def _texts(self) -> Texts:
        return Texts(self.corpus.backbone())

    @property
    def lengths(self) -> Mapping[str, int]:
        return LENGTHS

    @property
    def count(self) -> int:
        return 2 * len(self.corpus.splits.train)

    @property
    def conditions(self) -> Sequence[str]:
        return CONDITIONS

    def encoders(self, encoded: bool) -> nn.ModuleDict:
        text = self.corpus.backbone()
        own = Encoded(hidden_width(text)) if encoded else text
        return nn.ModuleDict({"text": own, "audio": Encoded(self.corpus.frame_width)})

    def _streams(self, pairs: PairBatches, encoded: bool) -> TwoStreams:
        return TwoStreams(pairs, self._texts if encoded else None)

    def training(self, encoded: bool, seed: int) -> TwoStreams:
        data = self.corpus.training(self.mix, seed=seed)
        return self._streams(PairBatches(data, self.settings.batch_size, shuffle=True, seed=seed), encoded)

    def validation(self, encoded: bool) -> list[Batch]:
        own = experiment.Settings(mix=self.mix, batch_size=self.settings.batch_size)
        batches: Any = experiment.validation_batches(self.corpus, own)
        convert = self._streams(batches, encoded).convert
        return [convert(batch) for batch in batches]

    def test(self, encoded: bool, condition: str) -> Part:
        data = self.corpus.evaluation("test", condition)
        batches = list(self._streams(PairBatches(data, 64, shuffle=False), encoded))
        order = torch.cat([batch.ids for batch in batches]).tolist()
        names = [(f"{p.recording_key}/{p.label}", p.recording_key) for p in (data.pairs[i] for i in order)]
        return Part(batches, names)
