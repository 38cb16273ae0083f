"""What pairs of queries and candidates refuse."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from bayes_adapters.errors import ConfigError, DataError


def require_modalities(taken: Collection[str], have: Collection[str], named: bool) -> None:
    """Raise :class:`ConfigError` unless the candidates' modalities are named, or can be told, and are there."""
    if missing := sorted(set(taken) - set(have)):
        raise ConfigError(f"of_gallery names {missing}, and the gallery has the modalities {sorted(have)}.")
    if not taken and not named:
        raise ConfigError(
            f"The queries have every modality of the gallery, {sorted(have)}, so nothing says which are the "
            "candidate's. Pass of_gallery=['audio'], say: these are the candidate's, everything else is the query's."
        )
    if not taken:
        raise ConfigError("of_gallery names no modality: every row would be the query alone.")


def require_numbers(which: str, targets: Any) -> Tensor:
    """Return targets that are numbers of groups; raise :class:`DataError` for others."""
    if not isinstance(targets, Tensor) or targets.dim() != 1 or targets.is_floating_point():
        given = (
            f"{targets.dtype} of shape {tuple(targets.shape)}"
            if isinstance(targets, Tensor)
            else type(targets).__name__
        )
        raise DataError(
            f"The targets of the {which} must be numbers of groups, int64 of shape (B,), equal where a query and a "
            f"candidate belong together; got {given}. Leave targets out where that is not known."
        )
    return targets


def require_one_kind(own: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raise :class:`DataError` where a part would be the query's and the candidate's."""
    if both := sorted(set(own) & set(other)):
        raise DataError(f"Both sides would give {both}. Name all of a candidate's modalities in of_gallery.")
