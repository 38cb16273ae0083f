"""Wander's product beside a linear head: the form in which the product can only add to what the streams say alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters import Batch
from bayes_adapters.backbones.hidden_states import hidden_width
from bayes_adapters.data.batch import Frames
from bayes_adapters.errors import choice
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.modalities.encoder_inputs import EncoderInputs
from bayes_adapters.models import Wander
from bayes_adapters.models.multiplicative import modality_factors


class Combine(StrEnum):
    """What is made of the factors Z_1 … Z_M, term by term; all have the same parameters."""

    PRODUCT = "product"
    """``Π_m Z_m``: Wander."""
    PAIRS = "pairs"
    """``Σ_{m<l} Z_m ∘ Z_l``, over ``√(M (M − 1) / 2)`` where factors are normalised: products of two, whatever M is."""
    SUM = "sum"
    """``Σ_m Z_m``, over ``√M`` where factors are normalised: no interaction, the control of all that is not product."""


def combined(
    factors: Mapping[str, Float[Tensor, "rows R r d"]], how: Combine, *, normalise: bool
) -> Float[Tensor, "rows r d"]:
    """Combine the factors of all modalities, and add their R terms (over √R where they are normalised).

    >>> two = {"a": torch.full((1, 1, 1, 1), 2.0), "b": torch.full((1, 1, 1, 1), 3.0)}
    >>> [float(combined(two, how, normalise=False)) for how in Combine]
    [6.0, 6.0, 5.0]
    """
    stacked = torch.stack(list(factors.values()))
    count = len(stacked)
    if how is Combine.PRODUCT:
        terms, variance = stacked.prod(0), 1.0
    elif how is Combine.PAIRS:
        terms, variance = (stacked.sum(0).square() - stacked.square().sum(0)) / 2, count * (count - 1) / 2
    else:
        terms, variance = stacked.sum(0), float(count)
    return terms.sum(1) / (math.sqrt(variance * terms.shape[1]) if normalise else 1.0)


class WanderBeside(Wander):
    """``f = W [mean(h¹) ; … ; mean(h^M) ; mean_r(g ∘ Z)]``: no residual within the fusion, every stream beside it.

    At the start g = 0 and f is the linear head on the streams' means, of which this is the only extension: what it is
    worse by, the product does; what it is better by, only the product can have done. A missing stream has a learned
    vector in the place of its mean, as in :class:`bayes_adapters.models.ConcatLoRA`.

    Args:
        backbone: frozen encoders, see :class:`bayes_adapters.models.Wander`.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        combine: what Z is.
        beside: whether the head sees the streams' means; otherwise it sees the fused tokens alone.
        all_tokens: whether the head sees the r fused tokens side by side, and not their mean.
        **options: of :class:`bayes_adapters.models.Wander` after the last layer.
    """

    def __init__(
        self,
        backbone: nn.Module,
        likelihood: Likelihood,
        *,
        combine: Combine | str = Combine.PRODUCT,
        beside: bool = True,
        all_tokens: bool = False,
        **options: Any,
    ) -> None:
        self.combine, self.beside, self.all_tokens = choice(Combine, "combine", combine), beside, all_tokens
        super().__init__(backbone, likelihood, **options)
        if beside:
            widths = {name: hidden_width(encoder) for name, encoder in self.backbone.named_children()}
            self.null = nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name, width in widths.items()})

    def feature_width(self, backbone: nn.Module) -> int:
        fused = super().feature_width(backbone) * (self.fusion_rank if self.all_tokens else 1)
        return fused + (sum(hidden_width(encoder) for encoder in backbone.children()) if self.beside else 0)

    def encode(self, batch: Batch, folds: int) -> Float[Tensor, "rows features"]:
        inputs = EncoderInputs.split(batch, self.modalities, folds)
        frames = {name: self._frames(name, value, inputs) for name, value in self.run_encoders(inputs).items()}
        projected = {n: Frames(self.project[n](f.values), f.mask) if self.project else f for n, f in frames.items()}
        factors = modality_factors(projected, self._factors(0), self.rule)
        fused = self.gate[0] * combined(factors, self.combine, normalise=self.rule.normalise)
        fused = fused.flatten(1) if self.all_tokens else fused.mean(1)
        if not self.beside:
            return fused
        means = [
            inputs.or_null(name, frames[name].mean(), null) if name in frames else null.expand(inputs.rows, -1)
            for name, null in ((name, self.null[name]) for name in self.modalities)
        ]
        return torch.cat([*means, fused], -1)
