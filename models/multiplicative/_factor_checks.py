"""What factors of a multiplicative fusion refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bayes_adapters.errors import ConfigError

if TYPE_CHECKING:
    from bayes_adapters.models.multiplicative.factors import FusionFactors, FusionRule, ModalityFactors


def check_modality(factors: ModalityFactors) -> None:
    """Raise :class:`ConfigError` unless the factors of one modality have shapes that belong together."""
    shapes = {name: tuple(factor.shape) for name, _, factor in factors.parts()}
    dims = all(factor.dim() >= event_dim for _, event_dim, factor in factors.parts())
    if not (
        dims
        and factors.bias.shape[-1] == factors.rank
        and factors.feature.shape[-2:] == factors.down.shape[-2:]
        and factors.token.shape[-1] == factors.rank
        and (factors.null is None or factors.null.shape[-1] == factors.width)
    ):
        raise ConfigError(
            "A modality's factors must be down (*S, r, d), bias (*S, r), feature (*S, R_d, r, d), token "
            f"(*S, R_t, L, r) and null (*S, d) or None, with one r and one d; got {shapes}."
        )
    if min(factors.rank, factors.width, *factors.feature.shape[-3:], *factors.token.shape[-3:]) < 1:
        raise ConfigError(f"rank, width, terms and length must be at least 1; got factors of shapes {shapes}.")


def check_factors(factors: FusionFactors) -> None:
    """Raise :class:`ConfigError` unless modalities, gate and draws belong together."""
    if len(factors.modalities) < 2:
        raise ConfigError(
            f"Fusion multiplies the factors of at least two modalities; got {list(factors.modalities)}. For one "
            "modality there is nothing to fuse: use an adapter."
        )
    sizes = {name: (m.rank, m.width) for name, m in factors.modalities.items()}
    if len(set(sizes.values())) > 1:
        raise ConfigError(
            f"All modalities need the same rank and the same width; got (rank, width) = {sizes}. Project wider "
            "encoders to a common width first."
        )
    if factors.gate is not None:
        shape = tuple(factors.gate.shape)
        if len(shape) < 2 or shape[-1] != factors.width or shape[-2] not in (1, len(factors.modalities)):
            raise ConfigError(
                f"The gate has shape {shape}; it must be (*S, 1, {factors.width}) for pooled or "
                f"(*S, {len(factors.modalities)}, {factors.width}) for residual fusion."
            )
    try:
        _ = factors.draws
    except RuntimeError as error:
        leads = {f"{name}.{part}": tuple(f.shape[: f.dim() - dim]) for name, part, dim, f in factors.parts()}
        raise ConfigError(
            f"The draws of the factors do not broadcast: leading sizes are {leads}. Draw all in the same plates."
        ) from error


def require_foldable(rule: FusionRule) -> None:
    """Raise :class:`ConfigError` unless ``rule`` uses its terms only summed."""
    if rule.cp != "product_of_sums":
        raise ConfigError(
            "Only cp='product_of_sums' folds: it uses its terms summed. In cp='sum_of_products' each term is a "
            "product of its own, and a sum of R products is in general no product (a CP of rank R has not rank 1)."
        )
