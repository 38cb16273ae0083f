"""What a sweep refuses before its first run."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bayes_adapters.errors import ConfigError, NonFiniteError, positive_number, unknown_name
from bayes_adapters.training._data_checks import ADDRESS
from bayes_adapters.training._trials import Trial, name_of, shown

_OWN = ("model", "guide", "data", "seed", "checkpoint", "resume", "restore_best", "progress", "validation")
_BUDGET = ("epochs", "max_steps", "accumulate")


def check_grid(grid: Mapping[str, Sequence[Any]], temperatures: Sequence[float], seeds: Sequence[Any]) -> None:
    """Raise :class:`ConfigError` for a grid with nothing in it, or whose runs would not have one budget."""
    for name, values in {**grid, "temperatures": temperatures, "seeds": seeds}.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ConfigError(f"{name} needs a list with a value to try; got {values!r}.")
        names = [name_of(shown({name: value})) for value in values]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"Two values of {name} look the same: {list(values)!r}. Each is tried once; what is not JSON is told "
                "apart by its repr, so give a number or a name and let make() build the thing."
            )
    for temperature in temperatures:
        positive_number("temperature", temperature)
    if "temperature" in grid:
        raise ConfigError("temperature needs no run of its own: pass temperatures=[…] beside the grid.")
    if unequal := [name for name in grid if name in _BUDGET]:
        raise ConfigError(
            f"{unequal[0]!r} is the same for all settings, so that they have one budget: pass {unequal[0]}=… beside "
            "the grid."
        )


def read_seeds(seeds: Sequence[Any]) -> list[int]:
    """Return seeds as ints, also of numpy; raise :class:`ConfigError` where one is no whole number."""
    try:
        return [operator.index(seed) for seed in seeds]
    except TypeError as error:
        raise ConfigError(f"seeds are whole numbers, such as [0, 1, 2]; got {list(seeds)!r}.") from error


def require_lasting(settings: Mapping[str, Any], folder: object) -> None:
    """Raise :class:`ConfigError` for a value that a later call with the same folder could not recognise.

    Args:
        settings: name → value, or the values of a grid, as JSON.
        folder: where trials are kept, if they are.
    """
    for name, value in settings.items() if folder is not None else ():
        if found := ADDRESS.search(repr(value)):
            raise ConfigError(
                f"{name} has a value whose repr holds an address ({found[0].strip()}), which differs in the next "
                f"process: trials in {folder} would not be found again. Give a number or a name and let make() build "
                "the thing, pass a class or an object with a repr of its own, or folder=None."
            )


def check_names(
    grid: Mapping[str, Any], options: Mapping[str, Any], make: Callable[..., Any], known: Iterable[str]
) -> None:
    """Raise :class:`ConfigError` for options that are the sweep's own, or that neither ``fit`` nor ``make`` takes."""
    names = [*known]
    for name in {**options, **grid}:
        if name in _OWN:
            raise ConfigError(f"{name!r} is tune's own to give to fit; leave it out.")
    for name in options:
        if name not in names:
            raise unknown_name("option of fit", name, names)
    taken = inspect.signature(make).parameters
    if any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        return
    for name in grid:
        if name not in names and name not in taken:
            raise unknown_name("setting of the grid", name, [*names, *taken])


def all_diverged(trials: Iterable[Trial]) -> NonFiniteError:
    """The error for a grid in which no setting has a finite NLL under every seed and at some temperature."""
    said = {f"{trial.settings}, seed {trial.seed}": trial.failure.splitlines()[0] for trial in trials if trial.failure}
    listed = "\n".join(f"  {run}: {why}" for run, why in said.items())
    return NonFiniteError(
        f"No setting of the grid could be trained under every seed:\n{listed}\nLook at the data first; then take a "
        "smaller learning rate, clip_norm=1.0, or a smaller initial scale."
    )
