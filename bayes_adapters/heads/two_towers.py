"""``TwoTowers``: one embedding for each of two sides, made of that side's encoders alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters.backbones.hidden_states import hidden_width
from bayes_adapters.data.batch import Batch
from bayes_adapters.data.streams import TOKEN_MASK, returned_mask
from bayes_adapters.devices import float64
from bayes_adapters.heads._tower_checks import require_apart, require_both_sides, require_two_sides, sides_of
from bayes_adapters.heads.head import Head
from bayes_adapters.heads.pooling import Pooling
from bayes_adapters.likelihoods import Likelihood


class TwoTowers(Head):
    """``u = P₁ h¹``, ``v = P₂ h²``: hidden states of two sides, each projected to d numbers by a matrix of its own.

    h¹ and h² are the pooled outputs of the first and of the second side's encoders, side by side where a side has
    several. The outputs are (u, v), K = 2d, for the likelihood :class:`~bayes_adapters.likelihoods.Contrastive`. No
    bias, as in CLIP. u depends on no input of the second side, nor v on the first's, so either may be computed alone:
    the structure has to keep its encoders apart, as :class:`~bayes_adapters.models.ConcatLoRA` does.

    Two rows with equal inputs of a side and unequal targets are refused: each would be a wrong candidate of the other's
    partner, from which nothing can tell it.

    Args:
        first: names of the encoders of the first side; None is the first of two.
        pooling: None or the mean; how an encoder's output is pooled is the structure's to say.

    Source: Radford et al. 2021, arXiv 2103.00020.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch
    >>> from bayes_adapters.likelihoods import Contrastive
    >>> from bayes_adapters.models import ConcatLoRA
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> encoders = nn.ModuleDict({"question": BertModel(tiny), "answer": BertModel(tiny)})
    >>> model = ConcatLoRA(encoders, Contrastive(5), rank=2)  # its head is TwoTowers()
    >>> questions = Batch({"question.input_ids": torch.tensor([[3, 5], [7, 2], [1, 1]])})
    >>> model(questions)[:, :5].shape  # u, without any answer
    torch.Size([3, 5])
    """

    name: ClassVar[str] = "two_towers"

    def __init__(self, first: Sequence[str] | None = None, pooling: Pooling | str | None = None) -> None:
        super().__init__(pooling)
        self.first = None if first is None else list(first)
        self.sides: tuple[list[str], list[str]] = ([], [])
        self._widths: dict[str, int] = {}

    def suit(self, likelihood: Likelihood) -> None:
        require_two_sides(type(self).__name__, likelihood)
        self._pooling = self._pooling or Pooling.MEAN

    def suit_backbone(self, backbone: nn.Module, width: int) -> None:
        several = backbone.named_children() if isinstance(backbone, nn.ModuleDict) else ()
        self._widths = {name: hidden_width(encoder) for name, encoder in several}
        self.sides = sides_of(type(self).__name__, self.first, backbone, width, self._widths)

    @property
    def widths(self) -> tuple[int, int]:
        """Widths of h¹ and h²."""
        first, second = (sum(self._widths[name] for name in names) for names in self.sides)
        return first, second

    def build(self, width: int, likelihood: Likelihood) -> None:
        dim = likelihood.num_outputs // 2
        self.weights = nn.ParameterList(nn.Linear(own, dim, bias=False).weight for own in self.widths)

    def accept(self, batch: Batch) -> None:
        super().accept(batch)
        if batch.targets is not None:
            require_both_sides({" or ".join(names): lacking(batch, names) for names in self.sides}, batch.size)
            for names in self.sides:
                require_apart(names, _alike(batch, names), batch.targets)

    def forward(self, features: Float[Tensor, "rows d"]) -> Float[Tensor, "rows K"]:
        parts = zip(self.split(features), self.weights, strict=True)
        return torch.cat([F.linear(own.to(weight.dtype), weight) for own, weight in parts], -1)

    def split(self, features: Float[Tensor, "rows d"]) -> tuple[Tensor, Tensor]:
        """Return h¹ and h² of features in the order of the encoders."""
        each = dict(zip(self._widths, features.split([*self._widths.values()], -1), strict=True))
        first, second = (torch.cat([each[name] for name in names], -1) for names in self.sides)
        return first, second

    def config(self) -> dict[str, Any]:
        return super().config() | {"first": self.first}


def has_inputs(inputs: Mapping[str, Tensor], encoder: str) -> bool:
    """Return whether an encoder can be called: its masks and marks alone are no inputs."""
    own = {key.partition(".")[2] for key in inputs if key.partition(".")[0] == encoder}
    return bool(own - {TOKEN_MASK, "attention_mask", "present"})


def lacking(batch: Batch, encoders: Sequence[str]) -> Bool[Tensor, " B"]:
    """Return which examples have inputs of none of the encoders."""
    lacking = torch.ones(batch.size, dtype=torch.bool, device=batch.ids.device)
    for name in encoders:
        if not has_inputs(batch.inputs, name):
            continue
        present, mask = batch.inputs.get(f"{name}.present"), returned_mask(batch.inputs, f"{name}.")
        lacks = torch.zeros_like(lacking) if present is None else ~present.bool()
        lacking = lacking & (lacks if mask is None else lacks | ~mask.any(-1))
    return lacking


def _alike(batch: Batch, encoders: Sequence[str]) -> Bool[Tensor, "B B"]:
    """Return which examples have the same inputs of the encoders, by a weighted sum of each row's numbers."""
    alike = torch.ones(batch.size, batch.size, dtype=torch.bool, device=batch.ids.device)
    for key, value in batch.inputs.items():
        if key.partition(".")[0] in encoders:
            rows = float64(value.detach().reshape(batch.size, -1))
            sums = rows @ torch.arange(1, rows.shape[1] + 1, device=rows.device).to(rows).sin()
            alike = alike & torch.isclose(sums[:, None], sums[None], rtol=1e-9, atol=1e-9).to(alike.device)
    return alike
