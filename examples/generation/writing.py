"""Texts that a trained method writes: all draws together, with the epistemic part of each token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bayes_adapters.files._whole_file import replace_file
from bayes_adapters.generation import generate
from examples.generation.corpus import START
from examples.generation.experiment import Trained
from examples.studies.comparison import markdown, short
from examples.studies.decoder import join

BEGINNINGS = {
    "Please enter": True,
    "Press 1 to": True,
    "The number you have": True,
    "Return the first": False,
    "Once upon a time": False,
    "Oh my god, I": False,
}
"""How a text begins → whether a prompt of a telephone system might begin so."""


@dataclass(frozen=True)
class Written:
    """A text by Bayesian model averaging.

    Args:
        method, seed: who wrote it.
        beginning: what was given.
        inside: whether it is one of the corpus.
        tokens: what was written, token by token.
        epistemic, total: of each, nats.
    """

    method: str
    seed: int
    beginning: str
    inside: bool
    tokens: list[str]
    epistemic: list[float]
    total: list[float]


def write(name: str, seed: int, trained: Trained, whole: nn.Module, tokenizer: Any, length: int = 12) -> list[Written]:
    """Go on from :data:`BEGINNINGS`, greedily. The model's backbone becomes the whole language model again."""
    join(trained.model.backbone, whole)
    given = tokenizer([START + text for text in BEGINNINGS], return_tensors="pt", padding=True, padding_side="left")
    prompts = {key: given[key] for key in ("input_ids", "attention_mask")}
    options: dict[str, Any] = {"max_new_tokens": length, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    said = generate(trained.model, trained.guide, prompts, num_samples=trained.samples, seed=seed, **options)
    found = []
    for row, (beginning, inside) in enumerate(BEGINNINGS.items()):
        count = int(said.lengths[row])
        tokens = [tokenizer.decode([number]) for number in said.tokens[row, :count].tolist()]
        parts = ([round(v, 4) for v in part[row, :count].tolist()] for part in (said.epistemic, said.total))
        found.append(Written(name, seed, beginning, inside, tokens, *parts))
    return found


def save_written(path: Path, texts: Sequence[Written]) -> None:
    """Write texts as JSON."""
    replace_file(path, (json.dumps([asdict(text) for text in texts], indent=1, ensure_ascii=False) + "\n").encode())


def load_written(path: Path) -> list[Written]:
    """Read what :func:`save_written` wrote."""
    return [Written(**text) for text in json.loads(path.read_text(encoding="utf-8"))]


def table(texts: Sequence[Written]) -> list[str]:
    """Return a Markdown table: each token with its epistemic part, in thousandths of a nat, as an index."""
    rows = []
    for text in texts:
        words = [
            f"{_shown(token)}<sub>{round(1000 * value)}</sub>"
            for token, value in zip(text.tokens, text.epistemic, strict=True)
        ]
        mean = sum(text.epistemic) / max(1, len(text.epistemic))
        inside = "yes" if text.inside else "no"
        rows.append([text.method, inside, f"**{text.beginning}**{''.join(words)}", short(mean, 3)])
    return markdown(["method", "as in the corpus", "text, epistemic of each token in millinats", "mean, nats"], rows)


def _shown(token: str) -> str:
    """A token as text in a cell of a table."""
    for sign, other in (("<", "&lt;"), ("|", "&#124;"), ("\n", "↵"), ("*", "\\*"), ("_", "\\_"), ("`", "\\`")):
        token = token.replace(sign, other)
    return token if token.strip() else "␣"
