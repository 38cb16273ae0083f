"""What ``fit`` refuses of the metric that it watches, and of metrics of the caller's own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

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


def checked_metrics(found: object, log: Collection[str]) -> dict[str, float]:
    """Return what ``evaluate`` found as numbers.

    Raises:
        ConfigError: not a mapping from names to numbers, or a name that the log already has.
    """
    if not isinstance(found, Mapping):
        raise ConfigError(f"evaluate must return a dict of metric → number; got {type(found).__name__}.")
    out: dict[str, float] = {}
    for name, value in found.items():
        if name in log:
            raise ConfigError(
                f"evaluate returned {name!r}, which the log already has. Name it otherwise, for example 'my_{name}'."
            )
        try:
            out[str(name)] = float(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"evaluate returned {name!r} = {str(value)[:60]}, which is not a number.") from error
    return out
