"""What a likelihood of several tasks refuses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from bayes_adapters.errors import ConfigError, DataError, described, near_matches, unknown_name
from bayes_adapters.likelihoods._match_checks import require_alone

LEARNED = "learned"


def require_learnable(weights: object, learned: tuple[str, ...], tasks: Iterable[str]) -> None:
    """Raise :class:`ConfigError` unless ``weights`` is the word for learned ones, and there is one to be learned."""
    if weights != LEARNED:
        raise unknown_name("weights", str(weights), [LEARNED])
    if not learned:
        raise ConfigError(
            f"weights='learned' has no effect: of the tasks {list(tasks)} none is of classes, labels or counts, and "
            "likelihoods of numbers learn scales of their own. Leave weights out."
        )


def require_tasks(tasks: Any, base: type[Any], weights: Any) -> None:
    """Raise :class:`ConfigError` unless ``tasks`` maps names to likelihoods, and weights are positive."""
    if not isinstance(tasks, Mapping) or not tasks:
        raise ConfigError(f"Tasks takes a dictionary, name → likelihood, with at least one task; got {tasks!r}.")
    for name, task in tasks.items():
        if not isinstance(name, str) or not name.isidentifier() or hasattr(dict, name):
            raise ConfigError(
                f"A task's name must be a word of letters, digits and underscores, and none of a dictionary's methods; "
                f"got {name!r}."
            )
        if not isinstance(task, base):
            raise ConfigError(
                f"The task {name!r} must be a likelihood, an object such as Categorical(3); got {described(task)}."
            )
        require_alone(name, task)
        if getattr(task, "tasks", None) is not None:
            raise ConfigError(f"The task {name!r} is itself a likelihood of several tasks. Name all in one Tasks.")
    if not isinstance(weights, Mapping):
        raise ConfigError(
            f"weights is a dictionary, task → weight, or 'learned'; got {described(weights)}. The tasks are "
            f"{list(tasks)}."
        )
    for name, weight in weights.items():
        if name not in tasks:
            raise unknown_name("task", str(name), tasks)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0.0 < weight < math.inf:
            raise ConfigError(f"The weight of the task {name!r} must be a positive, finite number; got {weight!r}.")


def require_names(targets: object, tasks: Iterable[str]) -> Mapping[str, Tensor]:
    """Return ``targets``; raise :class:`DataError` unless it maps names of ``tasks`` to tensors."""
    names = list(tasks)
    if not isinstance(targets, Mapping):
        raise DataError(
            f"The likelihood has the tasks {names}, so targets must be a dictionary, task → tensor; got "
            f"{described(targets)}."
        )
    for name in targets:
        if name not in names:
            raise DataError(f"There is no task {name!r}.{near_matches(str(name), names)} The tasks are {names}.")
    return targets


def require_columns(name: str, values: Tensor, width: int) -> None:
    """Raise :class:`DataError` unless targets (B, …) of the task ``name`` have ``width`` entries per example."""
    if values[0].numel() != width:
        raise DataError(
            f"Targets of the task {name!r} have shape {tuple(values.shape)}; the model gives {width} answers per "
            "example. One target per token needs one per token of the backbone; a token without a label has -100."
        )


def require_saved_name(task: type) -> None:
    """Raise :class:`ConfigError` if a task's class has no name of its own, by which a saved adapter could be loaded."""
    if "name" not in vars(task):
        raise ConfigError(
            f"The likelihood {task.__name__} of a task has no name of its own, so a saved adapter could not say what "
            "it is. Add `name: ClassVar[str]` to the class and register it with bayes_adapters.registry.register."
        )
