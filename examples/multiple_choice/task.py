"""The questions of one run, as hidden states below the adapted layers of a decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayes_adapters.heads import AnswerTokens
from examples.studies.decoder import cut
from examples.studies.few_labels.task import States
from examples.studies.kept_states import kept
from examples.studies.meld.data import Meld, Utterance, Utterances
from examples.studies.meld.task import Settings, Task

LAYERS = 2
"""How many layers have adapters, from the top."""
TARGETS = ("q_proj", "v_proj")
LETTERS = ("A", "B", "C")
"""The answers: negative, neutral, positive."""
PROMPT = '"{}"\nA negative B neutral C positive\nAnswer:'
"""The answer is `` A``, one token with its space."""
_MOST_TOKENS = 256
"""More than any question has: were one cut, its ``Answer:`` would go."""


def question(utterance: Utterance) -> Utterance:
    """Return the utterance with its prompt as the text.

    >>> question(Utterance("test/0/1", "test/0", "Oh no!", 0)).text.splitlines()
    ['"Oh no!"', 'A negative B neutral C positive', 'Answer:']
    """
    return replace(utterance, text=PROMPT.format(utterance.text))


def make(
    data: Meld,
    backbone: Callable[[], tuple[nn.Module, Any]],
    settings: Settings,
    seed: int,
    folder: Path | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Task:
    """Draw the utterances of one run, and encode their questions, each once.

    Args:
        data: MELD.
        backbone: makes a decoder and its tokenizer.
        settings: how many utterances.
        seed: of the training utterances.
        folder: where hidden states are kept for later runs.
        dtype: of the adapted layers' frozen weights. Hidden states are float32, as adapters are.
    """
    whole, tokenizer = backbone()
    below, _ = cut(whole, LAYERS)
    head = AnswerTokens.of(tokenizer, LETTERS)

    def states(utterances: Sequence[Utterance]) -> States:
        asked = [question(utterance) for utterance in utterances]
        tokens = Utterances(asked, tokenizer, _MOST_TOKENS)
        known = kept([tokens[row] for row in range(len(asked))], below, folder)
        return States(asked, tokenizer, known, side="left")  # the last column holds all answers

    parts = {
        "train": states(data.sample("train", settings.train_size, seed)),
        "dev": states(data.sample("dev", settings.dev_size, 0)),
        "test": states(data.dialogues("test", settings.test_size)),
    }
    whole.to(dtype)
    return Task(**parts, foreign=None, backbone=lambda: cut(whole, LAYERS)[1], targets=TARGETS, head=head.fresh)
