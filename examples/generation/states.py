"""Texts as hidden states below the adapted layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bayes_adapters import Batch
from bayes_adapters.data.texts import IGNORED
from examples.generation.corpus import Text


class States:
    """Texts and their hidden states.

    Args:
        texts: in order.
        states: of each, shape (T, d); see :func:`examples.studies.kept_states.kept`.
    """

    def __init__(self, texts: Sequence[Text], states: Sequence[Tensor]) -> None:
        self.texts, self._states = list(texts), list(states)

    def __len__(self) -> int:
        return len(self.texts)

    def length(self, index: int) -> int:
        """Tokens of a text: what it is sorted by."""
        return len(self.texts[index].ids)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Pad texts on the right to a batch for ``NextToken``; the token that a text begins with is not predicted."""
        texts = [self.texts[row] for row in rows]
        states = nn.utils.rnn.pad_sequence([self._states[row] for row in rows], batch_first=True)
        labels = [torch.tensor([IGNORED] * text.given + list(text.ids[text.given :])) for text in texts]
        inputs = {"inputs_embeds": states, "attention_mask": _filled([torch.ones(len(t.ids)).long() for t in texts], 0)}
        return Batch(inputs, _filled(labels, IGNORED), index=torch.tensor(rows))


def _filled(rows: list[Tensor], value: int) -> Tensor:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
