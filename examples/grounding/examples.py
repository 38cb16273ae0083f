"""Expressions as batches of a model: of pictures and words, or of the tokens that the frozen encoders made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bayes_adapters import Batch, Frames
from bayes_adapters.backbones import vision_frames
from bayes_adapters.training import batches
from examples.grounding.data import Grounding, as_input
from examples.grounding.encoders import inputs, targets, text_frames
from examples.studies.body_signals.adapters import Encoded

BOX, MASK = "box", "mask"


@dataclass(frozen=True, eq=False)
class Tokens:
    """What the frozen encoders make of a split.

    Args:
        vision: of each scene, shape (M, 1 + P, d), float32: a class token and P patches.
        text: of each expression, values (N, T, d').
    """

    vision: Float[Tensor, "M T d"]
    text: Frames

    @classmethod
    def of(cls, data: Grounding, encoders: nn.ModuleDict, tokenizer: Any) -> Tokens:
        """Run both encoders, each scene and each different expression once."""
        vision = vision_frames(encoders["vision"], as_input(data.scenes)).values
        return cls(vision, text_frames(data.texts, encoders["text"], tokenizer))

    def stand_ins(self) -> nn.ModuleDict:
        """Return encoders that have run: they hand these tokens on."""
        return nn.ModuleDict({"vision": Encoded(self.vision.shape[-1]), "text": Encoded(self.text.values.shape[-1])})


@dataclass(frozen=True, eq=False)
class Examples:
    """The expressions of a split, as a data set that is cut into batches.

    Args:
        data: the split.
        asked: which targets a batch has: :data:`BOX`, :data:`MASK` or both. A task without targets has no loss.
        tokenizer: of the text encoder; not needed where the tokens are there.
        tokens: what the frozen encoders made of the split; without them pictures and words are the inputs.
    """

    data: Grounding
    asked: Sequence[str] = (BOX, MASK)
    tokenizer: Any = None
    tokens: Tokens | None = None

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, rows: Int[Tensor, " B"]) -> Batch:
        """Return the expressions at ``rows``, numbered as in the split."""
        wanted = {name: value for name, value in targets(self.data, rows).items() if name in self.asked}
        if self.tokens is None:
            given = inputs(self.data, rows, self.tokenizer)
        else:
            words = self.tokens.text[rows]
            longest = int(words.mask.sum(1).max())
            given = {
                "vision.signal": self.tokens.vision[self.data.scene[rows]],
                "text.signal": words.values[:, :longest],
                "text.token_mask": words.mask[:, :longest],
            }
        return Batch(given, wanted, index=rows)

    def training(self, batch_size: int, seed: int) -> Iterable[Batch]:
        """Return batches in another order every epoch."""
        return batches(range(len(self)), batch_size, partial(_collated, self), seed=seed)

    def in_order(self, batch_size: int) -> list[Batch]:
        """Return all batches; they are made now."""
        return [self.batch(rows) for rows in torch.arange(len(self)).split(batch_size)]


def _collated(examples: Examples, rows: list[int]) -> Batch:
    return examples.batch(torch.tensor(rows))
