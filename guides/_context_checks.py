"""What a guide of several contexts refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayes_adapters.errors import ConfigError, unknown_name


def require_named(given: object, widths: Mapping[str, int]) -> Mapping[str, Any]:
    """Return ``given``; raise :class:`ConfigError` unless it maps modalities that the guide reads to reliabilities."""
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(
            f"The guide reads {sorted(widths)}: pass reliability= as modality → Reliability, of one of them or more; "
            f"got {given!r}."
        )
    for name in given:
        if name not in widths:
            raise unknown_name("context in reliability", str(name), widths)
    return given


def require_width_of(modality: str, context_dim: object, *, unused: str) -> None:
    """Raise :class:`ConfigError` if a modality other than the default ``unused`` is named, and no width of it."""
    if context_dim is None and modality != unused:
        raise ConfigError(
            f"modality={modality!r} has no effect without context_dim, the width of its frames: the guide would read "
            "each layer's own input. Pass context_dim too, or leave modality out."
        )
