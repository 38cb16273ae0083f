"""What transforms of a batch refuse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from bayes_adapters.data.batch import Batch, Frames
from bayes_adapters.errors import ConfigError, near_matches


def check_probability(name: str, value: object) -> None:
    """Raise :class:`ConfigError` unless ``value`` lies in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name} is a probability, from 0 to 1; got {value!r}.")


def check_interval(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> None:
    """Raise :class:`ConfigError` unless ``value`` is a pair of finite numbers, low ≤ high, within bounds."""
    ends = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    numbers = all(isinstance(end, int | float) and math.isfinite(end) for end in ends)
    if len(ends) != 2 or not numbers or not least <= ends[0] <= ends[1] <= most:
        within = "" if least == -math.inf else f" within {least:g} … {most:g}"
        raise ConfigError(f"{name} is a pair (low, high) of finite numbers, low ≤ high{within}; got {value!r}.")


def require_modality(batch: Batch, modality: str) -> Frames | None:
    """Return the frames of ``modality``, or None where the batch has none.

    Raises:
        ConfigError: there is none, but context of a name that is near: it is likely misspelt.
    """
    frames = batch.context.get(modality)
    if frames is None and near_matches(modality, batch.context):
        raise never_there(modality, batch.context)
    return frames


def never_there(modality: str, given: Iterable[str]) -> ConfigError:
    """Return the error for a transform of a modality that there is none of, beside others."""
    given = sorted(given)
    return ConfigError(
        f"The transform changes the modality {modality!r}; there is {given}.{near_matches(modality, given)} Pass the "
        f"transform modality={given[0]!r}, or rename the context."
    )
