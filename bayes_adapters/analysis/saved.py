"""What was fitted to predictions after training, read back from a saved adapter."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from bayes_adapters.analysis.calibration import DeviationScaling, TemperatureScaling, VectorScaling
from bayes_adapters.analysis.conformal import ConformalClasses, ConformalIntervals, ConformalQuantiles
from bayes_adapters.analysis.no_match import MatchThreshold, NullCandidate
from bayes_adapters.analysis.selection import RiskThreshold
from bayes_adapters.errors import AdapterFileError, ConfigError, unknown_name
from bayes_adapters.files import verified

Scaling = TemperatureScaling | VectorScaling | DeviationScaling
"""Takes a prediction and returns one."""
Sets = ConformalClasses | ConformalIntervals | ConformalQuantiles
"""Takes a prediction, or quantiles, and returns sets of answers."""
Calibration = Scaling | Sets | RiskThreshold | MatchThreshold | NullCandidate
"""What :func:`load_calibration` returns; a threshold takes a prediction and returns which answers are trusted, and what
is for retrieval takes scores."""
_KINDS: dict[str, Any] = {
    kind.name: kind
    for kind in (
        TemperatureScaling,
        VectorScaling,
        DeviationScaling,
        ConformalClasses,
        ConformalIntervals,
        ConformalQuantiles,
        RiskThreshold,
        MatchThreshold,
        NullCandidate,
    )
}


def load_calibration(directory: str | Path) -> list[Calibration]:
    """Return what was given as ``calibration`` to :func:`bayes_adapters.save`, in its order; empty where none was.

    Raises:
        AdapterFileError: the folder holds no readable adapter, or a calibration that this library does not have.

    ::

        save(folder, model, guide, calibration=[TemperatureScaling.fit(answer, targets)])
        (scaling,) = load_calibration(folder)
        scaling(predict(model, guide, batch))
    """
    entries = verified(directory).get("calibration", [])
    try:
        return [from_config(entry["name"], entry["config"]) for entry in entries]
    except (ConfigError, TypeError) as error:
        raise AdapterFileError(
            f"The calibration of the adapter in {str(directory)!r} cannot be built: {error} Was it saved by a newer "
            "bayes-adapters? Update this one."
        ) from error


def from_config(name: str, config: dict[str, Any]) -> Calibration:
    """Return what has this ``name`` and :meth:`config`.

    Raises:
        ConfigError: there is none of this name, the configuration has other entries, or a number is out of range.

    >>> from_config("temperature", TemperatureScaling(2.0).config())
    TemperatureScaling(temperature=2.0)
    """
    if name not in _KINDS:
        raise unknown_name("calibration", name, _KINDS)
    names = [field.name for field in fields(_KINDS[name])]
    if sorted(config) != sorted(names):
        raise ConfigError(
            f"The configuration of {name!r} has {', '.join(names)}; got {', '.join(config) or 'nothing'}."
        )
    return _KINDS[name](**config)
