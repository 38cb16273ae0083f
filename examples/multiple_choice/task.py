"""The questions of one run, as hidden states below the adapted layers of a decoder."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bayes_adapters.heads import AnswerTokens
from examples.studies.few_labels.task import Below, States
from examples.studies.meld.data import Meld, Utterance
from examples.studies.meld.experiment import Settings, Task

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


def split_decoder(backbone: nn.Module, layers: int) -> tuple[Below, nn.Module]:
    """Cut a Llama with its output layer in two: the states below its last ``layers``, and those as one of their own.

    The second takes ``inputs_embeds`` and returns what the whole returns of the tokens. Padding may be on
    either side: rotary attention sees differences of positions only.
    """
    whole: Any = backbone.eval()
    top: Any = copy.copy(whole)  # the layers below are not copied
    top._modules = dict(whole._modules)
    top.model = copy.copy(whole.model)
    top.model._modules = dict(whole.model._modules)
    top.model.layers = whole.model.layers[-layers:]
    top = copy.deepcopy(top)
    for number, layer in enumerate(top.model.layers):
        layer.self_attn.layer_idx = number
    for module in top.modules():
        if hasattr(module, "config"):
            module.config = top.config
    top.config.num_hidden_layers, top.config.use_cache = layers, False

    def below(inputs: Mapping[str, Tensor]) -> Tensor:
        states: tuple[Tensor, ...] = whole.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
        return states[-1 - layers]

    return below, top


def make(
    data: Meld,
    backbone: Callable[[], tuple[nn.Module, Any]],
    settings: Settings,
    seed: int,
    folder: Path | None = None,
) -> Task:
    """Draw the utterances of one run, and encode their questions, each once.

    Args:
        data: MELD.
        backbone: makes a decoder and its tokenizer.
        settings: how many utterances.
        seed: of the training utterances.
        folder: where hidden states are kept for later runs, a file for each set of questions; None keeps nothing.
    """
    whole, tokenizer = backbone()
    below, top = split_decoder(whole, LAYERS)
    head = AnswerTokens.of(tokenizer, LETTERS)
    size = sum(float(p.detach().double().abs().sum()) for p in whole.parameters()) if folder is not None else 0.0

    def states(utterances: Sequence[Utterance]) -> States:
        asked = [question(utterance) for utterance in utterances]
        facts = json.dumps([f"{size:.6e}", LAYERS, [one.text for one in asked]])
        name = f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.safetensors"
        file = None if folder is None else folder / name
        return States(asked, tokenizer, below, _MOST_TOKENS, file, side="left")  # the last column holds all answers

    return Task(
        train=states(data.sample("train", settings.train_size, seed)),
        dev=states(data.sample("dev", settings.dev_size, 0)),
        test=states(data.dialogues("test", settings.test_size)),
        foreign=None,
        backbone=lambda: copy.deepcopy(top),
        targets=TARGETS,
        head=head.fresh,
    )
