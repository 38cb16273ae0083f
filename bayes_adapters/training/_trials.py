"""The record of a sweep: one trial per setting, seed and temperature, in a file that a later call continues."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files._whole_file import replace_file
from bayes_adapters.training._checkpoint import differences

FILE = "trials.json"
"""Name of the file in the folder of a sweep."""


@dataclass(frozen=True)
class Trial:
    """What one run gave at one temperature.

    Args:
        settings: name → value of the grid, as JSON; what is not JSON is its ``repr``.
        seed: of the start and the draws.
        temperature: τ of the prediction.
        nll: −mean log posterior predictive density of the validation examples, nats.
        total, epistemic: their mean uncertainty, nats.
        width: median over sites of σ_q / σ_p, at τ; see :func:`bayes_adapters.analysis.width.relative_widths`. NaN
            where no site tells both.
        steps: optimiser steps of the run.
        seconds: wall-clock time of training.
        failure: why there are no numbers: what the :class:`NonFiniteError` of a run that diverged said. nll, total,
            epistemic and width are then NaN.
    """

    settings: dict[str, Any]
    seed: int
    temperature: float
    nll: float
    total: float
    epistemic: float
    width: float
    steps: int
    seconds: float
    failure: str = ""

    @property
    def key(self) -> tuple[str, int, float]:
        """What tells trials apart."""
        return name_of(self.settings), self.seed, self.temperature


def failed(settings: dict[str, Any], seed: int, temperature: float, steps: int, seconds: float, why: str) -> Trial:
    """Return the trial of a run that has no numbers."""
    return Trial(settings, seed, temperature, math.nan, math.nan, math.nan, math.nan, steps, seconds, why)


def shown(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON, what is not JSON by its ``repr``."""
    return {name: value if _is_json(value) else repr(value) for name, value in settings.items()}


def name_of(settings: Mapping[str, Any]) -> str:
    """Return a short name that settings, as JSON, have alone.

    >>> name_of({"kl_weight": 0.1}) == name_of({"kl_weight": 0.1}) != name_of({"kl_weight": 0.2})
    True
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def read(folder: Path, about: Mapping[str, Any]) -> list[Trial]:
    """Return the trials that are done; none where the folder has no file.

    Raises:
        ConfigError: they were made with other options or data; the differences are listed.
        AdapterFileError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        old, rows = found["about"], [_numbers(row) for row in found["trials"]]
        trials = [Trial(**row) for row in rows]
    except (ValueError, LookupError, TypeError) as error:
        raise AdapterFileError(
            f"{path} holds no readable trials ({error}). Delete it, or pass another folder."
        ) from error
    if lines := differences(old, json.loads(json.dumps(about))):
        listed = "\n".join(lines)
        raise ConfigError(f"The trials in {path} were made otherwise:\n{listed}\nPass another folder.")
    return trials


def write(folder: Path, about: Mapping[str, Any], trials: Sequence[Trial]) -> None:
    """Replace the file in one step."""
    rows = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(t).items()} for t in trials]
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / FILE, (json.dumps({"about": about, "trials": rows}, indent=1) + "\n").encode())


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in row.items()}


def _is_json(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_json(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str)
