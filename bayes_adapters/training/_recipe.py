"""A run by a recipe: options of ``fit`` that follow from the model, the guide and the sizes of the data."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from bayes_adapters.errors import whole_number
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.training import _checks, _data


@runtime_checkable
class RecipeLike(Protocol):
    """What :class:`bayes_adapters.systems.Recipe` is: options of :func:`fit` that follow from model, guide and data."""

    def fit_options(
        self,
        model: AdapterModel,
        guide: AdapterGuide,
        *,
        num_data: int,
        batch_size: int | None = None,
        max_steps: int | None = None,
    ) -> dict[str, Any]:
        """Return keyword arguments of :func:`fit`."""
        ...


def options(
    recipe: RecipeLike,
    model: AdapterModel,
    guide: AdapterGuide,
    data: Any,
    epochs: int | None,
    max_steps: int | None,
    accumulate: int,
) -> dict[str, Any]:
    """The recipe's options for these data; ``epochs`` and ``max_steps`` say how long its schedules are."""
    _checks.require_recipe(recipe)
    for name, value in {"accumulate": accumulate, "epochs": epochs, "max_steps": max_steps}.items():
        if value is not None:
            whole_number(name, value)
    require_pair(model, guide)
    examples, size = _data.sizes(data, model)
    size = min(size * accumulate, examples)
    if epochs is not None:
        steps = epochs * -(-examples // size)
        max_steps = steps if max_steps is None else min(steps, max_steps)
    return recipe.fit_options(model, guide, num_data=examples, batch_size=size, max_steps=max_steps)
