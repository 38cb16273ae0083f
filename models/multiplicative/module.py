"""The module that owns the factors of :mod:`bayes_adapters.models.multiplicative.fusion` as plain parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import torch
from torch import nn

from bayes_adapters.data.batch import Frames
from bayes_adapters.errors import choice
from bayes_adapters.models.multiplicative._checks import check_fusion_options
from bayes_adapters.models.multiplicative.factors import (
    CP,
    FusionFactors,
    FusionRule,
    ModalityFactors,
    Placement,
    Tokens,
)
from bayes_adapters.models.multiplicative.fusion import cp_fusion


class Init(StrEnum):
    """Where training starts. The output is the residual, bit for bit, in all three."""

    GATED = "gated"
    """F ~ N(0, 1/(r R_d)), G ~ N(0, 1/(L R_t)), gate 0: the gate gets gradient at once, all else from step 2."""
    ONE_ZERO = "one_zero"
    """As gated without a gate; the first modality's G is 0 instead: it gets gradient at once, all else from step 2."""
    RELEASED = "released"
    """F ~ N(0, 1) and every G = 0, as released. **Nothing ever learns**: each gradient has a zero factor."""


class CPFusion(nn.Module):
    """Wander's fusion with deterministic factors; formulas in :mod:`bayes_adapters.models.multiplicative.fusion`.

    W and b start as :class:`torch.nn.Linear` starts them, ``null`` at ones (the product is then the other modalities').

    Args:
        lengths: name → L_m of M ≥ 2 modalities, in the order of concatenation. With interpolated tokens the number of
            knots (sequences may have any length), with fixed tokens the number of tokens T_m.
        width: d, of every sequence.
        rank: r: the bottleneck and, pooled, the number of output tokens.
        feature_terms: R_d.
        token_terms: R_t; equal to R_d for ``cp="sum_of_products"``.
        placement: ``"pooled"`` or ``"residual"``.
        cp: ``"sum_of_products"`` or ``"product_of_sums"``.
        tokens: ``"interpolated"`` or ``"fixed"``.
        normalise: see :class:`FusionRule`.
        null: learn what stands in for a missing modality; without it that is an error.
        init: see :class:`Init`. Those without a gate start from Z = 0, which neither ``normalise`` (it would divide by
            it) nor ``null`` (it would replace it) leaves alone: they need both off.

    Raises:
        ConfigError: fewer than two modalities, a size below 1, an unknown name, options that exclude each other.

    >>> fusion = CPFusion({"text": 4, "audio": 8}, width=6, rank=2)
    >>> text = Frames(torch.randn(3, 5, 6), torch.ones(3, 5, dtype=torch.bool))
    >>> audio = Frames(torch.randn(3, 40, 6), torch.ones(3, 40, dtype=torch.bool))
    >>> fusion({"text": text, "audio": audio}).values.shape
    torch.Size([3, 2, 6])
    """

    def __init__(
        self,
        lengths: Mapping[str, int],
        width: int,
        *,
        rank: int = 16,
        feature_terms: int = 4,
        token_terms: int = 4,
        placement: Placement | str = Placement.POOLED,
        cp: CP | str = CP.SUM_OF_PRODUCTS,
        tokens: Tokens | str = Tokens.INTERPOLATED,
        normalise: bool = True,
        null: bool = True,
        init: Init | str = Init.GATED,
    ) -> None:
        super().__init__()
        self.rule = FusionRule(placement, cp, tokens, normalise)
        self.init = choice(Init, "init", init)
        self.lengths, self.width, self.rank = dict(lengths), width, rank
        self.feature_terms, self.token_terms = feature_terms, token_terms
        check_fusion_options(self, null)
        count = len(self.lengths)
        self.down = nn.ParameterList([torch.empty(rank, width) for _ in self.lengths])
        self.bias = nn.ParameterList([torch.empty(rank) for _ in self.lengths])
        self.feature = nn.ParameterList([torch.empty(feature_terms, rank, width) for _ in self.lengths])
        self.token = nn.ParameterList([torch.empty(token_terms, size, rank) for size in self.lengths.values()])
        self.null = nn.ParameterList([torch.empty(width) for _ in self.lengths] if null else [])
        rows = count if self.rule.placement is Placement.RESIDUAL else 1
        self.gate = nn.Parameter(torch.empty(rows, width)) if self.init is Init.GATED else None
        self.reset_parameters()

    @classmethod
    def released(
        cls,
        lengths: Mapping[str, int],
        width: int,
        *,
        rank: int = 16,
        feature_terms: int = 8,
        token_terms: int = 12,
        placement: Placement | str = Placement.POOLED,
        init: Init | str = Init.ONE_ZERO,
    ) -> CPFusion:
        """Build the released structure: product of sums, fixed tokens, no normalisation, no null value, no gate.

        Its parameters number ``M (d r + r) + M R_d r d + R_t r Σ_m T_m``. The released code's own start is
        ``init="released"``, from which nothing learns, so it is not the default. Arguments are those of the class.
        """
        return cls(
            lengths,
            width,
            rank=rank,
            feature_terms=feature_terms,
            token_terms=token_terms,
            placement=placement,
            cp=CP.PRODUCT_OF_SUMS,
            tokens=Tokens.FIXED,
            normalise=False,
            null=False,
            init=init,
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the starting values from torch's generator, as ``init`` says."""
        released = self.init is Init.RELEASED
        for i, length in enumerate(self.lengths.values()):
            for linear in (self.down[i], self.bias[i]):
                linear.uniform_(-1 / math.sqrt(self.width), 1 / math.sqrt(self.width))
            self.feature[i].normal_(std=1.0 if released else 1 / math.sqrt(self.rank * self.feature_terms))
            self.token[i].normal_(std=1 / math.sqrt(length * self.token_terms))
            if released or (self.init is Init.ONE_ZERO and i == 0):
                self.token[i].zero_()
        for null in self.null:
            null.fill_(1.0)
        if self.gate is not None:
            self.gate.zero_()

    def factors(self) -> FusionFactors:
        """Return the parameters as :func:`~bayes_adapters.models.multiplicative.cp_fusion` takes them, not copied."""
        modalities = {
            name: ModalityFactors(
                self.down[i],
                self.bias[i],
                self.feature[i],
                self.token[i],
                self.null[i] if len(self.null) else None,
            )
            for i, name in enumerate(self.lengths)
        }
        return FusionFactors(modalities, self.gate)

    def forward(self, sequences: Mapping[str, Frames]) -> Frames | dict[str, Frames]:
        """Return r tokens (pooled) or every sequence updated (residual); see :func:`cp_fusion`."""
        return cp_fusion(sequences, self.factors(), self.rule)

    def fold(self) -> CPFusion:
        """Return a module of the same function with R_d = R_t = 1, ``(R_d − 1) M r d + (R_t − 1) r Σ L_m`` smaller.

        Raises:
            ConfigError: ``cp="sum_of_products"``, see :meth:`FusionFactors.fold`.
        """
        folded = self.factors().fold(self.rule)
        small = CPFusion(**(self.config() | {"feature_terms": 1, "token_terms": 1}))
        small.to(device=self.feature[0].device, dtype=self.feature[0].dtype).load_state_dict(
            self.state_dict()
            | {f"feature.{i}": m.feature for i, m in enumerate(folded.modalities.values())}
            | {f"token.{i}": m.token for i, m in enumerate(folded.modalities.values())}
        )
        return small.train(self.training)

    def config(self) -> dict[str, Any]:
        """Constructor arguments, as JSON."""
        return {
            "lengths": self.lengths,
            "width": self.width,
            "rank": self.rank,
            "feature_terms": self.feature_terms,
            "token_terms": self.token_terms,
            "placement": str(self.rule.placement),
            "cp": str(self.rule.cp),
            "tokens": str(self.rule.tokens),
            "normalise": self.rule.normalise,
            "null": len(self.null) > 0,
            "init": self.init.value,
        }

    def extra_repr(self) -> str:
        """Show sizes and rule."""
        return ", ".join(f"{key}={value}" for key, value in self.config().items())
