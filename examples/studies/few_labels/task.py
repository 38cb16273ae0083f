"""The utterances of one run as hidden states below the adapted layers, which are the same at every step and draw."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bayes_adapters import Batch
from examples.studies.length_batches import LengthBatches
from examples.studies.meld.data import Meld, Utterance, Utterances
from examples.studies.meld.task import Settings, Task

LAYERS = 2
"""How many layers have adapters, from the top."""
TYPOS = {"typos@10": 0.1, "typos@30": 0.3}
"""Condition → share of the letters that another letter replaces."""
Below = Callable[[Mapping[str, Tensor]], Tensor]
"""Token numbers and mask → hidden states (B, T, d)."""
_SHIFTED = 300
"""Utterances of each condition other than the clean one."""


class States(Utterances):
    """Utterances as what the layers below the adapted ones make of them.

    Args:
        utterances: in order.
        tokenizer: of the backbone.
        below: those layers, see :func:`split`; or the states of each utterance, (T, d), that they have made already.
        side: where batches are padded.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        tokenizer: Any,
        below: Below | Sequence[Tensor],
        side: Literal["left", "right"] = "right",
    ) -> None:
        super().__init__(utterances, tokenizer)
        self._side = side
        self._states: dict[int, Tensor] = {}
        if not callable(below):
            self._states = dict(enumerate(below))
            return
        plain = Utterances(utterances, tokenizer)
        with torch.no_grad():
            for batch in LengthBatches(plain, 64, length=self.length):
                for row, state, mask in zip(
                    batch.ids.tolist(), below(batch.inputs), batch.inputs["attention_mask"], strict=True
                ):
                    self._states[row] = state[: int(mask.sum())].clone()

    def subset(self, rows: Sequence[int]) -> States:
        """Return these utterances, with the states they have."""
        some = copy.copy(self)
        some.utterances = [self.utterances[row] for row in rows]
        some._tokens, some._states = {}, {number: self._states[row] for number, row in enumerate(rows)}
        return some

    def batch(self, rows: Sequence[int]) -> Batch:
        """Pad hidden states to a batch; there are no targets where an utterance has no sentiment."""
        own = [self._states[i] for i in rows]
        states = nn.utils.rnn.pad_sequence(own, batch_first=True, padding_side=self._side)
        mask = nn.utils.rnn.pad_sequence(
            [torch.ones(len(one), dtype=torch.int64) for one in own], batch_first=True, padding_side=self._side
        )
        labels = [self.utterances[i].label for i in rows]
        targets = None if None in labels else torch.tensor(labels)
        return Batch({"inputs_embeds": states, "attention_mask": mask}, targets, index=torch.tensor(rows))


class _Given(nn.Module):
    """Embeddings that are given: BERT's own would add positions and normalise."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> Tensor:
        return inputs_embeds


def split(backbone: nn.Module, layers: int) -> tuple[Below, nn.Module]:
    """Cut a BERT in two: what makes the hidden states below its last ``layers``, and those as a backbone of their own.

    The second takes ``inputs_embeds`` and returns what the whole returns of the tokens.
    """
    whole = backbone.eval()
    top: Any = copy.deepcopy(backbone)
    top.embeddings = _Given()
    top.encoder.layer = top.encoder.layer[-layers:]
    top.config.num_hidden_layers = layers

    def below(inputs: Mapping[str, Tensor]) -> Tensor:
        states: tuple[Tensor, ...] = whole(**inputs, output_hidden_states=True).hidden_states
        return states[-1 - layers]

    return below, top


@dataclass(frozen=True, kw_only=True)
class FewLabels(Task):
    """The utterances of one run.

    Args:
        shifted: condition → utterances of it: the prompts' scripts, and test utterances with other letters.
    """

    shifted: dict[str, Utterances]

    @classmethod
    def of(
        cls,
        data: Meld,
        foreign: Sequence[Utterance],
        tokenizer: Any,
        backbone: Callable[[], nn.Module],
        settings: Settings,
        seed: int,
    ) -> FewLabels:
        """Draw the subsets of one run, and encode them once."""
        below, top = split(backbone(), LAYERS)
        plain = Task.make(data, foreign, tokenizer, backbone, settings, seed)
        prompts = random.Random("prompts").sample(list(foreign), min(_SHIFTED, len(foreign)))
        some = plain.test.utterances[:_SHIFTED]
        parts = {"ood-prompts": prompts} | {name: misspelt(some, share) for name, share in TYPOS.items()}

        def states(utterances: Sequence[Utterance]) -> States:
            return States(utterances, tokenizer, below)

        shifted: dict[str, Utterances] = {name: states(part) for name, part in parts.items()}
        return cls(
            train=states(plain.train.utterances),
            dev=states(plain.dev.utterances),
            test=states(plain.test.utterances),
            foreign=shifted["ood-prompts"],
            backbone=lambda: copy.deepcopy(top),
            shifted=shifted,
        )

    def part(self, condition: str) -> Utterances:
        """Return the utterances of a condition."""
        return self.shifted.get(condition, self.test)

    def batches(
        self, part: str, settings: Settings, *, shuffle: bool = False, seed: int = 0
    ) -> LengthBatches[Utterances]:
        """Cut ``train``, ``dev``, ``test``, ``foreign`` or a shifted condition into batches."""
        if part not in self.shifted:
            return super().batches(part, settings, shuffle=shuffle, seed=seed)
        data = self.shifted[part]
        return LengthBatches(data, settings.batch_size, length=data.length)


def misspelt(utterances: Sequence[Utterance], share: float) -> list[Utterance]:
    """Replace this share of the letters by others, the same at every call."""

    def noisy(utterance: Utterance) -> Utterance:
        source = random.Random(f"{utterance.key}/{share}")
        letters = [
            source.choice("abcdefghijklmnopqrstuvwxyz") if c.isalpha() and source.random() < share else c
            for c in utterance.text
        ]
        return replace(utterance, text="".join(letters))

    return [noisy(utterance) for utterance in utterances]
