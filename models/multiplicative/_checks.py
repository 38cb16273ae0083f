"""What a multiplicative fusion refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from bayes_adapters.models.multiplicative.factors import CP, FusionRule, Tokens

if TYPE_CHECKING:
    from bayes_adapters.models.multiplicative.module import CPFusion

from collections.abc import Mapping

from bayes_adapters.data.batch import Frames
from bayes_adapters.errors import ConfigError, DataError, near_matches
from bayes_adapters.models.multiplicative.factors import FusionFactors


def missing(name: str, rows: list[int]) -> DataError:
    """Examples in ``rows`` lack the modality ``name``, and nothing stands in for it."""
    return DataError(
        f"Rows {rows[:8]} have no real token of {name!r} and its factors no null value to stand in for it. Drop these "
        "examples, or give ModalityFactors null=torch.ones(d) (CPFusion: null=True)."
    )


def check_sequences(sequences: Mapping[str, Frames], factors: FusionFactors) -> int:
    """Return the number of rows.

    Raises:
        ConfigError: a modality without factors.
        DataError: no sequences, or some that differ in rows or are not as wide as the factors.
    """
    names = list(factors.modalities)
    if not sequences:
        raise DataError(f"There is no sequence to fuse; give some of {names}. A missing modality may be left out.")
    for name in sequences:
        if name not in names:
            raise ConfigError(f"No factors for the modality {name!r}; there are {names}.{near_matches(name, names)}")
    shapes = {name: tuple(frames.values.shape) for name, frames in sequences.items()}
    if {shape[2] for shape in shapes.values()} != {factors.width}:
        raise DataError(
            f"Every sequence must be as wide as the factors, d = {factors.width}; got shapes (rows, T, d) = {shapes}. "
            "Project each modality to one width first."
        )
    rows = {shape[0] for shape in shapes.values()}
    if len(rows) > 1 or rows == {0}:
        raise DataError(f"Every sequence must have the same number of rows, at least 1; got shapes {shapes}.")
    return rows.pop()


def require_draws(rows: int, draws: int) -> None:
    """Raise :class:`DataError` unless sequences of ``rows`` rows hold every example once for each draw."""
    if rows % draws:
        raise DataError(
            f"The factors hold {draws} draws and the sequences {rows} rows, which must be draws · B in "
            "the order [S, B]. Repeat each sequence once per draw: values.repeat(S, 1, 1)."
        )


def require_paired_terms(factors: FusionFactors, rule: FusionRule) -> None:
    """Raise :class:`ConfigError` if terms are paired and their numbers differ."""
    terms = {(m.feature.shape[-3], m.token.shape[-3]) for m in factors.modalities.values()}
    if rule.cp is CP.SUM_OF_PRODUCTS and (len(terms) > 1 or len(set(next(iter(terms)))) > 1):
        raise ConfigError(
            "cp='sum_of_products' pairs term i of every factor, so all need the same number of terms; got "
            f"(feature, token) terms {sorted(terms)}. cp='product_of_sums' takes any."
        )


def require_token_rows(name: str, longest: int, count: Tensor, factors: FusionFactors, rule: FusionRule) -> None:
    """Raise :class:`DataError` if a sequence has more real tokens than its fixed token factor has rows.

    Args:
        name: the modality.
        longest: the length of its packed sequence.
        count: real tokens of each row.
        factors: all factors.
        rule: how they act.
    """
    length = factors.modalities[name].token.shape[-2]
    if rule.tokens is Tokens.FIXED and longest > length:
        raise DataError(
            f"A row of {name!r} has {int(count.max())} real tokens and its fixed token factor "
            f"{length} rows. Shorten the sequence, give the factor one row per token, or use tokens='interpolated'."
        )


def checked_gate(gate: Tensor | None, rows: int) -> Tensor:
    """Return ``gate``; raise :class:`ConfigError` unless there is one with as many rows as its placement needs."""
    if gate is None or gate.shape[-2] != rows:
        raise ConfigError(
            f"The gate has shape {None if gate is None else tuple(gate.shape)}; this placement needs (*S, {rows}, "
            "d): one row for placement='pooled', one a modality for placement='residual'."
        )
    return gate


def check_fusion_options(fusion: CPFusion, null: bool) -> None:
    """Raise :class:`ConfigError` for sizes below 1, and for options of a module that exclude each other.

    Args:
        fusion: the module, which has no parameters yet.
        null: whether it would learn what stands in for a missing modality.
    """
    if len(fusion.lengths) < 2:
        raise ConfigError(
            f"Fusion needs at least two modalities; got lengths={fusion.lengths}. For one, use an adapter."
        )
    sizes = {"width": fusion.width, "rank": fusion.rank, "feature_terms": fusion.feature_terms}
    sizes |= {"token_terms": fusion.token_terms} | {f"lengths[{k!r}]": v for k, v in fusion.lengths.items()}
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1; got {value}.")
    if fusion.rule.cp is CP.SUM_OF_PRODUCTS and fusion.feature_terms != fusion.token_terms:
        raise ConfigError(
            f"cp='sum_of_products' shares its index between both factors: feature_terms ({fusion.feature_terms}) and "
            f"token_terms ({fusion.token_terms}) must be equal. cp='product_of_sums' takes any."
        )
    if fusion.init != "gated" and (fusion.rule.normalise or null):
        raise ConfigError(
            f"init={fusion.init.value!r} starts from Z = 0 and needs normalise=False and null=False; got "
            f"normalise={fusion.rule.normalise} and null={null}. Use init='gated', or CPFusion.released(...)."
        )
