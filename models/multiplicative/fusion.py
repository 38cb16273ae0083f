"""Multiplicative low-rank fusion of M ≥ 2 sequences as a pure function of its factors.

With the n_m real tokens X_m (n_m, d) of modality m, rank r, and L_m rows in its token factor::

    H_m      = GELU(X_m W_mᵀ + b_m)                                  (n_m, r)
    Z_m^(i)  = (c_m A_m G_m^(i))ᵀ H_m F_m^(i)                        (r, d)
    Z        = Π_m (Σ_i G_m^(i) and Σ_j F_m^(j) in Z_m's place)      cp="product_of_sums", as released
    Z        = Σ_i Π_m Z_m^(i)                                       cp="sum_of_products", a true rank-R CP
    pooled   : (first r real tokens of the concatenated X) + g ∘ Z   (r, d)
    residual : X_m + g_m ∘ √(L_m / r) A_m Σ_i G_m^(i) Z^(i)          (n_m, d), for every m

Π and ∘ are elementwise, g a gate (1 without one). **Tokens.** Row t of A_m (n_m, L_m) says where token t reads G_m:

* ``fixed``: A = I and c = 1. G_m has one row per token, the released form; it serves n_m ≤ L_m only, and has learned
  nothing for the rows that training never reached.
* ``interpolated``: the rows of G_m are knots of a piecewise linear curve over the sequence. Token t lies at
  p_t = (t + ½) L_m / n_m − ½, clipped to [0, L_m − 1], A_tl = max(0, 1 − |p_t − l|), and c = L_m / n_m.

Why this form: c Σ_t G(p_t) h_t is the midpoint rule, with n_m nodes, of L_m ∫ G(u) h(u) du, of which the released sum
is the rule with L_m nodes. So Z neither grows with the length nor changes, up to the rule's error, when the same
recording is framed at another rate; the parameters do not depend on the length; and at n_m = L_m, A = I and c = 1: the
released form with the same matrix. Attention-pooling scores would also take any length, but forget the order and have
no matrix of the released form to reduce to. Back to the tokens it is a curve that is read, not a sum, hence no c.

**Masks.** Real tokens move to the front and the rest is cut off before anything is computed, so masked frames, wherever
they stand and whatever they hold, cannot change a bit; t counts real tokens. **Missing.** Where a row has no real token
of modality m, its Z_m is the factor ``null``; at ones the product is that of the others.

Source: Wander, Guo et al., AAAI 2025, arXiv 2412.08979, as its released code computes it (read in copies of that code).
The interpolated form, masks, gate, null, normalisation and the residual placement are this library's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from bayes_adapters.data.batch import Frames
from bayes_adapters.errors import ConfigError
from bayes_adapters.models.multiplicative._checks import (
    check_sequences,
    checked_gate,
    missing,
    require_draws,
    require_paired_terms,
    require_token_rows,
)
from bayes_adapters.models.multiplicative.factors import (
    CP,
    RELEASED,
    FusionFactors,
    FusionRule,
    ModalityFactors,
    Placement,
    Tokens,
)

_EPS = 1e-6
"""Added to the mean square of Z_m before its root is taken; small beside a fresh factor's, 0.002 to 0.1."""


def cp_fusion(
    sequences: Mapping[str, Frames], factors: FusionFactors, rule: FusionRule = RELEASED
) -> Frames | dict[str, Frames]:
    """Fuse by ``rule.placement``: :func:`cp_fusion_pooled` or :func:`cp_fusion_residual`; see there.

    >>> from bayes_adapters.models.multiplicative.factors import ModalityFactors
    >>> ones = ModalityFactors(torch.ones(2, 4), torch.zeros(2), torch.ones(1, 2, 4), torch.ones(1, 3, 2))
    >>> frames = Frames(torch.randn(5, 3, 4), torch.ones(5, 3, dtype=torch.bool))
    >>> fused = cp_fusion({"text": frames, "audio": frames}, FusionFactors({"text": ones, "audio": ones}))
    >>> fused.values.shape
    torch.Size([5, 2, 4])
    """
    if rule.placement is Placement.POOLED:
        return cp_fusion_pooled(sequences, factors, rule)
    return cp_fusion_residual(sequences, factors, rule)


def cp_fusion_pooled(sequences: Mapping[str, Frames], factors: FusionFactors, rule: FusionRule = RELEASED) -> Frames:
    """Fuse M sequences into r tokens, ``(first r real tokens of the concatenation) + g ∘ Z``.

    Args:
        sequences: modality → frames, values of shape (S·B, T_m, d), float32, bfloat16, float16 or float64. A modality
            that is left out is missing for every row. With factors of S draws the rows are in the order [S, B].
        factors: the factors, in the order in which sequences are concatenated; ``gate`` of shape (*S, 1, d), or None.
        rule: see :class:`FusionRule`; its placement is not read.

    Returns:
        Values of shape (S·B, r, d) in the sequences' dtype (computed in float32 or wider), mask all True. Rows with
        fewer than r real tokens in all have zeros in the residual's remaining places.

    Raises:
        ConfigError: an unknown modality; terms that ``sum_of_products`` cannot pair; a gate of another placement.
        DataError: no sequence, unequal widths or batch sizes, a missing modality without ``null``, a batch that S
            draws do not divide, or, with fixed tokens, more real tokens than the token factor has rows.
    """
    call = _Call.of(sequences, factors, rule)
    with torch.autocast(call.device.type, enabled=False):
        terms = call.fused()
        delta = terms.sum(2) * (1 / math.sqrt(terms.shape[2]) if rule.normalise else 1.0)
        if factors.gate is not None:
            delta = delta * call.gate(1)[:, None]
        inputs = [call.packed[name] for name in factors.modalities if name in call.packed]
        both = torch.cat([p.values for p in inputs], 1)
        residual = _pack(both, torch.cat([p.real for p in inputs], 1)).values[:, : factors.rank]
        residual = functional.pad(residual, (0, 0, 0, factors.rank - residual.shape[1]))
    values = residual + delta.reshape(residual.shape).to(residual.dtype)
    return Frames(values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device))


def cp_fusion_residual(
    sequences: Mapping[str, Frames], factors: FusionFactors, rule: FusionRule = RELEASED
) -> dict[str, Frames]:
    """Add to every modality's real tokens what its own token factor reads from Z, ``X_m + g_m ∘ √(L/r) A_m G_m Z``.

    Args:
        sequences: as for :func:`cp_fusion_pooled`.
        factors: the factors; ``gate`` of shape (*S, M, d), its rows in the order of ``factors.modalities``, or None.
        rule: see :class:`FusionRule`; its placement is not read.

    Returns:
        Given modality → frames of the same shape, dtype and mask, in the order of ``sequences``; masked frames keep
        their values.

    Raises:
        ConfigError: as :func:`cp_fusion_pooled`.
        DataError: as :func:`cp_fusion_pooled`.
    """
    call = _Call.of(sequences, factors, rule)
    updated: dict[str, Frames] = {}
    with torch.autocast(call.device.type, enabled=False):
        terms = call.fused()
        gate = None if factors.gate is None else call.gate(len(factors.modalities))
        for i, name in enumerate(factors.modalities):
            if name not in sequences:
                continue
            token = call.terms_of(factors.modalities[name].token, 3)
            curve = torch.einsum("silk,sbikd->sbld", token, terms) * math.sqrt(token.shape[2] / factors.rank)
            if gate is not None:
                curve = curve * gate[:, None, i : i + 1]
            delta = call.places(name, token.shape[2]) @ curve.flatten(0, 1)
            updated[name] = _add(sequences[name], delta)
    return {name: updated[name] for name in sequences}


def modality_factors(
    sequences: Mapping[str, Frames], factors: FusionFactors, rule: FusionRule = RELEASED
) -> dict[str, Float[Tensor, "rows R r d"]]:
    """Return every Z_m^(i) by itself: what is multiplied, for whoever asks which part of a fusion does what.

    ``Z = Σ_i Π_m Z_m^(i)`` of the module's docstring; with ``product_of_sums`` R is 1. Where a row lacks the modality
    it is ``null`` at every place. The gate, the placement and the 1/√R of a normalised pooled sum are not in it.

    Args:
        sequences: as for :func:`cp_fusion_pooled`.
        factors: the factors.
        rule: see :class:`FusionRule`.

    Returns:
        Modality → shape (S·B, R, r, d), float32 or wider, in the order of ``factors.modalities``.

    Raises:
        ConfigError: as :func:`cp_fusion_pooled`.
        DataError: as :func:`cp_fusion_pooled`.
    """
    call = _Call.of(sequences, factors, rule)
    draws = math.prod(call.draws)
    with torch.autocast(call.device.type, enabled=False):
        own = {name: call.one(name, modality) for name, modality in factors.modalities.items()}
    return {name: z.expand(draws, call.rows // draws, -1, -1, -1).flatten(0, 1) for name, z in own.items()}


@dataclass(frozen=True)
class _Packed:
    """Real tokens in front, as many places as the longest row needs, zeros after them."""

    values: Float[Tensor, "rows n d"]
    real: Bool[Tensor, "rows n"]

    @property
    def count(self) -> Int[Tensor, " rows"]:
        return self.real.sum(1)


def _pack(values: Float[Tensor, "rows T d"], mask: Bool[Tensor, "rows T"]) -> _Packed:
    length = min(mask.shape[1], max(1, int(mask.sum(1).max())))
    order = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :length]
    real = mask.gather(1, order)
    front = values.gather(1, order[..., None].expand(-1, -1, values.shape[2]))
    return _Packed(front.masked_fill(~real[..., None], 0.0), real)


def _add(frames: Frames, delta: Float[Tensor, "rows n d"]) -> Frames:
    """Add ``delta``, whose places count real tokens, to the real frames."""
    if frames.mask.shape[1] == 0:
        return frames
    place = (frames.mask.cumsum(1) - 1).clamp_min(0)[..., None].expand_as(frames.values)
    moved = frames.values + delta.gather(1, place).to(frames.values.dtype)
    return Frames(torch.where(frames.mask[..., None], moved, frames.values), frames.mask)


@dataclass(frozen=True)
class _Call:
    """One call's packed sequences, checked against its factors, and the sizes that both agree on."""

    packed: Mapping[str, _Packed]
    factors: FusionFactors
    rule: FusionRule
    draws: tuple[int, ...]
    rows: int
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(sequences: Mapping[str, Frames], factors: FusionFactors, rule: FusionRule) -> _Call:
        """Check, pack and return."""
        rows = check_sequences(sequences, factors)
        draws = factors.draws
        require_draws(rows, math.prod(draws))
        require_paired_terms(factors, rule)
        dtype = torch.promote_types(torch.float32, factors.dtype)
        for frames in sequences.values():
            dtype = torch.promote_types(dtype, frames.values.dtype)
        packed = {name: _pack(frames.values, frames.mask) for name, frames in sequences.items()}
        for name, sequence in packed.items():
            require_token_rows(name, sequence.values.shape[1], sequence.count, factors, rule)
        return _Call(packed, factors, rule, draws, rows, dtype, next(iter(packed.values())).values.device)

    def flat(self, factor: Tensor, event_dim: int) -> Tensor:
        """Shape (S, *event), S = 1 for a factor that is not drawn, in the dtype of the computation."""
        lead, event = factor.shape[: factor.dim() - event_dim], factor.shape[factor.dim() - event_dim :]
        full = factor if math.prod(lead) == 1 else factor.expand(*self.draws, *event)
        return full.reshape(-1, *event).to(self.dtype)

    def terms_of(self, factor: Tensor, event_dim: int) -> Tensor:
        """Shape (S, R, …): every term for a sum of products, their sum (R = 1) for a product of sums."""
        flat = self.flat(factor, event_dim)
        return flat.sum(1, keepdim=True) if self.rule.cp is CP.PRODUCT_OF_SUMS else flat

    def gate(self, rows: int) -> Float[Tensor, "S {rows} d"]:
        """The gate, which must have the ``rows`` that its placement needs."""
        return self.flat(checked_gate(self.factors.gate, rows), 2)

    def places(self, name: str, length: int) -> Float[Tensor, "rows n {length}"]:
        """A of the module's docstring; zero at places without a token."""
        sequence = self.packed[name]
        place = torch.arange(sequence.values.shape[1], device=self.device, dtype=self.dtype)[None]
        if self.rule.tokens is Tokens.INTERPOLATED:
            place = (place + 0.5) * (length / sequence.count.clamp_min(1).to(self.dtype))[:, None] - 0.5
        knots = torch.arange(length, device=self.device, dtype=self.dtype)
        hat = (1.0 - (place.clamp(0, length - 1)[..., None] - knots).abs()).clamp_min(0.0)
        return hat * sequence.real[..., None]

    def fused(self) -> Float[Tensor, "S B R r d"]:
        """The product over modalities, term by term."""
        product: Tensor | None = None
        for name, modality in self.factors.modalities.items():
            z = self.one(name, modality)
            product = z if product is None else product * z
        if product is None:
            raise ConfigError("Fusion needs at least two modalities; the factors have none.")
        draws = math.prod(self.draws)
        return product.expand(draws, self.rows // draws, -1, self.factors.rank, -1)

    def one(self, name: str, modality: ModalityFactors) -> Float[Tensor, "S B R r d"]:
        """Z_m of one modality, term by term; S or B is 1 where it does not vary."""
        null = None if modality.null is None else self.flat(modality.null, 1)[:, None, None, None]
        sequence = self.packed.get(name)
        feature, token = self.terms_of(modality.feature, 3), self.terms_of(modality.token, 3)
        if sequence is None:
            if null is None:
                raise missing(name, list(range(self.rows)))
            return null.expand(-1, -1, feature.shape[1], self.factors.rank, -1)
        draws, length = math.prod(self.draws), token.shape[2]
        x = sequence.values.to(self.dtype).reshape(draws, -1, self.factors.width)
        hidden = functional.gelu(x @ self.flat(modality.down, 2).mT + self.flat(modality.bias, 1)[:, None])
        hidden = hidden.reshape(self.rows, -1, self.factors.rank)
        if self.rule.tokens is Tokens.INTERPOLATED:
            hidden = hidden * (length / sequence.count.clamp_min(1).to(self.dtype))[:, None, None]
        at_knots = (self.places(name, length).mT @ hidden).reshape(draws, -1, length, self.factors.rank)
        # (H F)ᵀ G = ((Gᵀ H) F)ᵀ, and Gᵀ H is only r by r
        z = torch.einsum("silk,sblh->sbikh", token, at_knots)
        z = torch.einsum("sbikh,sihd->sbikd", z, feature)
        if self.rule.normalise:
            z = z * (z.square().mean((-2, -1), keepdim=True) + _EPS).rsqrt()
        present = (sequence.count > 0).reshape(draws, -1, 1, 1, 1)
        if null is not None:
            return torch.where(present, z, null)
        if not bool(present.all()):
            raise missing(name, (~present).flatten().nonzero().flatten().tolist())
        return z
