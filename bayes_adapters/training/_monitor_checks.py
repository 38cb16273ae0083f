"""What ``fit`` refuses of the metric that it watches, and of metrics of the caller's own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from bayes_adapters.errors import ConfigError, near_matches


def check_monitor(monitor: str, names: Iterable[str]) -> None:
    """Raise :class:`ConfigError`, listing what exists, unless ``monitor`` is among ``names``."""
    known = [name for name in names if name not in {"epoch", "step"}]
    if monitor not in known:
        raise ConfigError(
            f"monitor={monitor!r} is not in the log.{near_matches(monitor, known)} The log has: {', '.join(known)}. "
            "val_nll needs validation=…; metrics of your own come from evaluate=…; monitor=None watches nothing."
        )


def require_named(monitor: str | None, maximise: bool) -> None:
    """Raise :class:`ConfigError` if a metric is to be maximised and none is named."""
    if maximise and monitor in ("auto", None):
        raise ConfigError(
            "mode='max' says that higher is better, and monitor= names no metric: 'auto' is val_nll, of which lower is "
            "better. Name one of evaluate=…, such as monitor='accuracy', or leave mode out."
        )


def require_watched(monitor: str | None, patience: int | None) -> None:
    """Raise :class:`ConfigError` if there is patience and no metric."""
    if monitor is None and patience is not None:
        raise ConfigError(
            "patience has no metric to watch. Pass validation=…, or name one: monitor='loss', or one of evaluate=…."
        )


def require_metrics(found: object) -> Mapping[Any, Any]:
    """Return what ``evaluate`` returned; raise :class:`ConfigError` unless it is a mapping."""
    if not isinstance(found, Mapping):
        raise ConfigError(f"evaluate must return a dict of metric → number; got {type(found).__name__}.")
    return found


def require_new(name: str, log: Collection[str]) -> None:
    """Raise :class:`ConfigError` if the log has a metric of this name."""
    if name in log:
        raise ConfigError(
            f"evaluate returned {name!r}, which the log already has. Name it otherwise, for example 'my_{name}'."
        )


def not_a_number(name: str, value: object) -> ConfigError:
    """Build the error for a metric whose value is no number."""
    return ConfigError(f"evaluate returned {name!r} = {str(value)[:60]}, which is not a number.")
