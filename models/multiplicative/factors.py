"""What multiplicative fusion is made of: each modality's factors, the gate, and the rule by which they act."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.errors import choice
from bayes_adapters.models.multiplicative._factor_checks import check_factors, check_modality, require_foldable


class Placement(StrEnum):
    """What comes out; see the module's docstring."""

    POOLED = "pooled"
    """r tokens, after the last layer: the released placement."""
    RESIDUAL = "residual"
    """Every modality at its own length, so that it may stand after every layer."""


class CP(StrEnum):
    """Where the sum over terms stands; see the module's docstring."""

    PRODUCT_OF_SUMS = "product_of_sums"
    """Inside the product, as released: further terms add parameters but no functions, and fold into one."""
    SUM_OF_PRODUCTS = "sum_of_products"
    """Outside: R products. No fold: the cross terms of Π_m Σ_i are not in it, so one term cannot stand for R."""


class Tokens(StrEnum):
    """Which row of its token factor a token reads; see the module's docstring."""

    FIXED = "fixed"
    """Row t: one row per token, as released."""
    INTERPOLATED = "interpolated"
    """A place between two rows, in proportion to the number of real tokens."""


@dataclass(frozen=True)
class FusionRule:
    """How factors act on sequences; strings are accepted for the enumerations.

    Args:
        placement: what comes out.
        cp: where the sum over terms stands.
        tokens: which row of its token factor a token reads.
        normalise: divide each Z_m^(i) (r, d) of each row by its root mean square, and a pooled sum of R products by
            √R: the root mean square of what is added then starts near 1 at any M (single entries are heavy-tailed:
            up to about 200 at M = 7). The released code does not.

    Raises:
        ConfigError: an unknown name.

    >>> FusionRule("residual").placement
    <Placement.RESIDUAL: 'residual'>
    """

    placement: Placement | str = Placement.POOLED
    cp: CP | str = CP.SUM_OF_PRODUCTS
    tokens: Tokens | str = Tokens.INTERPOLATED
    normalise: bool = True

    def __post_init__(self) -> None:
        for name, kind in (("placement", Placement), ("cp", CP), ("tokens", Tokens)):
            object.__setattr__(self, name, choice(kind, name, getattr(self, name)))


RELEASED = FusionRule(Placement.POOLED, CP.PRODUCT_OF_SUMS, Tokens.FIXED, normalise=False)
"""The rule of the released code."""


@dataclass(frozen=True)
class ModalityFactors:
    """One modality's factors; any may be a draw of a sample site, with the plates' sizes ``*S`` in front.

    Args:
        down: W, shape (*S, r, d): the projection to the rank, as :class:`torch.nn.Linear` stores it.
        bias: b, shape (*S, r).
        feature: F, shape (*S, R_d, r, d): R_d terms of the map back to the width.
        token: G, shape (*S, R_t, L, r): R_t terms of the map from tokens to r output tokens.
        null: shape (*S, d): stands for Z where the modality is missing; None makes a missing modality an error.

    Raises:
        ConfigError: shapes that do not belong together, or a rank below 1.
    """

    down: Float[Tensor, "... r d"]
    bias: Float[Tensor, "... r"]
    feature: Float[Tensor, "... Rd r d"]
    token: Float[Tensor, "... Rt L r"]
    null: Float[Tensor, "... d"] | None = None

    def __post_init__(self) -> None:
        check_modality(self)

    @property
    def rank(self) -> int:
        """The rank r."""
        return self.down.shape[-2]

    @property
    def width(self) -> int:
        """The width d."""
        return self.down.shape[-1]

    def parts(self) -> list[tuple[str, int, Tensor]]:
        """(name, number of dimensions without ``*S``, factor) of every factor that there is."""
        parts = [("down", 2, self.down), ("bias", 1, self.bias), ("feature", 3, self.feature), ("token", 3, self.token)]
        return parts if self.null is None else [*parts, ("null", 1, self.null)]

    def folded(self) -> ModalityFactors:
        """The same factors with the terms of F and of G summed to one each."""
        return replace(self, feature=self.feature.sum(-3, keepdim=True), token=self.token.sum(-3, keepdim=True))


@dataclass(frozen=True)
class FusionFactors:
    """Everything that is learned or drawn in one fusion.

    Args:
        modalities: name → factors of M ≥ 2 modalities, of one rank and one width, in the order of concatenation.
        gate: g, shape (*S, 1, d) for pooled, (*S, M, d) for residual fusion, multiplied with what is added to the
            residual; None is g = 1.

    Raises:
        ConfigError: fewer than two modalities, unequal ranks or widths, a gate or draws that do not fit.
    """

    modalities: Mapping[str, ModalityFactors]
    gate: Float[Tensor, "... K d"] | None = None

    def __post_init__(self) -> None:
        check_factors(self)

    @property
    def rank(self) -> int:
        """The rank r."""
        return next(iter(self.modalities.values())).rank

    @property
    def width(self) -> int:
        """The width d."""
        return next(iter(self.modalities.values())).width

    @property
    def draws(self) -> tuple[int, ...]:
        """``*S``: sizes of the sample plates; empty when nothing is drawn."""
        return tuple(torch.broadcast_shapes(*(f.shape[: f.dim() - dim] for _, _, dim, f in self.parts())))

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype of the factors."""
        dtype = self.parts()[0][3].dtype
        for *_, factor in self.parts():
            dtype = torch.promote_types(dtype, factor.dtype)
        return dtype

    def fold(self, rule: FusionRule) -> FusionFactors:
        """Sum the terms that ``rule`` only uses summed: the same function with R_d = R_t = 1.

        Raises:
            ConfigError: ``rule.cp`` is a sum of products: Σ_i Π_m Z_m^(i) lacks the cross terms of Π_m Σ_i Z_m^(i), so
                in general no single term equals R of them.
        """
        require_foldable(rule)
        return replace(self, modalities={name: m.folded() for name, m in self.modalities.items()})

    def num_elements(self) -> int:
        """The number of entries of all factors."""
        return sum(math.prod(factor.shape) for *_, factor in self.parts())

    def parts(self) -> list[tuple[str, str, int, Tensor]]:
        """(modality, name, number of dimensions without ``*S``, factor) of every factor, the gate last."""
        parts = [(name, *part) for name, m in self.modalities.items() for part in m.parts()]
        return parts if self.gate is None else [*parts, ("gate", "", 2, self.gate)]
