"""Scripts read by a decoder: their hidden states below its adapted layers, and pairs that hold these for tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bayes_adapters.data.batch import Batch
from examples.studies.decoder import cut
from examples.studies.kept_states import kept
from examples.studies.verify_prompts.corpus import FOREIGN, Corpus
from examples.studies.verify_prompts.dataset import Item, PairDataset

START = "<|endoftext|>"
"""Stands before a script: the first token of a text has an odd state of its own, which is not to be pooled."""


class Scripts:
    """A tokenizer of known scripts that has the hidden states of each.

    Args:
        tokenizer: of the decoder.
        states: tokens of a script → its hidden states, (T, d).
    """

    def __init__(self, tokenizer: Any, states: Mapping[tuple[int, ...], Tensor]) -> None:
        self._tokenizer, self.states = tokenizer, states

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        """Return the tokens of a script, behind :data:`START`."""
        return {"input_ids": tokens(self._tokenizer, text, options["max_length"])}


def tokens(tokenizer: Any, text: str, longest: int = 64) -> list[int]:
    """Return the tokens of a script, behind :data:`START`, at most ``longest``."""
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [tokenizer.convert_tokens_to_ids(START), *own][:longest]


class DecodedPairs(PairDataset):
    """Pairs whose scripts are hidden states."""

    def collate(self, items: Sequence[Item]) -> Batch:
        """Pad items to a batch with ``inputs_embeds`` (B, T, d) in the place of ``input_ids``."""
        batch = super().collate(items)
        own = [self._tokenizer.states[item.input_ids] for item in items]
        states = nn.utils.rnn.pad_sequence(own, batch_first=True)
        return replace(batch, inputs={"inputs_embeds": states, "attention_mask": batch.inputs["attention_mask"]})


@dataclass(frozen=True)
class DecodedCorpus(Corpus):
    """The same pairs with a decoder for a text encoder; its last token's state is pooled.

    Args:
        top: makes its upper layers.
    """

    top: Callable[[], nn.Module] = field(kw_only=True)

    @classmethod
    def of(cls, corpus: Corpus, model: nn.Module, tokenizer: Any, layers: int, root: Path) -> DecodedCorpus:
        """Compute the hidden states of all scripts below the last ``layers``, once; they are kept in ``root``.

        Args:
            corpus: prompts, splits and frames.
            model: a causal language model of Llama's kind.
            tokenizer: of it.
            layers: how many have adapters, from the top.
            root: a folder.
        """
        below, _ = cut(model, layers)
        languages = [language for language in FOREIGN if any(p.language == language for p in corpus.prompts)]
        pairs = [pair for split in ("train", "validation", "test") for pair in corpus.pairs(split, "random")]
        pairs += [pair for split in ("validation", "test") for pair in corpus.pairs(split, "hard")]
        pairs += [pair for language in languages for pair in corpus.pairs("test", "foreign", language)]
        ids = sorted({tuple(tokens(tokenizer, pair.script_text)) for pair in pairs})
        states = dict(zip(ids, kept(ids, below, root), strict=True))

        def top() -> nn.Module:
            upper: nn.Module = cut(model, layers)[1].model  # type: ignore[assignment]
            return upper

        parts = {name: getattr(corpus, name) for name in ("prompts", "splits", "stores")}
        return cls(**parts, tokenizer=Scripts(tokenizer, states), top=top)

    def backbone(self) -> nn.Module:
        """Return fresh copies of the upper layers."""
        return self.top()

    @property
    def options(self) -> Mapping[str, Any]:
        """Which layers are adapted, and what is pooled."""
        return {"targets": ["q_proj", "v_proj"], "pooling": "last"}

    def _dataset(self) -> type[PairDataset]:
        return DecodedPairs
